"""What ends a training run with a message instead of a traceback."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class TrainingError(RuntimeError):
    """A run cannot go on; the message says why, and what is saved of it."""


@contextmanager
def writing(path: str | os.PathLike[str], kept: str = "") -> Iterator[None]:
    """Turn what the system says of a file that cannot be written, such as a full disk, into a `TrainingError`.

    Args:
        path: The file that is written.
        kept: A sentence on what is safe, appended to the message.

    Raises:
        TrainingError: It names the path, the reason and the free space.
    """
    path = Path(path)
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"cannot write {path}: {error.strerror or error}{_free_space(path.parent)}. {kept}"
        ) from error


def _free_space(folder: Path) -> str:
    try:
        return f" ({shutil.disk_usage(folder).free / 1e6:,.0f} MB are free there)"
    except OSError:
        return ""
