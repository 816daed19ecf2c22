import os
import pickle

import numpy as np
import pytest
from image_set_helpers import class_tree, number_of, png, write_files, write_tar
from PIL import Image

from cast.data.image_sets import BrokenImage, FolderImages, check_same_classes, open_image_set


def numbers(images):
    return [number_of(images.read(i)) for i in range(len(images))]


def class_list(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    return tmp_path / "classes.txt"


def test_a_tree_of_classes(tmp_path):
    files = {"dog/2.png": png(2), "cat/deep/er/1.JPG": png(1), "cat/0.png": png(0), "dog/10.png": png(3)}
    write_files(
        tmp_path, files | {"cat/notes.txt": b"", "cat/.hidden.png": b"", "dog/.h/x.png": b"", ".git/x.png": b""}
    )
    images = open_image_set(tmp_path)
    assert images.class_names == ("cat", "dog")
    assert numbers(images) == [0, 1, 3, 2]  # "10" before "2": sorted as text
    assert images.targets.tolist() == [0, 0, 1, 1]
    assert images.targets.dtype == np.int64
    assert images.name(1) == os.path.join(tmp_path, "cat", "deep", "er", "1.JPG")


def test_linked_folders_are_followed_but_not_in_circles(tmp_path):
    class_tree(tmp_path / "real")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a").symlink_to(tmp_path / "real" / "class0")
    (tmp_path / "links" / "b").symlink_to(tmp_path / "real" / "class1")
    (tmp_path / "real" / "class1" / "again").symlink_to(tmp_path / "real" / "class1")
    images = open_image_set(tmp_path / "links")
    assert images.class_names == ("a", "b")
    assert numbers(images) == list(range(6))


def test_a_flat_folder(tmp_path):
    write_files(tmp_path, {"b.png": png(1), "a.png": png(0), ".c.png": b"", "labels.csv": b""})
    images = open_image_set(tmp_path)
    assert images.class_names == ()
    assert numbers(images) == [0, 1]
    assert images.targets.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"cat/a.png": b"", "dog/notes.txt": b""}, "no images of class dog in .*dog"),
        ({"cat/a.png": b"", "dog/.a.png": b""}, "no images of class dog"),
        ({"cat/a.png": b"", "b.png": b""}, r"or images without folders in .*, got both: cat, b\.png"),
        ({"notes.txt": b""}, "no images in the folder .*[^r]$"),
        ({"train-0.tar": b""}, r"no images in the folder .*; its archives are named by a pattern: .*\*\.tar"),
    ],
)
def test_folders_that_are_no_set(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        open_image_set(write_files(tmp_path, files))


def test_paths_that_are_no_set(tmp_path):
    with pytest.raises(ValueError, match="got an empty name"):
        open_image_set("")
    with pytest.raises(ValueError, match=r"no such file: .*nothing"):
        open_image_set(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"no images in .*empty.tar"):
        open_image_set(write_tar(tmp_path / "empty.tar", {}))


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    class_tree(tmp_path)
    walk = os.walk

    def refusing(top, onerror, **options):  # permissions do not stop the super-user, under whom tests may run
        onerror(PermissionError(13, "Permission denied", top))
        return walk(top, **options)

    monkeypatch.setattr(os, "walk", refusing)
    with pytest.raises(ValueError, match=r"cannot read the folder .*class0: Permission denied"):
        open_image_set(tmp_path)


def test_a_list_of_classes_decides_which_and_in_what_order(tmp_path):
    class_tree(tmp_path / "set", classes=4, per_class=2)
    write_files(tmp_path / "set", {"class1b #2/x.png": png(99), "stray.png": b""})
    listed = class_list(tmp_path, "# of the paper\nclass3\n\n  class0  # a cat\nclass1b #2\n")
    with pytest.raises(ValueError, match=r"classes.txt lists the class class1b, for which there is no folder"):
        open_image_set(tmp_path / "set", listed)
    listed = class_list(tmp_path, "# of the paper\nclass3\n\n  class0  # a cat\n")
    images = open_image_set(tmp_path / "set", listed)
    assert images.class_names == ("class3", "class0")
    assert numbers(images) == [6, 7, 0, 1]
    assert images.targets.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class0\nclass9\n", "lists the class class9, for which there is no folder in"),
        ("class0\nclass1\nclass0\n", "names class0 more than once"),
        ("# nothing\n\n", "list of classes .*classes.txt is empty"),
    ],
)
@pytest.mark.parametrize("form", ["tree", "shards"])
def test_lists_of_classes_that_do_not_fit(tmp_path, text, message, form):
    listed = class_list(tmp_path, text)
    path = class_tree(tmp_path / "set")
    if form == "shards":
        path = write_tar(tmp_path / "a.tar", {"class0/0.png": b"", "class1/1.png": b""})
    with pytest.raises(ValueError, match=message):
        open_image_set(path, listed)


