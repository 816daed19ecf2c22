"""Tile sizes for this GPU: ``python -m bench.tune`` measures and writes the table that launchers read.

For each kernel that a headline entry of bench.ops launches: coordinate descent over all its constants (tile shapes,
warps, stages, registers), single steps and pairs of them, restarted from points around the best until its share of
``--seconds`` is spent. A change is kept where the result stays right and the time falls by more than 2 %, and is saved
at once, so a run that is cut short keeps what it found. ``--check`` needs no GPU: it compiles what the table says, and
the defaults, for the architectures that we name, and reports registers, stack and shared memory.
"""

import argparse
import importlib
import itertools
import json
import math
import os
import pkgutil
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import cast_kernels.kernels
from bench.harness import measure
from bench.ops import HEADLINES, Entry
from cast_kernels.kernels import _tiles
from cast_kernels.kernels._aot import SHARED_MEMORY, compile_case

TABLE = Path(cast_kernels.kernels.__file__).parent / "tiles.json"
WORTH = 0.98  # of the best time so far
PATIENCE = 50  # restarts in a row that lead to nothing new
FIXED = {"enable_fp_fusion"}  # it changes results
CHOICES = {  # of constants that are not powers of two, or not any
    "num_warps": (1, 2, 4, 8, 16),
    "num_stages": (1, 2, 3, 4, 5),
    "maxnreg": (64, 96, 128, 168, 208, 255),
    "per_processor": (1, 2, 3, 4, 6, 8),
}
FIRST = {  # worth a try before anything else: see NOTES.md
    "segment_mean_weigh": ({"COLUMNS": 32, "num_warps": 2}, {"COLUMNS": 32, "num_warps": 1}),
}

Point = dict[str, Any]


# 1. Search
def neighbours(point: Point) -> Iterator[Point]:
    """The point after one step of one constant: the next value either way, or the other of two."""
    for name, value in point.items():
        if name in FIXED:
            continue
        if isinstance(value, bool):
            yield point | {name: not value}
        elif isinstance(value, int):
            yield from (point | {name: other} for other in _beside(name, value))


