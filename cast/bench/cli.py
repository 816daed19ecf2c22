"""The command line of `cast bench`. Nothing heavy is imported before there is something to measure."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

PRESETS = ("default", "peers", "batches", "sizes", "superpixels", "granularity", "train")


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
    latency.set_defaults(run=_command("latency"))

    paper = kinds.add_parser(
        "paper",
        help="the paper's efficiency tables, here",
        description="The paper's efficiency tables on this machine: GFLOPs (Tables 1, 4, 5c), time per level (Table "
        "7), CAST-B beside ViT-B with superpixels apart (A.4), peak memory. Writes paper.csv to DIR.",
    )
    paper.add_argument("--batch", type=int, metavar="B", help="default: the paper's, 256 and 64; on a CPU 8 and 4")
    _add_place(paper)
    paper.set_defaults(run=_command("paper"))

    profile = kinds.add_parser(
        "profile",
        help="where each millisecond goes",
        description="Where each millisecond of a forward pass goes: stem, superpixels, blocks, sampling, assignment, "
        "kernels, launches, waits. Writes trace.json to DIR, for https://ui.perfetto.dev.",
    )
    profile.add_argument("--model", default="cast_small", help="(default: cast_small)")
    profile.add_argument("--batch", type=int, default=8, metavar="B", help="images at once (default: 8)")
    profile.add_argument("--size", type=int, default=224, metavar="S", help="height and width (default: 224)")
    profile.add_argument("--runs", type=int, default=3, metavar="N", help="passes to average over (default: 3)")
    profile.add_argument(
        "--superpixels", choices=("made", "given"), default="made", help="by the model, or before (default: made)"
    )
    _add_place(profile)
    profile.set_defaults(run=_command("profile"))

    throughput = kinds.add_parser(
        "throughput",
        help="from JPEG files to logits",
        description="Images per second from JPEG files to logits, with superpixels made by the data loader's workers "
        "and made on the device. Under torchrun, of all processes together. Writes throughput.csv to DIR.",
    )
    throughput.add_argument("photos", nargs="*", metavar="PHOTO", help="files or folders (default: made in memory)")
    throughput.add_argument("--model", default="cast_small", help="(default: cast_small)")
    throughput.add_argument("--batch", type=int, default=64, metavar="B", help="images at once (default: 64)")
    throughput.add_argument("--batches", type=int, default=20, metavar="N", help="that count (default: 20)")
    throughput.add_argument("--loaders", type=int, default=2, metavar="N", help="loader processes (default: 2)")
    _add_place(throughput)
    throughput.set_defaults(run=_command("throughput"))


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
    group.add_argument(
        "--quality",
        nargs="+",
        dest="qualities",
        help="best, fast: of superpixels that are made (default: as the model's settings say)",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how")
    group.add_argument(
        "--baseline", metavar="NAME", help="the model that ratios refer to (default: the ViT of the same size)"
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 .. (default: auto)")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads of PyTorch (default: its own choice)")
    group.add_argument("--workers", type=int, metavar="N", help="threads of --superpixels workers (default: all cores)")
    group.add_argument("--seconds", type=float, default=2.0, help="to run each call for, on average (default: 2)")
    group.add_argument("--out", type=Path, default=Path("cast_bench"), metavar="DIR", help="(default: ./cast_bench)")
    group.add_argument("--resume", action="store_true", help="leave out what DIR/latency.csv has already")
    group.add_argument("--against", type=Path, metavar="FILE", help="an earlier latency.csv or .json to compare with")


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 .. (default: auto)")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16", "fp16"), help="(default: fp32)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of PyTorch (default: its own choice)")
    parser.add_argument("--out", type=Path, default=Path("cast_bench"), metavar="DIR", help="(default: ./cast_bench)")


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        from . import command

        try:
            return getattr(command, name)(arguments)
        except command.UsageError as error:
            print(f"cast bench {name}: error: {error}", file=sys.stderr)
            return 2

    return run
