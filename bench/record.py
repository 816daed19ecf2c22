"""Rows of results: a CSV per machine, saved after every row, written whole and renamed."""

import csv
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


def machine() -> dict[str, str]:
    """What a figure must be read with: GPU, driver, versions, commit and command."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "sm": f"{properties.major}{properties.minor}",
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]
        or "unknown",
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "triton": _triton_version(),
        "python": sys.version.split()[0],
        "commit": os.environ.get("CAST_KERNELS_COMMIT")
        or _output("git", "rev-parse", "--short=12", "HEAD")
        or "unknown",
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "command": " ".join(["python", "-m", f"bench.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
    }


def _triton_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("triton")
    except PackageNotFoundError:
        return "none"


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


class Table:
    """A CSV that is complete after every row. Rows of earlier runs in the same file are kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, object]] = []
        if path.exists():
            with path.open(newline="") as file:
                self.rows = list(csv.DictReader(file))

    def add(self, *rows: dict[str, object]) -> None:
        """Append rows and save."""
        self.rows.extend(rows)
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        temporary.replace(self.path)