def test_lists_of_classes_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read the list of classes .*none.txt"):
        open_image_set(class_tree(tmp_path / "set"), tmp_path / "none.txt")
    listed = class_list(tmp_path, "class0\n")
    with pytest.raises(ValueError, match=r"classes.txt lists the class class0, for which there is no folder"):
        open_image_set(write_files(tmp_path / "flat", {"a.png": b""}), listed)
    with pytest.raises(ValueError, match=r"needs images in folders; those in .*a\.tar have numbers"):
        open_image_set(write_tar(tmp_path / "a.tar", {"class0/a.png": b"", "class0/a.cls": b"0"}), listed)
    with pytest.raises(ValueError, match=r"needs images in folders; in .*b\.tar there are none"):
        open_image_set(write_tar(tmp_path / "b.tar", {"a.png": b""}), listed)


def test_shards_with_numbers_for_classes(tmp_path):
    for k in range(3):
        files = {
            f"dir/{i}.{ext}": png(i) if ext == "png" else b"%d" % (i % 3)
            for i in (2 * k, 2 * k + 1)
            for ext in ("png", "cls")
        }
        write_tar(tmp_path / f"train-{k}.tar", files)
    images = open_image_set(f"{tmp_path}/train-{{0..2}}.tar")
    assert numbers(images) == list(range(6))
    assert images.targets.tolist() == [0, 1, 2, 0, 1, 2]
    assert images.class_names == ("0", "1", "2")
    assert images.name(3) == f"dir/3.png in {tmp_path}/train-1.tar"
    assert len(open_image_set(f"{tmp_path}/*.tar")) == 6


@pytest.mark.parametrize("prefix", ["", "./", "imagenet/train/"])
def test_shards_with_folders_for_classes(tmp_path, prefix):
    # Classes are spread over archives, and the first archive holds one class only.
    write_tar(tmp_path / "0.tar", {f"{prefix}dog/0.png": png(0), f"{prefix}dog/sub/1.png": png(1)})
    write_tar(
        tmp_path / "1.tar", {f"{prefix}cat/2.png": png(2), f"{prefix}dog/3.png": png(3), f"{prefix}ant/4.png": png(4)}
    )
    images = open_image_set(tmp_path / "*.tar")
    assert images.class_names == ("ant", "cat", "dog")
    assert images.targets.tolist() == [2, 2, 1, 2, 0]
    assert numbers(images) == [0, 1, 2, 3, 4]
    images = open_image_set(tmp_path / "*.tar", class_list(tmp_path, "dog\nant"))
    assert images.class_names == ("dog", "ant")
    assert images.targets.tolist() == [0, 0, 0, 1]
    assert numbers(images) == [0, 1, 3, 4]


def test_shards_of_one_folder_and_of_none(tmp_path):
    images = open_image_set(
        write_tar(tmp_path / "a.tar", {"coco/train2017/0.png": png(0), "coco/train2017/1.png": png(1)})
    )
    assert (images.class_names, images.targets.tolist()) == (("train2017",), [0, 0])
    images = open_image_set(write_tar(tmp_path / "b.tar", {"0.png": png(0), "1.png": png(1)}))
    assert (images.class_names, images.targets.tolist()) == ((), [0, 0])
    assert numbers(images) == [0, 1]
    with pytest.raises(ValueError, match=r"to lie in folders or none, got cat/0.png and 1.png"):
        open_image_set(write_tar(tmp_path / "c.tar", {"cat/0.png": b"", "1.png": b""}))


