"""Rows of results: a CSV that is complete after every row, and the same as JSON."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from cast._files import replace_file


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


class Table:
    """Rows in a CSV file, saved whole after each; rows that are there already are kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Mapping[str, object]] = [*read_rows(path)] if path.exists() else []

    def add(self, row: Mapping[str, object]) -> None:
        """Append a row and save."""
        self.rows.append(dict(row))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(self.path) as file:
            file.write(self._text().encode())

    def _text(self) -> str:
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()


def write_json(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Write rows as a JSON list of objects, whole or not at all; `read_rows` reads it."""
    with replace_file(path) as file:
        file.write((json.dumps(rows, indent=1) + "\n").encode())
