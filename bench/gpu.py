"""Everything that needs a GPU, in one command: ``python -m bench.gpu``. Most important first, saved as it comes.

1. `cast-kernels doctor`; 2. the tests marked ``gpu``; 3. `cast bench latency`, largest batch first, in at most half of
the time left; 4. the headline rows of bench.ops; 5. compute-sanitizer over the kernels, where it is installed; 6. how
cost grows. ``--seconds`` bounds the whole; what it cuts off is named.
"""

import argparse
import shutil
import subprocess
import sys
import time

import torch

from bench.ops import HEADLINES, SWEEP, run
from bench.record import RESULTS, ROOT, Table, machine


def main() -> int:
    """Run all steps; return 1 if a check failed (figures of a wrong op are not printed)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=540, help="time for everything (default: 540)")
    parser.add_argument("--skip-checks", action="store_true", help="measure only")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench.gpu needs a CUDA device, and there is none")
    deadline = time.monotonic() + arguments.seconds

    def left() -> float:
        return deadline - time.monotonic()

    if not arguments.skip_checks:
        checks = {
            "doctor": [sys.executable, "-m", "cast_kernels", "doctor"],
            "tests": [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"],
        }
        for name, command in checks.items():
            print(f"== {name}", flush=True)
            if subprocess.run(command, cwd=ROOT, check=False).returncode:
                print(f"{name} failed: nothing is measured")
                return 1
    print("== cast bench latency", flush=True)
    wrong = False
    command = [sys.executable, "-m", "cast", "bench", "latency", "--device", "cuda", "--seconds", "1"]
    command += ["--out", str(RESULTS / f"latency_sm{machine()['sm']}")]
    try:
        wrong = subprocess.run(command, cwd=ROOT, check=False, timeout=max(30, left() / 2)).returncode != 0
    except subprocess.TimeoutExpired:
        print("cast bench latency ran out of time; batches that it finished are in its latency.csv")
    table = Table(RESULTS / f"ops_sm{machine()['sm']}.csv")
    print("== headlines", flush=True)
    for group in HEADLINES:
        if left() < 20:
            print(f"out of time before {group}")
            return 1
        run([group], table)
    if not arguments.skip_checks and shutil.which("compute-sanitizer"):
        for checker in ("memcheck", "racecheck"):
            print(f"== compute-sanitizer {checker}", flush=True)
            command = ["compute-sanitizer", "--tool", checker, "--error-exitcode", "9", sys.executable, "-m", "pytest"]
            command += ["-q", "-x", "-m", "sanitize", "tests"]
            try:
                if subprocess.run(command, cwd=ROOT, check=False, timeout=max(30, left() / 2)).returncode:
                    print(f"{checker} found errors")
                    return 1
            except subprocess.TimeoutExpired:
                print(f"{checker} ran out of time")
    print("== sweep", flush=True)
    for group in SWEEP:
        if left() < 20:
            print(f"out of time before {group}")
            break
        run([group], table)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
