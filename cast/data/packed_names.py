"""Many names in two objects instead of a million."""

import os
from collections.abc import Iterable

import numpy as np


class PackedNames:
    """File names, one after another in one block of bytes.

    A list of a million strings is a million objects: a worker that is spawned gets them pickled one by one, and in a
    worker that is forked each name that is only looked at has its reference count written, so that the memory which
    the processes share is copied page by page until every worker has all of it. Two blocks are sent in one piece and
    stay shared.

    Args:
        names: Any file names, also such as are not valid in the encoding of the file system.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"expected an index in [0, {len(self)}), got {index}")
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]])
