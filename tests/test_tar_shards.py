import multiprocessing
import os
import pickle
import tarfile

import numpy as np
import pytest
from image_set_helpers import png, write_tar

from cast.data.tar_shards import ShardReader, find_shards, index_shards

SAMPLES = {"000.png": png(0), "000.cls": b"3\n", "001.png": png(1), "001.cls": b"0", "notes.txt": b"x"}


def touch(folder, *names):
    for name in names:
        (folder / name).touch()


def names_of(index):
    return [index.names[i] for i in range(len(index.names))]


def test_a_range_keeps_its_zeros(tmp_path):
    touch(tmp_path, *(f"train-{i:03d}.tar" for i in range(8, 13)))
    found = find_shards(f"{tmp_path}/train-{{009..011}}.tar")
    assert [os.path.basename(f) for f in found] == ["train-009.tar", "train-010.tar", "train-011.tar"]


def test_ranges_and_globs_combine(tmp_path):
    touch(tmp_path, "a1-x.tar", "a1-y.tar", "a2-x.tar", "b1-x.tar")
    found = find_shards(f"{tmp_path}/a{{1..2}}-*.tar")
    assert [os.path.basename(f) for f in found] == ["a1-x.tar", "a1-y.tar", "a2-x.tar"]
    touch(tmp_path, "a1-z.tar")
    assert [os.path.basename(f) for f in find_shards(f"{tmp_path}/*.tar")][-1] == "b1-x.tar"
    touch(tmp_path, *(f"{a}{b}.tar" for a in (1, 2) for b in (1, 2)))
    found = find_shards(f"{tmp_path}/{{1..2}}{{1..2}}.tar")
    assert [os.path.basename(f) for f in found] == ["11.tar", "12.tar", "21.tar", "22.tar"]


def test_a_file_is_taken_as_it_is_named(tmp_path):
    touch(tmp_path, "odd{0..1}*.tar")
    assert find_shards(f"{tmp_path}/odd{{0..1}}*.tar") == [f"{tmp_path}/odd{{0..1}}*.tar"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("train-{0..2}.tar", r"no such file: .*train-1\.tar \(of .*train-\{0\.\.2\}"),
        ("val-*.tar", r"no file matches .*val-\*"),
        ("other.tar", "no such file: .*other.tar$"),
        ("train-{2..0}.tar", r"a range that rises, got \{2\.\.0\}"),
    ],
)
def test_patterns_without_archives(tmp_path, pattern, message):
    touch(tmp_path, "train-0.tar", "train-2.tar")
    with pytest.raises(ValueError, match=message):
        find_shards(f"{tmp_path}/{pattern}")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_places_are_those_of_the_contents(tmp_path, form):
    names = ["a" * 120 + "/" + "b" * 90, "c" * 150 + "/" + "d" * 150 + "ü"]  # too long for a plain header
    if form == tarfile.USTAR_FORMAT:
        names.pop()  # and for one with a prefix
    files = SAMPLES | {name + end: png(2) if end == ".png" else b"1" for name in names for end in (".png", ".cls")}
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in files.items():
            (tmp_path / "content").write_bytes(content)
            archive.add(tmp_path / "content", name)  # with times in fractions of seconds, as writers have them
        archive.add(tmp_path, "folder.png", recursive=False)
    index = index_shards([str(path)])
    images = [name for name in files if name.endswith(".png")]
    assert names_of(index) == images
    assert index.classes.tolist() == [3, 0, *[1] * len(names)]
    reader = ShardReader(index.paths)
    for i, name in enumerate(images):
        assert reader.read(0, int(index.offsets[i]), int(index.sizes[i])) == files[name]


def test_images_of_several_archives_in_order(tmp_path):
    paths = [str(write_tar(tmp_path / f"{k}.tar", {f"{k}{i}.png": png(i) for i in range(k)})) for k in (2, 0, 3)]
    index = index_shards(paths)
    assert names_of(index) == ["20.png", "21.png", "30.png", "31.png", "32.png"]
    assert index.shards.tolist() == [0, 0, 2, 2, 2]
    assert index.classes is None
    part = index.select(np.array([1, 4]))
    assert names_of(part) == ["21.png", "32.png"]
    assert part.shards.tolist() == [0, 2]


