"""What `cast bench latency` does, step by step."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from cast.weights import find_device

from .compare import compare, differing_facts
from .latency import Budget, measure_grid, row_key
from .machine import command_line, machine
from .models import check_name
from .paths import Workshop
from .report import print_table, write_chart
from .setting import Grid, Setting, presets
from .table import Table, read_rows, write_json


class UsageError(Exception):
    """The command line cannot be followed."""


def latency(arguments: argparse.Namespace) -> int:
    """Measure, save, print, draw and compare.

    Returns:
        0; 1 if a path was refused because it computes something else than its reference.

    Raises:
        UsageError: The arguments cannot be followed.
    """
    device, grid, earlier = _prepare(arguments)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    baseline = arguments.baseline or next((name for name in grid.models if name.startswith("vit_")), grid.models[0])
    workshop = Workshop(device, arguments.workers or os.cpu_count() or 1)
    facts = machine(command_line())
    table = _table(arguments.out / "latency.csv")
    done = {row_key(row) for row in table.rows if row.get("p50_ms")} if arguments.resume else ()

    rows: list[Mapping[str, object]] = []
    for row in measure_grid(
        grid, workshop, baseline=baseline, budget=Budget(arguments.seconds), done=done, progress=_say
    ):
        rows.append(row | facts)
        table.add(rows[-1])
        _say(None)
    if not rows:
        print(f"everything is in {table.path} already", file=sys.stderr)
        rows = [row for row in table.rows if row_key(row) in done]
    _publish(rows, table, facts, baseline)
    if earlier is not None:
        _print_changes(earlier, rows)
    return 1 if any(str(row.get("note", "")).startswith("refused") for row in rows) else 0


def _prepare(arguments: argparse.Namespace) -> tuple[torch.device, Grid, list[dict[str, str]] | None]:
    """Check everything that can be seen to be wrong before anything is measured."""
    try:
        device = find_device(arguments.device)
        named = presets(device.type == "cuda")
        fields = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Grid)}
        grid = dataclasses.replace(named[arguments.preset], **{k: v for k, v in fields.items() if v is not None})
        for name in (*grid.models, *([arguments.baseline] if arguments.baseline else [])):
            check_name(name)
        if "graph" in grid.launches and device.type != "cuda":
            raise ValueError("--launch graph needs a CUDA device")
        for name in ("threads", "workers"):
            if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
                raise ValueError(f"expected --{name} of at least 1, got {getattr(arguments, name)}")
        earlier = read_rows(arguments.against) if arguments.against else None
    except ValueError as error:
        raise UsageError(error) from error
    return device, grid, earlier


def _table(path: Path) -> Table:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return Table(path)
    except (OSError, ValueError) as error:
        raise UsageError(error) from error


def _say(setting: Setting | None) -> None:
    """Show on a terminal what is being prepared; elsewhere the rows tell enough."""
    if sys.stderr.isatty():
        text = "" if setting is None else " ".join(str(value) for value in setting.row().values())
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _publish(rows: Sequence[Mapping[str, object]], table: Table, facts: Mapping[str, str], baseline: str) -> None:
    place = facts["gpu"] if facts["gpu"] != "none" else f"{facts['cpu']}, {facts['threads']} threads"
    title = f"{place}, torch {facts['torch']}, commit {facts['commit']}; ratio to {baseline}"
    print_table(rows, title)
    write_json(rows, table.path.with_suffix(".json"))
    files = [table.path, table.path.with_suffix(".json")]
    try:
        write_chart(rows, table.path.with_suffix(".png"), title)
        files.append(table.path.with_suffix(".png"))
    except ImportError:
        print("no chart: it needs matplotlib (pip install 'cast-kernels[bench]')", file=sys.stderr)
    except ValueError as error:
        print(f"no chart: {error}", file=sys.stderr)
    print(*files, sep="\n")


def _print_changes(earlier: Sequence[Mapping[str, object]], rows: Sequence[Mapping[str, object]]) -> None:
    for name, (before, after) in differing_facts(earlier[-1], rows[-1]).items() if earlier and rows else ():
        print(f"another {name} than in the earlier run: {after}, then {before}")
    changes = compare(earlier, rows)
    if not changes:
        print("the earlier run has none of these settings")
        return
    moved = [change for change in changes if change.moved]
    for change in moved:
        print(
            f"{' '.join(change.setting)}: {change.before:.4g} -> {change.after:.4g} ms, {100 * (change.ratio - 1):+.0f} %"
            f" (noise {100 * change.noise:.0f} %)"
        )
    print(f"{len(moved)} of {len(changes)} settings moved beyond the noise")
