"""What the commands of `cast bench` do, step by step."""

import argparse
import dataclasses
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from cast.data import find_images
from cast.models import Cast
from cast.weights import find_device

from .compare import compare, same_run
from .gate import Refused
from .inputs import photos
from .latency import Budget, measure_grid, row_key
from .machine import machine
from .models import Missing, build, check_name
from .paper import appendix_rows, gflops_rows, level_rows, memory_rows
from .paths import Workshop
from .profile import profile_forward
from .report import print_table, write_chart
from .setting import DTYPES, Grid, Setting, presets
from .table import Table, read_timings, write_json
from .throughput import Load, measure_throughput


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
    if device.type == "cuda":
        torch.cuda.set_device(device)  # the one that the rows will name
    workers = arguments.workers or os.cpu_count() or 1
    facts = machine(["cast", *arguments.argv]) | {"workers": str(workers)}
    table = _table(arguments.out / "latency.csv")
    rows: dict[tuple[str, ...], Mapping[str, object]] = {}
    if arguments.resume:
        rows = {row_key(row): row for row in table.rows if row.get("p50_ms") and same_run(row, facts)}
    resumed = frozenset(rows)
    for group in measure_grid(
        grid,
        Workshop(device, workers),
        baseline=arguments.baseline,
        budget=Budget(arguments.seconds),
        done=resumed,
        progress=_say,
    ):
        found = {row_key(row): row | facts for row in group}
        rows |= found
        mine = found.keys() if arguments.resume else ()
        table.add(*found.values(), instead=lambda row, mine=mine: row_key(row) in mine and same_run(row, facts))
        _say(None)
    wanted = [row_key(setting.row()) for settings in grid.groups() for setting in settings]
    if resumed.issuperset(wanted):
        print(f"everything is in {table.path} already", file=sys.stderr)
    results = [rows[key] for key in dict.fromkeys(wanted)]
    _publish(results, table, facts)
    if earlier is not None:
        _print_changes(earlier, results)
    return 1 if any(str(row.get("note", "")).startswith(("refused", "failed")) for row in results) else 0


def paper(arguments: argparse.Namespace) -> int:
    """Repeat the paper's efficiency tables; returns 0."""
    device = _place(arguments)
    cuda, dtype = device.type == "cuda", DTYPES[arguments.dtype]
    table = _table(arguments.out / "paper.csv")
    facts = machine(["cast", *arguments.argv])
    rows = itertools.chain(
        gflops_rows(),
        level_rows(device, arguments.batch or (256 if cuda else 8), dtype),
        appendix_rows(device, arguments.batch or (64 if cuda else 4), dtype, os.cpu_count() or 1),
        memory_rows(device, arguments.batch or (64 if cuda else 4), dtype),
    )
    for row in _until_refused(rows):
        figures = [f"{head} {row[head]}" for head in ("paper", "here") if row.get(head, "") != ""]
        print("  ".join(str(x) for x in (row["table"], row["item"], *figures, row.get("unit"), row.get("note")) if x))
        table.add(row | facts)
    print(table.path)
    return 0


def profile(arguments: argparse.Namespace) -> int:
    """Print the time line of a forward pass and write its trace; returns 0."""
    device = _place(arguments)
    try:
        model = build(arguments.model, arguments.size)
        if not isinstance(model, Cast):
            raise ValueError(f"expected one of our classification models, got {arguments.model!r}")
    except (ValueError, Missing) as error:
        raise UsageError(error) from error
    for name in ("batch", "runs"):
        _check_positive(name, getattr(arguments, name))
    place = Setting(arguments.model, 2, arguments.size, arguments.dtype, superpixels=arguments.superpixels)
    try:
        Workshop(device, 1).path(place)
    except Refused as reason:
        raise UsageError(f"refused, so nothing is measured: {reason}") from reason
    trace = _folder(arguments.out) / "trace.json"
    images = photos(arguments.batch, arguments.size)
    labels = model.superpixels(images).to(device) if arguments.superpixels == "given" else None
    model, images = model.to(device, DTYPES[arguments.dtype]), images.to(device)
    found = profile_forward(model, lambda: model(images, labels), runs=arguments.runs, trace=trace)
    whole = found.parts[-1]
    calls = "kernels" if device.type == "cuda" else "operators"
    print(f"{'part':<24}{'host ms':>10}{'device ms':>11}{'share':>8}{calls:>11}")
    for part in found.parts:
        time, total = (part.device_ms, whole.device_ms) if whole.device_ms else (part.host_ms, whole.host_ms)
        print(f"{part.name:<24}{part.host_ms:10.3f}{part.device_ms:11.3f}{time / total:8.1%}{part.calls:11.0f}")
    print(f"launches {found.launches:.0f}, waits of the host {found.waits:.0f}, per run of batch {arguments.batch}")
    print(trace)
    return 0


