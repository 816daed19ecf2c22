"""Sets of images with or without classes: folders of classes, a flat folder, tar shards."""

import io
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from cast.data.images import decode_image, image_extensions, read_image
from cast.data.packed_names import PackedNames
from cast.data.tar_shards import ShardIndex, ShardReader, find_shards, index_shards


class BrokenImage(ValueError):
    """An image that cannot be read; the message names it."""


class ImageSet(ABC):
    """Images by number.

    Workers get a copy of the set, so whatever it holds per image lies in arrays (see `PackedNames`).

    Attributes:
        targets: int64 ``[N]``, the class of each image; zeros where there are none.
        class_names: By number; empty where there are no classes.
    """

    targets: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.targets)

    @abstractmethod
    def name(self, index: int) -> str:
        """Return what an image is called in messages."""

    @abstractmethod
    def read(self, index: int) -> Image.Image:
        """Decode an image to RGB, by the rules of `cast.data.read_image`.

        Raises:
            BrokenImage: It cannot be read or decoded.
        """


class FolderImages(ImageSet):
    """Image files beneath a folder.

    Args:
        root: The folder.
        names: Of the files, from there.
        targets: Their classes; None = there are none.
        class_names: By number.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        names: Iterable[str],
        targets: Sequence[int] | np.ndarray | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        self._root, self._names = os.fspath(root), PackedNames(names)
        self.targets = np.zeros(len(self._names), np.int64) if targets is None else np.array(targets, np.int64)
        self.class_names = tuple(class_names)
        if self.targets.shape != (len(self._names),):
            raise ValueError(f"expected a class for each of {len(self._names)} images, got {self.targets.shape}")

    def name(self, index: int) -> str:
        """Return the path of the file."""
        return os.path.join(self._root, self._names[index])

    def read(self, index: int) -> Image.Image:
        """See `ImageSet.read`."""
        try:
            return Image.fromarray(read_image(self.name(index)))
        except ValueError as error:
            raise BrokenImage(str(error)) from error


class ShardImages(ImageSet):
    """Images in tar archives, each read where it lies.

    Args:
        index: Where that is.
        targets: Their classes.
        class_names: By number.
    """

    def __init__(self, index: ShardIndex, targets: np.ndarray, class_names: Sequence[str]) -> None:
        self._index, self._reader = index, ShardReader(index.paths)
        self.targets, self.class_names = targets, tuple(class_names)

    def name(self, index: int) -> str:
        """Return the name within the archive, and the archive's."""
        return f"{self._index.names[index]} in {self._index.paths[self._index.shards[index]]}"

    def read(self, index: int) -> Image.Image:
        """See `ImageSet.read`."""
        place = (int(values[index]) for values in (self._index.shards, self._index.offsets, self._index.sizes))
        try:
            data = io.BytesIO(self._reader.read(*place))
        except OSError as error:
            raise BrokenImage(f"cannot read {self.name(index)}: {error.strerror or error}") from error
        try:
            return Image.fromarray(decode_image(data, self.name(index)))
        except ValueError as error:
            raise BrokenImage(str(error)) from error


def open_image_set(path: str | os.PathLike[str], classes: str | os.PathLike[str] = "") -> ImageSet:
    """Find the images of a set; none is read yet.

    Args:
        path: One of

            - a folder with one folder per class, which may have folders in it;
            - a folder with the images directly in it, which have no classes (such as COCO's ``train2017``);
            - tar archives, not compressed: one, a glob, or a range such as ``train-{000..146}.tar``. Classes are their
              ``.cls`` members (see `index_shards`) or else the folders in them; folders that all images share are none.

            Hidden files are left out.
        classes: A text file that names the folders of the classes to use, one a line, in the order of their numbers;
            what follows a ``#`` is a comment. "" = all of them, sorted.

    Raises:
        ValueError: There is nothing like that, or no image in it; a class without images; images both inside and
            outside of folders; a list of classes that is empty, names one twice or one that is not there, or is given
            for images whose classes are numbers or that have none.
    """
    path, classes = os.fspath(path), os.fspath(classes)
    if not path:
        raise ValueError("expected a folder of images or a pattern of tar archives, got an empty name")
    listed = _read_class_list(classes) if classes else None
    if os.path.isdir(path):
        return _open_folder(path, listed, classes)
    return _open_shards(path, listed, classes)


def check_same_classes(train: ImageSet, val: ImageSet) -> None:
    """Check that the numbers of two sets mean the same classes.

    Raises:
        ValueError: They differ; the message says in what.
    """
    if train.class_names == val.class_names:
        return
    numbers = tuple(map(str, range(len(train.class_names))))
    if train.class_names == numbers and val.class_names and val.class_names == numbers[: len(val.class_names)]:
        return  # bare numbers, of which the held-out images need not have the last ones
    here, there = set(train.class_names), set(val.class_names)
    differences = [
        f"{len(names)} only {where} ({', '.join(sorted(names)[:5])}{', ...' if len(names) > 5 else ''})"
        for names, where in ((here - there, "for training"), (there - here, "held out"))
        if names
    ]
    raise ValueError(
        f"expected the classes of training and held-out images to be the same, got {len(train.class_names)} and "
        f"{len(val.class_names)}: {'; '.join(differences) or 'their order differs'}"
    )