@pytest.mark.parametrize("form", ["tree", "shards"])
def test_pixels_are_read_by_the_rules_of_read_image(tmp_path, form):
    array = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array).save(tmp_path / "turned.png", exif=exif)
    Image.new("LA", (2, 2), (0, 0)).save(tmp_path / "clear.png")
    contents = {f"class/{name}.png": (tmp_path / f"{name}.png").read_bytes() for name in ("clear", "turned")}
    path = write_files(tmp_path / "set", contents) if form == "tree" else write_tar(tmp_path / "a.tar", contents)
    images = open_image_set(path)
    assert np.asarray(images.read(0)).tolist() == np.full((2, 2, 3), 255).tolist()
    np.testing.assert_array_equal(np.asarray(images.read(1)), array.transpose(1, 0, 2)[:, ::-1])


@pytest.mark.parametrize("form", ["tree", "shards"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no image", r"0\.png.* is not an image that Pillow can read"),
        (b"", r"0\.png.* is not an image that Pillow can read"),
        (png(1, (64, 64))[:-40], r"cannot (read|decode) .*0\.png"),
    ],
)
def test_a_broken_image_is_named(tmp_path, form, content, message):
    contents = {"class/0.png": content, "class/1.png": png(1)}
    path = write_files(tmp_path / "set", contents) if form == "tree" else write_tar(tmp_path / "a.tar", contents)
    images = open_image_set(path)
    with pytest.raises(BrokenImage, match=message) as caught:
        images.read(0)
    assert images.name(0) in str(caught.value)
    assert number_of(images.read(1)) == 1


def test_a_file_that_vanishes_is_a_broken_image(tmp_path):
    tree, shards = (
        open_image_set(class_tree(tmp_path / "set")),
        open_image_set(write_tar(tmp_path / "a.tar", {"0.png": png(0)})),
    )
    os.remove(tree.name(2))
    os.remove(tmp_path / "a.tar")
    with pytest.raises(BrokenImage, match=r"cannot read .*002\.png: No such file"):
        tree.read(2)
    with pytest.raises(BrokenImage, match=r"cannot read 0\.png in .*a\.tar: No such file"):
        shards.read(0)


def test_sets_can_be_sent_to_workers(tmp_path):
    tree = open_image_set(class_tree(tmp_path / "set"))
    shards = open_image_set(write_tar(tmp_path / "a.tar", {f"c{i}/{i}.png": png(i) for i in range(3)}))
    for images in (tree, shards):
        before = numbers(images)
        copy = pickle.loads(pickle.dumps(images))
        assert numbers(copy) == before
        assert copy.class_names == images.class_names
        assert copy.targets.tolist() == images.targets.tolist()
        assert [copy.name(i) for i in range(len(copy))] == [images.name(i) for i in range(len(images))]


def test_classes_need_an_entry_for_each_image(tmp_path):
    with pytest.raises(ValueError, match=r"a class for each of 2 images, got \(3,\)"):
        FolderImages(tmp_path, ["a.png", "b.png"], [0, 1, 1], ("x", "y"))


def named(*class_names):
    return FolderImages("", ["a.png"] * len(class_names), range(len(class_names)), class_names)


@pytest.mark.parametrize(
    ("train", "val"),
    [(named("a", "b"), named("a", "b")), (named(), named()), (named("0", "1", "2"), named("0", "1"))],
)
def test_same_classes(train, val):
    check_same_classes(train, val)


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (named("a", "b"), named("a", "c"), r"got 2 and 2: 1 only for training \(b\); 1 only held out \(c\)"),
        (named("a", "b"), named("a"), r"1 only for training \(b\)$"),
        (named("a"), named(), r"got 1 and 0: 1 only for training \(a\)"),
        (named("0", "1"), named("0", "1", "2"), r"1 only held out \(2\)"),
        (named("0", "1"), named("1"), r"1 only for training \(0\)"),
        (named("0", "1"), named(), "2 only for training"),
        (named("b", "a"), named("a", "b"), "their order differs"),
        (named(*"abcdefg"), named("x"), r"7 only for training \(a, b, c, d, e, \.\.\.\)"),
    ],
)
def test_different_classes(train, val, message):
    with pytest.raises(ValueError, match=message):
        check_same_classes(train, val)
