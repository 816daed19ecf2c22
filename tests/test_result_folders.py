import os
import shutil
import signal
from pathlib import Path

import pytest
from PIL import Image
from segment_helpers import FILES, left_in, make_scene, read, segment

import cast.results
from cast.cli import main
from cast.result_folders import replace_folder, result_names

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photos" / "disc.png"
    path.parent.mkdir()
    Image.fromarray(make_scene()).save(path)
    return path


def test_an_empty_folder_is_filled(tmp_path, photo):
    (tmp_path / "out" / "disc").mkdir(parents=True)
    assert segment(photo, "--out", tmp_path / "out") == 0
    assert set(left_in(tmp_path / "out/disc")) == FILES


def test_demo_into_an_empty_folder_and_into_the_current_one(tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["demo", "--model", "cast_mini", "--out", str(tmp_path / "empty")]) == 0
    assert left_in(tmp_path) == ["empty"]
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    inode = here.stat().st_ino
    for _ in range(2):  # the second run replaces the first
        assert main(["demo", "--model", "cast_mini", "--out", "."]) == 0
        assert set(left_in(here)) == FILES
        assert here.stat().st_ino == inode  # a shell in it still stands on the same folder
    assert left_in(tmp_path) == ["empty", "here"]
    (here / "notes.txt").write_text("mine")
    assert main(["demo", "--model", "cast_mini", "--out", "."]) == 1
    assert "other files" in capsys.readouterr().err
    assert set(left_in(here)) == FILES | {"notes.txt"}


@pytest.mark.parametrize("failing", range(6))
@pytest.mark.parametrize("pinned", [False, True])
def test_an_interrupted_exchange_leaves_the_old_files(tmp_path, monkeypatch, pinned, failing):
    folder = tmp_path / "disc"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_text("old")
    if pinned:
        monkeypatch.chdir(folder)
    rename, calls = Path.rename, []

    def interrupted(self, target):
        calls.append(self)
        if len(calls) == failing + 1:
            raise KeyboardInterrupt
        return rename(self, target)

    def replace():
        with replace_folder(folder) as temporary:
            for name in ("b", "c"):
                (temporary / name).write_text("new")

    monkeypatch.setattr(Path, "rename", interrupted)
    if failing < (4 if pinned else 2):
        with pytest.raises(KeyboardInterrupt):
            replace()
        assert {path.name: path.read_text() for path in folder.iterdir()} == {"a": "old", "b": "old"}
    else:
        replace()
        assert {path.name: path.read_text() for path in folder.iterdir()} == {"b": "new", "c": "new"}
    assert left_in(tmp_path) == ["disc"]


def test_an_interrupt_while_old_files_are_removed_leaves_none_of_them(tmp_path, monkeypatch):
    folder = tmp_path / "disc"
    folder.mkdir()
    (folder / "a").write_text("old")
    unlink, interrupts = os.unlink, [KeyboardInterrupt]

    def interrupted(*arguments, **options):
        if interrupts:
            raise interrupts.pop()
        unlink(*arguments, **options)

    monkeypatch.setattr(os, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt), replace_folder(folder) as temporary:
        (temporary / "b").write_text("new")
    assert left_in(tmp_path) == ["disc"]
    assert left_in(folder) == ["b"]


def test_a_symbolic_link_to_a_result_folder_stays_one(tmp_path, photo, capsys):
    assert segment(photo, "--out", tmp_path / "out") == 0
    real, link = tmp_path / "elsewhere" / "real", tmp_path / "out" / "disc"
    real.parent.mkdir()
    link.rename(real)
    link.symlink_to(real)
    assert segment(photo, "--out", tmp_path / "out", "--crop") == 0
    assert link.is_symlink()
    assert read(real)[0]["settings"]["crop"] is True
    assert left_in(real.parent) == ["real"]
    assert left_in(tmp_path / "out") == ["disc"]
    shutil.rmtree(real)
    assert segment(photo, "--out", tmp_path / "out") == 1
    assert "symbolic link to nothing" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["...png", "..png"])
def test_results_of_a_photo_named_by_dots_stay_inside_out(tmp_path, photo, name):
    dotted = photo.rename(photo.with_name(name))
    assert segment(dotted, "--out", tmp_path / "deep" / "out") == 0
    assert left_in(tmp_path / "deep") == ["out"]
    (folder,) = left_in(tmp_path / "deep/out")
    assert set(left_in(tmp_path / "deep/out" / folder)) == FILES


def test_no_name_means_another_folder():
    photos = [Path(place, name) for place in "ab" for name in ("..jpg", "...jpg", "....jpg", ".jpg", "x.jpg")]
    for chosen in (photos[:5], photos):
        names = result_names(chosen)
        assert len(set(names)) == len(chosen)
        assert all(name.strip(".") and os.sep not in name for name in names)


def test_what_cannot_be_removed_of_the_old_results_is_no_error(tmp_path, photo, monkeypatch, capsys):
    assert segment(photo, "--out", tmp_path / "out") == 0
    rmdir = os.rmdir

    def refuse(path, *arguments, **options):
        if str(path).endswith(".old"):
            raise PermissionError(13, "Permission denied")
        return rmdir(path, *arguments, **options)

    monkeypatch.setattr(os, "rmdir", refuse)
    assert segment(photo, "--out", tmp_path / "out", "--crop") == 0
    assert read(tmp_path / "out/disc")[0]["settings"]["crop"] is True
    assert "error" not in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_second_signal_does_not_disturb_the_cleanup(tmp_path, photo, monkeypatch, capsys, number, code):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    rmtree = shutil.rmtree

    def again(path, *arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        rmtree(path, *arguments, **options)

    monkeypatch.setattr(cast.results, "draw_panel", lambda *_, **__: os.kill(os.getpid(), number))
    monkeypatch.setattr(shutil, "rmtree", again)
    assert segment(photo, "--out", tmp_path / "out") == code
    assert left_in(tmp_path / "out") == []
    assert "stopped" in capsys.readouterr().err
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_results_are_not_photos(tmp_path, photo, monkeypatch, capsys):
    monkeypatch.chdir(photo.parent)
    for _ in range(2):
        assert segment("**/*", "--out", "res") == 0
        assert left_in(photo.parent / "res") == ["disc"]
    assert segment("res/disc", "--out", "other") == 1
    assert "no images in the folder" in capsys.readouterr().err
    assert segment("res/disc/panel.png", "--out", "other") == 0  # a file that is named is taken
    (photo.parent / "res/disc/hierarchy.json").write_text("{}")  # someone else's hierarchy.json
    assert segment("res/disc", "--out", "all") == 0
    assert len(left_in(photo.parent / "all")) == 6
