"""Files that are written whole or not at all (a temporary neighbour first, then one rename), and their hashes."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a temporary binary file beside ``path`` and rename it to ``path`` when the block ends without an error.

    Whatever was at ``path`` stays untouched until then, and for good when the block raises (a Ctrl-C included).

    Args:
        path: The file to create or replace. Its folder must exist.

    Yields:
        The open temporary file, for writing and reading.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb+") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def hash_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replace_files(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder whose files take their places in ``folder`` when the block ends without an error: all or none.

    Files of other names in ``folder`` stay as they are. When the block raises (a Ctrl-C included), all do.

    Args:
        folder: Where the files belong; it and its parents are made if needed.

    Yields:
        The temporary folder, to be filled with files.

    Raises:
        ValueError: ``folder``, or a name in it that is to be replaced, is there and is something else.
    """
    folder = Path(os.path.realpath(folder))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected a folder, but {folder} is a file")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = not folder.exists()
    temporary = (folder.parent if fresh else folder) / f".{secrets.token_hex(8)}.tmp"
    done: list[tuple[Path, Path]] = []
    try:
        temporary.mkdir()
        yield temporary
        if fresh:
            temporary.rename(folder)
            return
        new, old = sorted(temporary.iterdir()), temporary / "replaced"
        if wrong := [file.name for file in new if (folder / file.name).is_dir()]:
            raise ValueError(f"expected to write files, but in {folder} there are folders {', '.join(wrong)}")
        old.mkdir()
        moves = [(folder / file.name, old / file.name) for file in new if (folder / file.name).exists()]
        for source, target in [*moves, *((file, folder / file.name) for file in new)]:
            done.append((source, target))
            source.rename(target)
    except BaseException:
        for source, target in reversed(done):
            if target.exists() and not source.exists():
                target.rename(source)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
