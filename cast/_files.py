"""Files that are written whole or not at all (a temporary neighbour first, then one rename), and their hashes."""

import hashlib
import os
import secrets
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
