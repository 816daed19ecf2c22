"""`cast bench paper`: the paper's efficiency tables, repeated on this machine.

Source: Ke, Mo, Yu, ICLR 2024: Tables 1, 4, 5c and 7, and Appendix A.4. Its times are of other machines (A.4: one 32 GB
Titan V, and 24 data-loading workers on two Xeon E5-2630 v4), so compare ratios within a column, not across.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from cast.models import Cast

from .flops import count_flops
from .harness import measure
from .inputs import normalised, photos, worker_maker
from .models import Missing, build
from .paths import Workshop
from .profile import profile_forward
from .setting import DTYPES, UNSET, Setting

# GFLOPs as the paper counts them: multiply-adds.
GFLOPS = {
    "vit_small": 4.7,
    "swin_tiny": 4.5,
    "vit_base": 18.0,
    "cast_small:196/32/16/8/4": 3.0,
    "cast_small:196/64/32/16/8": 3.4,
    "cast_small:196/128/64/32/16": 4.3,
    "cast_small:324/64/32/16/8": 4.6,
    "cast_small:324/128/64/32/16": 5.4,
}
BLOCKS_MS = (86.43, 25.4, 12.9, 5.0)  # Table 7, encoder blocks of each level at batch 256
A4_MS = {"vit_base": 273.0, "cast_base": 217.0, "superpixels": 73.0}  # batch 64

Row = dict[str, object]


def gflops_rows() -> Iterator[Row]:
    """Yield Tables 1, 4 and 5c: multiply-adds of one image at 224 pixels.

    Ours count matrix products and convolutions, attention, assignment and the Gram matrix of farthest point sampling
    included, the last pool left out as it does not reach the logits. The number of superpixels is taken at its word:
    SEEDS itself gives 256 where 324 are asked for.
    """
    for name, paper in GFLOPS.items():
        row = {"table": "1, 4, 5c", "item": name, "unit": "GMAC per image", "paper": paper}
        try:
            model = build(name)
        except Missing as reason:
            yield row | {"note": f"missing: {reason}"}
            continue
        superpixels = ()
        if isinstance(model, Cast):
            count = model.config.superpixels.num_superpixels
            superpixels = (torch.arange(224 * 224).view(1, 224, 224) % count, count)
        yield row | {"here": round(count_flops(model, torch.zeros(1, 3, 224, 224), *superpixels) / 2e9, 3)}


def level_rows(device: torch.device, batch: int, dtype: torch.dtype) -> Iterator[Row]:
    """Yield Table 7: what encoder blocks and graph pooling of each level cost, its sampling and assignment apart."""
    _gate("cast_small", device, dtype)
    model = build("cast_small").to(device, dtype)
    images = photos(batch, 224)
    pixels = normalised(images).to(device, dtype)
    labels = model.superpixels(images).to(device)
    profile = profile_forward(model, lambda: model.forward_hierarchy(pixels, labels))
    time = {part.name: part.device_ms if device.type == "cuda" else part.host_ms for part in profile.parts}
    tokens = (model.config.superpixels.num_superpixels, *model.config.num_clusters)
    for level, count in enumerate(tokens[:-1], start=1):
        pool = f"pool {level}"
        apart = (time[f"{pool} / sampling"], time[f"{pool} / assignment"])
        parts = {
            "encoder blocks": (time[f"blocks {level}"], BLOCKS_MS[level - 1]),
            "graph pooling": (time[pool], ""),
            "- farthest point sampling": (apart[0], ""),
            "- assignment and pooled mean": (apart[1], ""),
            "- the rest": (time[pool] - sum(apart), ""),
        }
        for item, (here, paper) in parts.items():
            yield {
                "table": "7",
                "item": f"{count} tokens: {item}",
                "unit": f"ms per batch of {batch} (paper: 256)",
                "paper": paper,
                "here": round(here, 3),
            }


def appendix_rows(device: torch.device, batch: int, dtype: torch.dtype, workers: int) -> Iterator[Row]:
    """Yield Appendix A.4: ViT-B, CAST-B without its superpixels, and these on CPU workers, and on the device."""
    images = photos(batch, 224)
    pixels = normalised(images).to(device, dtype)
    _gate("cast_base", device, dtype)
    ours = build("cast_base")
    pool = ThreadPoolExecutor(workers)
    maker, name = worker_maker(ours, pool)
    labels = ours.superpixels(images).to(device)
    ours = ours.to(device, dtype)
    on_device = images.to(device)
    calls = {"cast_base": lambda: ours(pixels, labels)}
    missing = ""
    try:
        _gate("vit_base", device, dtype)
        peer = build("vit_base").to(device, dtype)
        calls = {"vit_base": lambda: peer(pixels), **calls}
    except Missing as reason:
        missing = str(reason)
    calls |= {
        "superpixels": lambda: maker(images),
        f"superpixels on {device.type}": lambda: ours.superpixels(on_device),
    }
    with torch.no_grad():
        times = measure(calls, device=device, least=3, seconds=1.0, warmup=1)
    pool.shutdown()
    if missing:
        yield {"table": "A.4", "item": "vit_base", "paper": A4_MS["vit_base"], "note": f"missing: {missing}"}
    for item, time in times.items():
        yield {
            "table": "A.4",
            "item": item,
            "unit": f"ms per batch of {batch} (paper: 64)",
            "paper": A4_MS.get(item, ""),
            "here": round(1e3 * time.p50, 3),
            "note": {"superpixels": f"{name} on {workers} threads"}.get(item, ""),
        }


def memory_rows(device: torch.device, batch: int, dtype: torch.dtype) -> Iterator[Row]:
    """Yield the memory that a forward pass needs at its peak; PyTorch counts it on CUDA only."""
    images = photos(batch, 224)
    for name in ("vit_small", "cast_small", "vit_base", "cast_base"):
        row = {"table": "memory", "item": name, "unit": f"MiB at the peak, batch of {batch}, weights included"}
        if device.type != "cuda":
            yield row | {"note": "not measured: PyTorch counts allocations on CUDA only"}
            continue
        try:
            model = build(name)
        except Missing as reason:
            yield row | {"note": f"missing: {reason}"}
            continue
        held = torch.cuda.memory_allocated(device)
        labels = (model.superpixels(images).to(device),) if isinstance(model, Cast) else ()
        model, pixels = model.to(device, dtype), normalised(images).to(device, dtype)
        torch.cuda.reset_peak_memory_stats(device)
        with torch.no_grad():
            model(pixels, *labels)
        torch.cuda.synchronize(device)
        yield row | {"here": round((torch.cuda.max_memory_allocated(device) - held) / 2**20, 1)}
        del model, labels, pixels


def _gate(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Check a model on this device.

    Raises:
        Missing: It cannot be built.
        Refused: It computes something else than its float64 reference.
    """
    short = next(key for key, value in DTYPES.items() if value == dtype)
    source = "given" if name.startswith("cast_") else UNSET
    Workshop(device, 1).path(Setting(name, 2, dtype=short, superpixels=source))
