"""SEEDS superpixels of photos, in both orders, against OpenCV in the same run, on the same number of threads.

    pytest bench/test_seeds.py --benchmark-only -s

From uint8 RGB to labels on both sides: OpenCV's time includes the colour conversion and the creation of its object,
which every new image size needs and the published pipelines do per image; ours allocates per call as well. The two
take turns photo by photo. `ratio` (ours / peer, below 1 is faster) and `speedup` (peer / ours: median and least over
the photos) are in the JSON's `extra_info`.
"""

import statistics
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cast_kernels import _ext, seeds

cv2 = pytest.importorskip("cv2", reason="the peer, createSuperpixelSEEDS, comes from opencv-contrib-python-headless")
PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "photos" / "images"
TURNS, COUNT, BATCH = 3, 20, 32
FAMILIES = {"moco": (15, 20), "deit": (5, 15)}  # bins and iterations of the published checkpoints
OURS = {  # options of ours besides the bins
    "sequential": lambda iterations: {"order": "sequential", "iterations": iterations},
    "best": lambda iterations: {"order": "parallel", "quality": "best"},
    "fast": lambda iterations: {"order": "parallel", "quality": "fast"},
}


def photos(size):
    """Every photo cropped to a square and resized, uint8 [size, size, 3]."""
    paths = sorted(PHOTOS.glob("*.jpg"))
    if not paths:
        pytest.skip("needs ../shared/data/photos, which is not part of the project")
    images = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        edge = min(image.size)
        left, top = (image.width - edge) // 2, (image.height - edge) // 2
        box = (left, top, left + edge, top + edge)
        images.append(np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box)))
    return images


def opencv(image, request, bins, iterations):
    height, width, _ = image.shape
    segmenter = cv2.ximgproc.createSuperpixelSEEDS(width, height, 3, request, 1, 2, bins, False)
    segmenter.iterate(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), iterations)
    return segmenter.getLabels()


@pytest.fixture
def threads():
    """Set the number of threads on both sides; put both back afterwards."""
    before = torch.get_num_threads(), cv2.getNumThreads()

    def choose(count):
        torch.set_num_threads(count)
        cv2.setNumThreads(1)  # its SEEDS has one thread; more come from the batch

    yield choose
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("size", "request_"), [(224, 196), (512, 1024)])
def test_one_thread(benchmark, threads, size, request_, family, ours):
    threads(1)
    bins, iterations = FAMILIES[family]
    options = OURS[ours](iterations)
    images = photos(size)[:: 1 if size == 224 else 2][:COUNT]
    times = defaultdict(lambda: ([], []))  # per photo: peer, ours
    found = {}  # per photo: labels of both
    turn = iter(range(10**9))

    def run_peer():
        number = next(turn) % len(images)
        start = time.perf_counter()
        expected = opencv(images[number], request_, bins, iterations)
        times[number][0].append(time.perf_counter() - start)
        return (number, torch.tensor(images[number])[None], expected), {}

    def run_ours(number, image, expected):
        start = time.perf_counter()
        labels = seeds(image, request_, bins=bins, **options)
        times[number][1].append(time.perf_counter() - start)
        found[number] = labels[0].numpy(), expected

    benchmark.pedantic(run_ours, setup=run_peer, rounds=TURNS * len(images), warmup_rounds=2)
    assert all(np.array_equal(*both) == (ours == "sequential") for both in found.values())
    medians = [(statistics.median(peer), statistics.median(ours)) for peer, ours in times.values()]
    name = f"{ours}, {size} x {size}, {request_} superpixels, {bins} bins, OpenCV {iterations} iterations"
    report(benchmark, name, 1, medians)


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize(("size", "request_", "batch"), [(224, 196, BATCH), (1024, 1024, 1)])
def test_all_threads(benchmark, threads, size, request_, batch, ours):
    """A batch, which both sides share out over the threads; one large image, on which OpenCV has one of them."""
    count = torch.get_num_threads()
    threads(count)
    images = np.stack(photos(size)[:batch])
    medians = []
    with ThreadPoolExecutor(count) as pool:

        def run_peer():
            start = time.perf_counter()
            list(pool.map(lambda image: opencv(image, request_, 15, 20), images))
            medians.append([time.perf_counter() - start])
            return (), {}

        def run_ours():
            start = time.perf_counter()
            seeds(torch.from_numpy(images), request_, **OURS[ours](20))
            medians[-1].append(time.perf_counter() - start)

        benchmark.pedantic(run_ours, setup=run_peer, rounds=5, warmup_rounds=1)
    name = f"{ours}, batch of {len(images)}, {size} x {size}, {request_} superpixels, 15 bins, OpenCV 20 iterations"
    report(benchmark, name, count, medians)


def report(benchmark, name, threads, pairs):
    """Print and record (peer, ours) seconds of each photo or turn."""
    peer, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    speedups = [a / b for a, b in pairs]
    benchmark.extra_info |= {
        "peer": f"OpenCV {cv2.__version__}",
        "peer_ms": peer * 1e3,
        "ours_ms": ours * 1e3,
        "ratio": statistics.median(b / a for a, b in pairs),
        "speedup": statistics.median(speedups),
        "speedup_least": min(speedups),
        "threads": threads,
        "simd": _ext.load().build_info()["simd_used"],
    }
    print(
        f"\n{name}: OpenCV {peer * 1e3:.2f} ms, ours {ours * 1e3:.2f} ms, "
        f"{statistics.median(speedups):.2f} x as fast (least {min(speedups):.2f}), {threads} thread(s)"
    )
