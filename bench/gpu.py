"""Everything that needs a GPU, in one command: ``python -m bench.gpu``. Most important first, saved as it comes.

1. `cast-kernels doctor`; 2. the tests marked ``gpu``; 3. `cast bench latency`, largest batch first, in at most half of
the time left; 4. the headline rows of bench.ops; 5. compute-sanitizer over the kernels, where it is installed; 6. how
cost grows. ``--seconds`` bounds the whole; what it cuts off is named. Time on a GPU is dear: where a check fails
the rest goes on, except for ops, which are not measured if 1 or 2 fails; `cast bench` refuses wrong outputs itself.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

import torch

from bench.ops import HEADLINES, SWEEP, run
from bench.record import RESULTS, ROOT, Table, machine


def main() -> int:
    """Run all steps; return 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=540, help="time for everything (default: 540)")
    parser.add_argument("--skip-checks", action="store_true", help="measure only")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench.gpu needs a CUDA device, and there is none")
    deadline, failed = time.monotonic() + arguments.seconds, []

    def left() -> float:
        return deadline - time.monotonic()

    def do(name: str, *command: str) -> None:
        """Run a command in at most half of the time left."""
        print(f"== {name}", flush=True)
        try:
            if subprocess.run(command, cwd=ROOT, check=False, timeout=max(30, left() / 2)).returncode:
                failed.append(name)
        except subprocess.TimeoutExpired:
            print(f"{name} ran out of time; what it had finished is kept")

    if not arguments.skip_checks:
        do("doctor", sys.executable, "-m", "cast_kernels", "doctor")
        do("tests", sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests")
    right, sm = not failed, machine()["sm"]
    table = Table(RESULTS / f"ops_sm{sm}.csv")
    latency = [sys.executable, "-m", "cast", "bench", "latency", "--device", "cuda", "--seconds", "1"]
    do("cast bench latency", *latency, "--out", str(RESULTS / f"latency_sm{sm}"))
    measure(HEADLINES if right else (), table, left)
    if not arguments.skip_checks and shutil.which("compute-sanitizer"):
        for checker in ("memcheck", "racecheck"):
            tool = ["compute-sanitizer", "--tool", checker, "--error-exitcode", "9"]
            do(checker, *tool, sys.executable, "-m", "pytest", "-q", "-x", "-m", "sanitize", "tests")
    measure(SWEEP if right else (), table, left)
    if failed:
        print(f"failed: {', '.join(failed)}" + ("" if right else "; ops were not measured"))
    return 1 if failed else 0


def measure(groups: Iterable[tuple], table: Table, left: Callable[[], float]) -> None:
    """Measure groups of ops while there is time."""
    for group in groups:
        if left() < 20:
            print(f"out of time before {group}")
            break
        print(f"== {group[0].__name__}", flush=True)
        run([group], table)


if __name__ == "__main__":
    sys.exit(main())