def _read_class_list(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            lines = [re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the list of classes {path}: {error}") from error
    listed = [line for line in lines if line]
    if not listed:
        raise ValueError(f"the list of classes {path} is empty")
    if repeated := [name for i, name in enumerate(listed) if name in listed[:i]]:
        raise ValueError(f"the list of classes {path} names {repeated[0]} more than once")
    return listed


def _open_folder(root: str, listed: list[str] | None, classes: str) -> ImageSet:
    extensions = image_extensions()
    try:
        with os.scandir(root) as entries:
            visible = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
        folders = [name for name, is_folder in visible if is_folder]
        files = [name for name, is_folder in visible if not is_folder and _is_image(name, extensions)]
        if listed is None and files and folders:
            raise ValueError(
                f"expected one folder per class or images without folders in {root}, got both: {folders[0]}, {files[0]}"
            )
        if listed is None and not folders:
            if not files:
                archives = any(name.endswith(".tar") for name, _ in visible)
                hint = f"; its archives are named by a pattern: {os.path.join(root, '*.tar')}" if archives else ""
                raise ValueError(f"no images in the folder {root}{hint}")
            return FolderImages(root, files)
        class_names = folders if listed is None else listed
        if missing := sorted(set(class_names) - set(folders)):
            raise ValueError(f"{classes} lists the class {missing[0]}, for which there is no folder in {root}")
        found = [_find_images(root, name, extensions) for name in class_names]
    except OSError as error:
        raise ValueError(f"cannot read the folder {error.filename or root}: {error.strerror or error}") from error
    for name, images in zip(class_names, found, strict=True):
        if not images:
            raise ValueError(f"no images of class {name} in {os.path.join(root, name)}")
    targets = np.repeat(np.arange(len(found)), [len(images) for images in found])
    return FolderImages(root, (image for images in found for image in images), targets, class_names)


def _is_image(name: str, extensions: frozenset[str]) -> bool:
    return os.path.splitext(name)[1].lower() in extensions


def _find_images(root: str, folder: str, extensions: frozenset[str]) -> list[str]:
    """Images in a folder and in those beneath it, by their names from the root."""

    def refuse(error: OSError) -> None:
        raise error

    found: list[str] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(os.path.join(root, folder), followlinks=True, onerror=refuse):
        real = os.path.realpath(place)
        if real in seen:  # links may lead in circles
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = os.path.relpath(place, root)
        names = sorted(name for name in files if not name.startswith(".") and _is_image(name, extensions))
        found += [os.path.join(here, name) for name in names]
    return found


def _open_shards(pattern: str, listed: list[str] | None, classes: str) -> ImageSet:
    index = index_shards(find_shards(pattern))
    if not len(index.names):
        raise ValueError(f"no images in {pattern}")
    if index.classes is not None:
        if listed is not None:
            raise ValueError(f"a list of classes, {classes}, needs images in folders; those in {pattern} have numbers")
        return ShardImages(index, index.classes, [str(k) for k in range(int(index.classes.max()) + 1)])
    folders = _class_folders(index, pattern)
    if folders is None:
        if listed is not None:
            raise ValueError(f"a list of classes, {classes}, needs images in folders; in {pattern} there are none")
        return ShardImages(index, np.zeros(len(index.names), np.int64), ())
    class_names = sorted(set(folders)) if listed is None else listed
    if missing := sorted(set(class_names) - set(folders)):
        raise ValueError(f"{classes} lists the class {missing[0]}, for which there is no folder in {pattern}")
    numbers = {name: k for k, name in enumerate(class_names)}
    targets = np.array([numbers.get(folder, -1) for folder in folders], np.int64)
    kept = np.flatnonzero(targets >= 0)
    if len(kept) < len(targets):
        index = index.select(kept)
    return ShardImages(index, targets[kept], class_names)


def _class_folders(index: ShardIndex, pattern: str) -> list[str] | None:
    """The class of each image in archives: the first folder in which they differ."""
    names = [index.names[i] for i in range(len(index.names))]
    folders = {name.rpartition("/")[0] for name in names}
    if folders == {""}:
        return None
    if "" in folders:
        outside, inside = (next(n for n in names if ("/" in n) == there) for there in (False, True))
        raise ValueError(f"expected all images in {pattern} to lie in folders or none, got {inside} and {outside}")
    shared = os.path.commonpath(folders)
    if shared in folders:  # images lie right in it, so it is a class itself
        shared = shared.rpartition("/")[0]
    start = len(shared) + 1 if shared else 0
    return [name[start:].split("/", 1)[0] for name in names]
