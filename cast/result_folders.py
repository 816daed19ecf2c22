"""Which folder holds the results of which photo, and how results take the place of older ones."""

import json
import os
import secrets
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cast._files import hash_file

FORMAT = "cast-hierarchy-1"


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill, which becomes ``folder`` when the block ends without an error.

    Whatever was in ``folder`` stays untouched until then, and for good when the block raises (a Ctrl-C included). A
    symbolic link to a folder stays one: the folder that it names is replaced.

    Args:
        folder: What to create or replace; check it with ``check_replaceable`` first. Its parent must exist.

    Yields:
        The temporary folder, in ``workspace(folder)``.
    """
    folder = Path(os.path.realpath(folder))
    temporary = workspace(folder) / f".{secrets.token_hex(8)}.tmp"
    try:
        temporary.mkdir()
        yield temporary
        if not folder.exists():
            temporary.rename(folder)
        else:
            _exchange(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def workspace(folder: Path) -> Path:
    """The folder to write into while ``folder`` is made: its parent, or itself where it has to stay where it is.

    The current directory and mount points have to: a shell or a container would be left in a folder that is gone.
    """
    folder = Path(os.path.realpath(folder))
    return folder if _is_pinned(folder) else folder.parent


def _is_pinned(folder: Path) -> bool:
    return folder.is_dir() and (folder.samefile(os.curdir) or os.path.ismount(folder))


def _exchange(temporary: Path, folder: Path) -> None:
    """Put what is in ``temporary`` in the place of what is in ``folder``; that is removed only afterwards."""
    old = workspace(folder) / f".{secrets.token_hex(8)}.old"
    done = []
    try:
        if _is_pinned(folder):
            moves = [(entry, old / entry.name) for entry in folder.iterdir() if entry != temporary]
            moves += [(entry, folder / entry.name) for entry in temporary.iterdir()]
            old.mkdir()
        else:
            moves = [(folder, old), (temporary, folder)]
        for source, target in moves:
            done.append((source, target))
            source.rename(target)
    except BaseException:
        for source, target in reversed(done):
            if target.exists() and not source.exists():
                target.rename(source)
        if old.exists():
            old.rmdir()
        raise
    # The new results are in place: what cannot be removed of the old ones is no reason to call them failed.
    try:
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:  # stopped half-way: finish, then stop
        shutil.rmtree(old, ignore_errors=True)
        raise


def check_replaceable(folder: Path, photo: Path) -> None:
    """Raise ValueError unless ``folder`` is free, empty or holds nothing but earlier results of the same photo."""
    if not folder.exists():
        if folder.is_symlink():
            raise ValueError(f"{folder} is a symbolic link to nothing; choose another --out")
        return
    if folder.is_dir() and not any(folder.iterdir()):
        return
    about = read_about(folder)
    if about is None or not all(_is_ours(entry) for entry in folder.iterdir()):
        raise ValueError(f"{folder} exists and holds other files than earlier results; choose another --out")
    if about["photo"]["path"] != os.path.abspath(photo) and about["photo"]["sha256"] != hash_file(photo):
        raise ValueError(f"{folder} holds the results of another photo, {about['photo']['path']}; choose another --out")


def is_complete(folder: Path, photo: Path, settings: dict[str, Any]) -> bool:
    """Whether ``folder`` holds results of the photo's present content, with these settings."""
    about = read_about(folder)
    if about is None or about["settings"] != settings or about["photo"]["sha256"] != hash_file(photo):
        return False
    levels = [f"level{level}.png" for level in range(1, 1 + len(settings["config"]["num_clusters"]))]
    return all((folder / name).is_file() for name in ("superpixels.png", *levels, "panel.png", "hierarchy.npz"))


def _is_ours(entry: Path) -> bool:
    stem, _, extension = entry.name.partition(".")
    if extension == "png":
        return stem in ("superpixels", "panel") or (stem.startswith("level") and stem[5:].isdecimal())
    return entry.name in ("hierarchy.npz", "hierarchy.json")


def read_about(folder: Path) -> dict[str, Any] | None:
    """The JSON of earlier results, or None if this is no such folder."""
    try:
        about = json.loads((folder / "hierarchy.json").read_text(encoding="ascii"))
        known = about["format"] == FORMAT and {"path", "sha256"} <= about["photo"].keys() and "settings" in about
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return about if known else None


def result_names(photos: Sequence[Path]) -> list[str]:
    """A folder name for each photo: its stem, with extension and parent folders where that alone is not unique.

    Each names a folder within the folder of all results: the stems ``.`` and ``..`` (of ``...jpg``) are not used.

    Raises:
        ValueError: A photo is given twice.
    """
    parts = [Path(os.path.abspath(photo)).parts[1:] for photo in photos]
    if len(set(parts)) < len(parts):
        raise ValueError("the same photo was given twice")
    names = [photo.stem if photo.stem.strip(".") else photo.name.replace(".", "_") for photo in photos]
    parents = 0
    while clashing := {name for name, times in Counter(map(_folded, names)).items() if times > 1}:
        for index, path in enumerate(parts):
            if _folded(names[index]) in clashing:
                names[index] = "_".join([*path[:-1][max(0, len(path) - 1 - parents) :], path[-1].replace(".", "_")])
        parents += 1
        if parents > max(map(len, parts)):
            # only names such as a/b_c.jpg and a_b/c.jpg come this far: their order decides
            names = [f"{name}_{index}" for index, name in enumerate(names)]
    return names


def _folded(name: str) -> str:
    """Names that a case-insensitive or normalising file system takes for the same are equal when folded."""
    return unicodedata.normalize("NFC", os.fspath(name)).casefold()
