"""A ViT-S/16 of timm with and without graph pools: FLOPs, and time as a ratio, interleaved in one process.

    python -m bench.patched_vit [--batch 8] [--rounds 11] [--dtype float32] [--compile]

The same weights and image for all; eval, no gradients. A round times every variant once, in an order that rotates, so
that all see the machine in the same state. Ratios are medians over rounds of (variant / unpatched) within a round.
Without a GPU there is one thread, and what counts is its processor time, which other programs on the machine do not
add to. ToMe, the usual way to merge tokens, takes part where its package `tome` runs with the installed timm, with the
reduction per block that leaves as many tokens at the end. Rows go to bench/results/patched_vit_*.csv.
"""

import argparse
import copy
import importlib
import platform
import statistics
import sys
import time
from datetime import UTC, datetime

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.record import RESULTS, Table, machine
from cast import patch_timm
from cast_kernels import register_flop_formulas

MODEL = "vit_small_patch16_224"
CLUSTERS = {3: 64, 6: 32, 9: 16}
TOME_PER_BLOCK = 15  # 196 - 12 x 15 = 16


def variants(vit: nn.Module, image: Tensor) -> dict[str, nn.Module | None]:
    """The models by name, unpatched first; None for a peer that does not run here."""
    found: dict[str, nn.Module | None] = {"unpatched": vit}
    found["graph_pool"] = patch_timm(copy.deepcopy(vit), CLUSTERS).eval()
    found["graph_pool, mlp_ratio 1"] = patch_timm(copy.deepcopy(vit), CLUSTERS, mlp_ratio=1.0).eval()
    try:
        tome = importlib.import_module("tome")
        merged = copy.deepcopy(vit)
        tome.patch.timm(merged)
        merged.r = TOME_PER_BLOCK
        merged(image[:1])
        found["tome"] = merged
    except Exception:  # absent, or made for another timm, when it raises anything
        found["tome"] = None
    return found


def gigaflops(model: nn.Module, image: Tensor) -> float:
    """Billions of floating point operations for one image, 2 per multiply-add."""
    with FlopCounterMode(display=False) as counter:
        model(image[:1])
    return counter.get_total_flops() / 1e9


def _seconds(model: nn.Module, image: Tensor) -> float:
    if image.device.type == "cpu":
        start = time.process_time()
        model(image)
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    model(image)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _machine(device: torch.device) -> dict[str, object]:
    if device.type == "cuda":
        return machine()
    return {
        "gpu": f"none: processor time of one thread on {platform.machine()}",
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
    }


@torch.no_grad()
def main() -> None:
    """Count, time, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile every variant")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    register_flop_formulas()
    vit = timm.create_model(MODEL).eval().to(device, getattr(torch, arguments.dtype))
    image = torch.randn(arguments.batch, 3, 224, 224, device=device, dtype=getattr(torch, arguments.dtype))
    models = variants(vit, image)
    for name in [name for name, model in models.items() if model is None]:
        print(f"{name}: does not run here, not compared")
        del models[name]
    flops = {name: gigaflops(model, image) for name, model in models.items()}
    if arguments.compile:
        models = {name: torch.compile(model) for name, model in models.items()}
    for model in models.values():
        for _ in range(2):
            model(image)
    times: dict[str, list[float]] = {name: [] for name in models}
    names = list(models)
    for turn in range(arguments.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(_seconds(models[name], image))
    table = Table(RESULTS / f"patched_vit_{device.type}.csv")
    for name in models:
        ratios = [ours / plain for ours, plain in zip(times[name], times["unpatched"], strict=True)]
        row = {
            "model": MODEL,
            "variant": name,
            "clusters": str(CLUSTERS) if name.startswith("graph_pool") else "",
            "batch": arguments.batch,
            "dtype": arguments.dtype,
            "compiled": arguments.compile,
            "gflop_per_image": round(flops[name], 3),
            "flop_ratio": round(flops[name] / flops["unpatched"], 3),
            "median_ms": round(1000 * statistics.median(times[name]), 2),
            "time_ratio": round(statistics.median(ratios), 3),
        }
        print(
            f"{name}: {row['gflop_per_image']:.2f} GFLOP an image ({row['flop_ratio']:.2f}), "
            f"{row['median_ms']:.1f} ms a batch of {arguments.batch} ({row['time_ratio']:.2f}; "
            f"rounds {min(ratios):.2f} to {max(ratios):.2f})"
        )
        table.add(row | _machine(device))


if __name__ == "__main__":
    main()
