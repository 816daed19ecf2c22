"""Rows of results: a CSV that is complete after every write, and the same as JSON."""

import csv
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from cast._files import replace_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV or JSON file, every value as text, empty ones left out.

    Raises:
        ValueError: The file cannot be read, or is not a table.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if path.suffix == ".json" else list(csv.DictReader(io.StringIO(text), strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"cannot read results from {path}: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) and None not in row for row in rows):
        raise ValueError(f"expected a table of rows in {path}")
    return [{key: str(value) for key, value in row.items() if value not in ("", None)} for row in rows]


def read_timings(path: Path) -> list[dict[str, str]]:
    """Read the rows of `cast bench latency` that have figures.

    Raises:
        ValueError: The file cannot be read, has none, or a time in it is not a positive number.
    """
    rows = [row for row in read_rows(path) if row.get("p50_ms")]
    if not rows:
        raise ValueError(f"expected rows with a column p50_ms in {path}")
    for row in rows:
        for name in ("p20_ms", "p50_ms", "p80_ms"):
            try:
                good = 0 < float(row.get(name, "")) < math.inf
            except ValueError:
                good = False
            if not good:
                raise ValueError(f"expected {name} to be a positive number in {path}, got {row.get(name)!r}")
    return rows


class Table:
    """Rows in a CSV file, saved whole with each write; rows that are there already are kept, also another process's.

    Raises:
        ValueError: What is at ``path`` is not a table, or its folder cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise ValueError(f"cannot write into the folder {path.parent}: {error.strerror}") from error
        _ = self.rows

    @property
    def rows(self) -> list[dict[str, str]]:
        """What the file holds now."""
        return read_rows(self.path) if self.path.exists() else []

    def add(
        self, *rows: Mapping[str, object], instead: Callable[[Mapping[str, str]], bool] = lambda row: False
    ) -> None:
        """Append rows and save.

        Args:
            *rows: What to append, all or none.
            instead: Says of a row that is there whether it gives way.
        """
        with _locked(self.path.parent):
            kept = [row for row in self.rows if not instead(row)]
            with replace_file(self.path) as file:
                file.write(_text([*kept, *rows]).encode())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder's tables; where the system has no such locks, only a rename protects."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _text(rows: Sequence[Mapping[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_json(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Write rows as a JSON list of objects, whole or not at all; `read_rows` reads it."""
    with replace_file(path) as file:
        file.write((json.dumps(rows, indent=1) + "\n").encode())
