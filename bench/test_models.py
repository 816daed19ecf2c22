"""Latency of cast_small on the CPU, as a ratio to a ViT-S/16 of timm in the same run.

    pytest bench/test_models.py --benchmark-only -s

fp32, eval, no_grad, 224 x 224, the same threads for both. The two take turns, so that both see the machine in the same
state; ``ratio`` (of the medians, ours / peer, below 1 is faster) is in the JSON's ``extra_info``. All of it takes well
under a minute on two quiet cores.
"""

import statistics
import time

import pytest
import torch

from cast import create_model

timm = pytest.importorskip("timm", reason="the peer, vit_small_patch16_224, comes from timm")
ROUNDS = {1: 11, 8: 5}  # by batch size; odd, so that the median is one of the runs
WARMUP = {1: 2, 8: 1}


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return create_model("cast_small").eval(), timm.create_model("vit_small_patch16_224").eval()


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("superpixels", ["given", "made"])
@torch.no_grad()
def test_cast_small_against_vit_small(benchmark, models, superpixels, batch):
    cast_small, vit_small = models
    image = torch.nn.functional.interpolate(torch.rand(batch, 3, 28, 28), size=224, mode="bicubic").clamp(0, 1)
    image = (image * 255).to(torch.uint8)
    labels = cast_small.superpixels(image) if superpixels == "given" else None
    normalised = (image.float() / 255 - cast_small.image_mean) / cast_small.image_std

    inputs = (image,) if labels is None else (normalised, labels)
    peer_times = []

    def run_peer():
        start = time.perf_counter()
        vit_small(normalised)
        peer_times.append(time.perf_counter() - start)
        return inputs, {}

    benchmark.pedantic(cast_small, setup=run_peer, rounds=ROUNDS[batch], warmup_rounds=WARMUP[batch])
    ours, peer = benchmark.stats.stats.median, statistics.median(peer_times[WARMUP[batch] :])
    benchmark.extra_info |= {
        "peer": "timm vit_small_patch16_224",
        "peer_ms": peer * 1e3,
        "ratio": ours / peer,
        "threads": torch.get_num_threads(),
    }
    print(
        f"\ncast_small, superpixels {superpixels}, batch {batch}: {ours * 1e3:.1f} ms; vit_small {peer * 1e3:.1f} ms; "
        f"ratio {ours / peer:.2f} ({torch.get_num_threads()} threads)"
    )
