"""Tile sizes for this GPU: ``python -m bench.tune`` measures and writes the table that launchers read.

For each headline entry of bench.ops, and for each kernel that it launches, one constant after the other is halved and
doubled, and kept where the result stays right and the time falls by more than 2 %. ``--check`` needs no GPU: it
compiles every entry of the table, and the defaults, for the architectures that we name.
"""

import argparse
import importlib
import json
import pkgutil
from collections.abc import Iterator
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


def neighbours(constants: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each numeric constant halved and doubled, one at a time."""
    for name, value in constants.items():
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        for other in (value // 2, value * 2):
            if other >= 1:
                yield {name: other}


def tune(entry: Entry) -> None:
    """Descend from the constants in force, kernel by kernel, and record what wins."""
    expected = entry.ours()
    with _tiles.recorded() as launches:
        entry.ours()
    best = measure(entry.ours).p50
    for launch in launches:
        chosen: dict[str, Any] = {}
        improved = True
        while improved:
            improved = False
            for change in neighbours(launch.constants | chosen):
                with _tiles.trial(launch, chosen | change):
                    try:
                        if not _same(entry.ours(), expected):
                            continue
                        time = measure(entry.ours, repeats=30).p50
                    except Exception:  # does not compile, or does not fit this GPU
                        continue
                if time < WORTH * best:
                    best, improved = time, True
                    chosen |= change
                    print(f"{launch.kernel} {launch.size_class}: {chosen} {best:.1f} us", flush=True)
        if chosen:
            _write(launch, chosen)


def _same(found: object, expected: object) -> bool:
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    return all(torch.allclose(a.float(), b.float(), rtol=2e-2, atol=2e-2) for a, b in pairs)


def _write(launch: _tiles.Launch, chosen: dict[str, Any]) -> None:
    table = json.loads(TABLE.read_text())
    table.setdefault(str(launch.arch), {}).setdefault(launch.kernel, {})[launch.size_class] = chosen
    temporary = TABLE.with_suffix(".tmp")
    temporary.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    temporary.replace(TABLE)


def check() -> int:
    """Compile all cases for all architectures; return how many spill or do not fit."""
    bad = 0
    for module in pkgutil.iter_modules(cast_kernels.kernels.__path__):
        if module.name.startswith("_"):
            continue
        kernels = importlib.import_module(f"cast_kernels.kernels.{module.name}")
        for arch, room in SHARED_MEMORY.items():
            for case in kernels.aot_cases(arch):
                report = compile_case(case, arch)
                wrong = report.stack > 0 or report.shared > room
                bad += wrong
                print(
                    f"sm_{arch} {case.name}: {report.registers} registers, {report.stack} B stack, "
                    f"{report.shared} B shared{'  <-- ' if wrong else ''}",
                    flush=True,
                )
    return bad


def main() -> None:
    """Tune, or with --check compile."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compile everything ahead of time; needs no GPU")
    if parser.parse_args().check:
        raise SystemExit(1 if check() else 0)
    if not torch.cuda.is_available():
        raise SystemExit("bench.tune measures on a GPU, and there is none; --check compiles without one")
    for make, sizes in HEADLINES:
        for entry in make(**sizes):
            if entry.op != "copy":
                tune(entry)


if __name__ == "__main__":
    main()