def _beside(name: str, value: int) -> Iterator[int]:
    if name in CHOICES:
        yield from (max((v for v in CHOICES[name] if v < value), default=value),) if value > CHOICES[name][0] else ()
        yield from (min((v for v in CHOICES[name] if v > value), default=value),) if value < CHOICES[name][-1] else ()
    else:
        yield from (other for other in (value // 2, value * 2) if other >= 1)


def search(
    cost: Callable[[Point], float],
    start: Point,
    seconds: float,
    first: tuple[Point, ...] = (),
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[Point, float]]:
    """Yield ever better points and their costs, the start's first, until time is out or nothing is left to try.

    Args:
        cost: Microseconds of a point; infinite where it does not compile, does not fit or is wrong.
        start: The constants in force.
        seconds: Time for the whole search.
        first: Changes to the start that are tried before its neighbours.
        clock: What time is read from.
    """
    deadline, seen, rng = clock() + seconds, {}, random.Random(0)

    def at(point: Point) -> float:
        key = tuple(sorted(point.items()))
        if key not in seen:
            seen[key] = cost(point)
        return seen[key]

    best, least = start, at(start)
    yield best, least
    here, height = best, least
    patience = PATIENCE
    while patience and clock() < deadline:
        tried = len(seen)
        pairs = (far for near in neighbours(here) for far in neighbours(near))
        for point in itertools.chain((start | change for change in first), neighbours(here), pairs):
            if clock() >= deadline:
                return
            if at(point) < WORTH * height:
                here, height = point, at(point)
                break
        else:  # a local optimum: go on from somewhere near the best
            patience = patience - 1 if len(seen) == tried else PATIENCE
            here = best
            for _ in range(rng.randint(2, 4)):
                here = rng.choice(list(neighbours(here)) or [here])
            height = at(here)
        if height < WORTH * least:
            best, least = here, height
            yield best, least


# 2. Measuring on this GPU
def tune(entry: Entry, deadline: float) -> None:
    """Tune the kernels that an entry launches, one after the other, and record what wins."""
    expected = entry.ours()
    with _tiles.recorded() as asked:
        entry.ours()
    launches = list({(launch.kernel, launch.size_class): launch for launch in asked}.values())
    for done, launch in enumerate(launches):

        def cost(point: Point, launch: _tiles.Launch = launch) -> float:
            with _tiles.trial(launch, point):
                try:
                    return measure(entry.ours, repeats=30).p50 if same(entry.ours(), expected) else math.inf
                except Exception:  # does not compile, or does not fit this GPU
                    return math.inf

        share = (deadline - time.monotonic()) / (len(launches) - done)
        for point, found in search(cost, launch.constants, share, FIRST.get(launch.kernel, ())):
            chosen = {name: value for name, value in point.items() if value != launch.constants[name]}
            print(f"{launch.kernel} {launch.size_class}: {found:.1f} us {chosen or 'as it is'}", flush=True)
            if chosen:
                save(launch, chosen)


def same(found: object, expected: object) -> bool:
    """Equal indices, and values equal to what another order of summing may change."""
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple | list) else [(found, expected)]
    return all(
        torch.allclose(a.float(), b.float(), rtol=2e-2, atol=2e-2) if a.is_floating_point() else torch.equal(a, b)
        for a, b in pairs
    )


def save(launch: _tiles.Launch, chosen: Point, path: Path = TABLE) -> None:
    """Add to what the table says of this launch."""
    table = json.loads(path.read_text())
    entry = table.setdefault(str(launch.arch), {}).setdefault(launch.kernel, {})
    entry[launch.size_class] = entry.get(launch.size_class, {}) | chosen
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    temporary.replace(path)


# 3. Compiling without one
def check(archs: list[int], only: str = "") -> int:
    """Compile all cases whose name holds ``only`` for ``archs``; return how many spill or do not fit."""
    bad = 0
    with _tiles.recorded() as asked:
        for module in pkgutil.iter_modules(cast_kernels.kernels.__path__):
            if module.name.startswith("_"):
                continue
            kernels = importlib.import_module(f"cast_kernels.kernels.{module.name}")
            for arch in archs:
                for case in kernels.aot_cases(arch):
                    if only in case.name:
                        bad += _compiles_badly(case, arch)
    known = {(str(launch.arch), launch.kernel, launch.size_class) for launch in asked}
    for arch, kernel, size_class in tabled(TABLE):
        if int(arch) in archs and not only and (arch, kernel, size_class) not in known:
            print(f"sm_{arch} {kernel} {size_class}: tuned, but no case compiles it")
    return bad


def _compiles_badly(case: Any, arch: int) -> bool:
    report = compile_case(case, arch)
    wrong = report.spills > 0 or report.shared > SHARED_MEMORY[arch]
    print(
        f"sm_{arch} {case.name}: {report.registers} registers, {report.spills} B spilled, {report.shared} B shared"
        + ("  <-- spills or does not fit" if wrong else ""),
        flush=True,
    )
    return wrong


def tabled(path: Path) -> Iterator[tuple[str, str, str]]:
    """Architecture, kernel and size class of every entry of a table."""
    for arch, kernels in json.loads(path.read_text()).items():
        for kernel, classes in kernels.items():
            yield from ((arch, kernel, size_class) for size_class in classes)


def main() -> None:
    """Tune, or with --check compile."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compile everything ahead of time; needs no GPU")
    parser.add_argument("--only", default="", help="with --check, cases whose name holds this; else ops")
    parser.add_argument("--arch", type=int, nargs="+", choices=sorted(SHARED_MEMORY), help="with --check: not all")
    parser.add_argument("--seconds", type=float, default=1500, help="time for all of the tuning (default: 1500)")
    given = parser.parse_args()
    if given.check:
        if os.environ.get("TRITON_INTERPRET") == "1":
            raise SystemExit("bench.tune --check compiles, which TRITON_INTERPRET=1 rules out: unset it")
        raise SystemExit(1 if check(given.arch or list(SHARED_MEMORY), given.only) else 0)
    if not torch.cuda.is_available():
        raise SystemExit("bench.tune measures on a GPU, and there is none; --check compiles without one")
    end, groups = time.monotonic() + given.seconds, [group for group in HEADLINES if given.only in group[0].__name__]
    for done, (make, sizes) in enumerate(groups):
        share = (end - time.monotonic()) / (len(groups) - done)
        entries = [entry for entry in make(**sizes) if entry.op != "copy"]
        deadline = time.monotonic() + share
        for left, entry in zip(range(len(entries), 0, -1), entries, strict=True):
            tune(entry, time.monotonic() + (deadline - time.monotonic()) / left)


if __name__ == "__main__":
    main()