def test_which_members_are_images(tmp_path):
    files = {
        "./plain.PNG": b"",
        "masked.jpg": b"",
        "masked.mask.png": b"",
        "photo.1.jpg": b"",
        "photo.2.jpg": b"",
        "text.json": b"",
        "no_extension": b"",
        ".hidden.png": b"",
        "a/._b.png": b"",
        ".c/d.png": b"",
        "sub.folder/e.jpeg": b"",
    }
    index = index_shards([str(write_tar(tmp_path / "a.tar", files))])
    assert names_of(index) == ["plain.PNG", "masked.jpg", "photo.1.jpg", "photo.2.jpg", "sub.folder/e.jpeg"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (SAMPLES | {"002.png": b""}, "for each image or for none, but there is none for 002.png"),
        ({"a.png": b"", "a.cls": b"cat"}, r"whole number >= 0, in a.cls in .*a.tar, got b'cat'"),
        ({"a.png": b"", "a.cls": b"-1"}, "whole number >= 0"),
        ({"a.png": b"", "a.cls": b""}, "whole number >= 0"),
        ({"a.png": b"", "a.cls": b"1", "./a.cls": b"2"}, "a.cls in .* says class 2, an earlier member of that name 1"),
    ],
)
def test_classes_that_are_none(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        index_shards([str(write_tar(tmp_path / "a.tar", files))])


@pytest.mark.parametrize(("mode", "command"), [("w:gz", "gunzip"), ("w:bz2", "bunzip2"), ("w:xz", "unxz")])
def test_compressed_archives_say_how_to_unpack(tmp_path, mode, command):
    path = write_tar(tmp_path / "a.tar", SAMPLES, mode)
    with pytest.raises(ValueError, match=f"a.tar is compressed.*{command} -k .*a.tar"):
        index_shards([str(path)])


def test_cut_anywhere_short_of_the_end_is_noticed(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", SAMPLES).read_bytes()
    used = whole.index(b"notes.txt") + 1024  # header and one block; zeros to the end
    cut = tmp_path / "cut.tar"
    for length in [*range(0, used + 1, 100), used, used + 511]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.tar is (cut short|no tar archive)"):
            index_shards([str(cut)])
    cut.write_bytes(whole[: used + 512])
    assert len(index_shards([str(cut)]).names) == 2


def test_damaged_header_and_other_files(tmp_path):
    content = bytearray(write_tar(tmp_path / "a.tar", SAMPLES).read_bytes())
    content[content.index(b"001.png") + 120] ^= 255
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.tar is damaged at byte 2048"):
        index_shards([str(tmp_path / "a.tar")])
    (tmp_path / "photo.png").write_bytes(png(1, (100, 100)) * 10)
    with pytest.raises(ValueError, match=r"photo.png is no tar archive"):
        index_shards([str(tmp_path / "photo.png")])
    (tmp_path / "a.tar").write_bytes(write_tar(tmp_path / "b.tar", {"big.bin": bytes(9999)}).read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"a\.tar is cut short: of 10511 bytes, 5000 are there"):
        index_shards([str(tmp_path / "a.tar")])
    with pytest.raises(ValueError, match=r"cannot read .*: No such file"):
        index_shards([str(tmp_path / "none.tar")])


def test_links_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("b.png")
        member.type, member.linkname = tarfile.LNKTYPE, "a.png"
        archive.addfile(member)
    with pytest.raises(ValueError, match=r"holds a link, b\.png; pack it by tar --dereference"):
        index_shards([str(tmp_path / "a.tar")])


def _send(reader, places, pipe):
    pipe.send([reader.read(*place) for place in places])


def test_reading_after_a_fork_and_a_pickle(tmp_path):
    files = {f"{i}.png": png(i) for i in range(4)}
    index = index_shards([str(write_tar(tmp_path / "a.tar", files))])
    places = [(0, int(o), int(s)) for o, s in zip(index.offsets, index.sizes, strict=True)]
    reader = ShardReader(index.paths)
    expected = list(files.values())
    assert [reader.read(*place) for place in places] == expected  # the archive is open
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_send, args=(reader, places, there))
    process.start()
    assert here.recv() == expected
    process.join()
    copied = pickle.loads(pickle.dumps(reader))
    del reader  # closes its files, not the copy's
    assert [copied.read(*place) for place in places] == expected


def test_many_archives_need_few_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr("cast.data.tar_shards._MAX_OPEN", 2)
    paths = []
    for k in range(4):
        (tmp_path / str(k)).write_bytes(bytes([k] * 3))
        paths.append(str(tmp_path / str(k)))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    reader = ShardReader(paths)
    assert [reader.read(k, 1, 5) for k in (0, 1, 2, 3, 0)] == [bytes([k] * 2) for k in (0, 1, 2, 3, 0)]
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before + 2
    del reader
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before