def throughput(arguments: argparse.Namespace) -> int:
    """Measure images per second from files to logits; returns 0."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    if arguments.device == "cuda":
        arguments.device = f"cuda:{rank}"
    device = _place(arguments)
    if device.type == "cuda":
        device = torch.device("cuda", rank if device.index is None else device.index)
        torch.cuda.set_device(device)
    for name in ("batch", "batches"):
        _check_positive(name, getattr(arguments, name))
    try:
        files = [file for pattern in arguments.photos for file in find_images(pattern)]
        load = Load(arguments.model, arguments.batch, arguments.loaders, arguments.batches, files=files)
        if not isinstance(build(load.model), Cast):
            raise ValueError(f"expected one of our classification models, got {load.model!r}")
    except (ValueError, Missing) as error:
        raise UsageError(error) from error
    table = _table(arguments.out / "throughput.csv") if rank == 0 else None
    for row in _until_refused(measure_throughput(load, device, DTYPES[arguments.dtype])):
        print("  ".join(f"{name} {value}" for name, value in row.items()))
        table.add(row | machine(["cast", *arguments.argv]))
    return 0


def _until_refused(rows: Iterable[Mapping[str, object]]) -> Iterator[Mapping[str, object]]:
    """Pass rows on; a refused path ends the command."""
    try:
        yield from rows
    except Refused as reason:
        raise UsageError(f"refused, so nothing more is measured: {reason}") from reason


def _place(arguments: argparse.Namespace) -> torch.device:
    """Set the number of threads and return the device."""
    if arguments.threads is not None:
        _check_positive("threads", arguments.threads)
        torch.set_num_threads(arguments.threads)
    try:
        return find_device(arguments.device)
    except ValueError as error:
        raise UsageError(error) from error


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise UsageError(f"expected --{name} of at least 1, got {value}")


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot create the folder {path}: {error.strerror}") from error
    return path


def _prepare(arguments: argparse.Namespace) -> tuple[torch.device, Grid, list[dict[str, str]] | None]:
    """Check everything that can be seen to be wrong before anything is measured."""
    try:
        device = find_device(arguments.device)
        named = presets(device.type == "cuda")
        fields = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Grid)}
        grid = dataclasses.replace(named[arguments.preset], **{k: v for k, v in fields.items() if v is not None})
        for name in grid.models:
            check_name(name)
        if arguments.baseline not in (None, *grid.models):
            raise ValueError(f"expected --baseline among {', '.join(grid.models)}, got {arguments.baseline!r}")
        if "graph" in grid.launches and device.type != "cuda":
            raise ValueError("--launch graph needs a CUDA device")
        for name in ("threads", "workers"):
            if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
                raise ValueError(f"expected --{name} of at least 1, got {getattr(arguments, name)}")
        earlier = read_timings(arguments.against) if arguments.against else None
    except ValueError as error:
        raise UsageError(error) from error
    return device, grid, earlier


def _table(path: Path) -> Table:
    try:
        return Table(path)
    except ValueError as error:
        raise UsageError(error) from error


def _say(setting: Setting | None) -> None:
    """Show on a terminal what is being prepared; elsewhere the rows tell enough."""
    if sys.stderr.isatty():
        text = "" if setting is None else " ".join(str(value) for value in setting.row().values())
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _publish(rows: Sequence[Mapping[str, object]], table: Table, facts: Mapping[str, str]) -> None:
    place = facts["gpu"] if facts["gpu"] != "none" else f"{facts['cpu']}, {facts['threads']} threads"
    title = f"{place}, torch {facts['torch']}, commit {facts['commit']}"
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
    changes = compare(earlier, rows)
    differing = {(name, *pair): None for change in changes for name, pair in change.differing.items()}
    for name, before, after in differing:
        print(f"another {name} than in the earlier run: {after or 'not stated'}, then {before or 'not stated'}")
    if not changes:
        print("the earlier run has none of these settings")
        return
    moved = [change for change in changes if change.moved]
    for change in moved:
        moves = f"{change.before:.4g} -> {change.after:.4g} ms, {100 * (change.ratio - 1):+.0f} %"
        print(f"{' '.join(change.setting)}: {moves} (noise {100 * change.noise:.0f} %)")
    print(f"{len(moved)} of {len(changes)} settings moved beyond the noise")
