"""Where results of the repository's benchmarks lie, and what they are read with: one home with `cast bench`."""

import sys
from pathlib import Path

from cast.bench import machine as _machine
from cast.bench.table import Table

__all__ = ["RESULTS", "ROOT", "Table", "machine"]
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


def machine() -> dict[str, str]:
    """What a figure must be read with: processor, GPU, driver, versions, commit and command."""
    return _machine.machine(["python", "-m", f"bench.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
