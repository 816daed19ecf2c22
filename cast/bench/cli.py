"""The command line of `cast bench`. Nothing heavy is imported before there is something to measure."""

import argparse
import sys
from pathlib import Path

PRESETS = ("default", "peers", "batches", "sizes", "granularity", "train")


def add_bench(commands: argparse._SubParsersAction) -> None:
    """Add `cast bench` to the subcommands of `cast`."""
    bench = commands.add_parser(
        "bench",
        help="measure what models cost on this machine",
        description="Measure what models cost on this machine, superpixels included, beside their peers.",
    )
    kinds = bench.add_subparsers(dest="kind", required=True, metavar="KIND")
    latency = kinds.add_parser(
        "latency",
        help="latency of CAST beside ViTs",
        description="Latency of CAST beside ViTs: the same images, runs in turns, medians with the 20th and 80th "
        "percentile. Every path is checked against a float64 reference first; a wrong one gets no figure. Writes "
        "latency.csv (a row as soon as it is measured), latency.json and latency.png to DIR.",
    )
    _add_grid(latency)
    _add_run(latency)
    latency.set_defaults(run=_latency)


def _add_grid(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to measure (each overrides the preset)")
    group.add_argument("--preset", choices=PRESETS, default="default", help="a named set (default: default)")
    group.add_argument("--models", nargs="+", metavar="NAME", help="cast_small, vit_small, swin_tiny, tome_small ..")
    group.add_argument("--batch", nargs="+", type=int, metavar="B", dest="batches", help="images at once")
    group.add_argument("--size", nargs="+", type=int, metavar="S", dest="sizes", help="height and width in pixels")
    group.add_argument("--dtype", nargs="+", dest="dtypes", help="fp32, bf16, fp16")
    group.add_argument("--launch", nargs="+", dest="launches", help="eager, compile, graph")
    group.add_argument("--direction", nargs="+", dest="directions", help="forward, forward+backward")
    group.add_argument(
        "--superpixels", nargs="+", help="made (with the model, on its device), workers (on the CPU before it), given"
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how")
    group.add_argument("--baseline", metavar="NAME", help="the model that ratios refer to (default: the first ViT)")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 .. (default: auto)")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads of PyTorch (default: its own choice)")
    group.add_argument("--workers", type=int, metavar="N", help="threads of --superpixels workers (default: all cores)")
    group.add_argument("--seconds", type=float, default=2.0, help="to run each call for, on average (default: 2)")
    group.add_argument("--out", type=Path, default=Path("cast_bench"), metavar="DIR", help="(default: ./cast_bench)")
    group.add_argument("--resume", action="store_true", help="leave out what DIR/latency.csv has already")
    group.add_argument("--against", type=Path, metavar="FILE", help="an earlier latency.csv or .json to compare with")


def _latency(arguments: argparse.Namespace) -> int:
    from .command import UsageError, latency

    try:
        return latency(arguments)
    except UsageError as error:
        print(f"cast bench latency: error: {error}", file=sys.stderr)
        return 2
