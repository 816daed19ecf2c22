"""Superpixels against their peers, on photos: ``python -m bench.superpixels [PHOTOS ...]``.

Speed, from uint8 RGB to labels: SEEDS in both orders against OpenCV's SEEDS, scikit-image's SLIC, and the SLIC of other
packages where they are installed. On one thread image by image; on all of them as a batch, peers through a pool of
threads. The providers take turns, and a speed-up is the median of the ratios of such turns. A row per provider goes to
a CSV as soon as it is known. ``--picture FILE`` draws OpenCV, ours and SLIC side by side instead.
"""

import argparse
import importlib
import os
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

import cast
from bench.record import RESULTS, ROOT, Table, machine
from cast.data import find_images, read_image
from cast.panel import compose
from cast_kernels import seeds, superpixel_metrics

DEMO = ROOT / "cast" / "assets" / "demo.jpg"
CASES = ((224, 196), (512, 1024))  # side, request
BINS, ITERATIONS = 15, 20  # of the published MoCo checkpoints; the parallel order has bins alone
PEER = "OpenCV SEEDS"  # what speed-ups are told against
OURS = {
    "sequential": {"order": "sequential"},
    "parallel best": {"order": "parallel", "quality": "best"},
    "parallel fast": {"order": "parallel", "quality": "fast"},
}
Segment = Callable[[np.ndarray, int], np.ndarray]  # one image uint8 [H, W, 3] and a request -> labels [H, W]


# 1. Who takes part
def opencv_seeds(image: np.ndarray, request: int) -> np.ndarray:
    height, width, _ = image.shape
    segmenter = cv2.ximgproc.createSuperpixelSEEDS(width, height, 3, request, 1, 2, BINS, False)
    segmenter.iterate(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), ITERATIONS)
    return segmenter.getLabels()


def peers() -> dict[str, Segment | None]:
    """Everything that segments one image on the host or a GPU of its own accord; None = not installed here."""

    def like_scikit_image(module: str) -> Segment:
        slic = importlib.import_module(module).slic
        return lambda image, request: slic(image, n_segments=request)

    def fast_slic(module: str) -> Segment:
        make = importlib.import_module(module).Slic
        return lambda image, request: make(num_components=request).iterate(np.ascontiguousarray(image))

    found: dict[str, Segment | None] = {PEER: opencv_seeds}
    packages = {
        "scikit-image SLIC": (like_scikit_image, "skimage.segmentation"),
        "fast-slic (CPU)": (fast_slic, "fast_slic"),
        "cuda-slic (GPU)": (like_scikit_image, "cuda_slic.slic"),
    }
    for name, (make, module) in packages.items():
        try:
            found[name] = make(module)
        except Exception:  # a package without its GPU or its compiler raises anything
            found[name] = None
    return found


# 2. Speed
def photos(paths: list[Path], side: int, count: int) -> np.ndarray:
    """``count`` squares uint8 [count, side, side, 3]: of each photo in turn the centre, then its mirror images."""
    squares = []
    for number in range(count):
        image = Image.fromarray(read_image(paths[number % len(paths)]))
        edge = min(image.size)
        left, top = (image.width - edge) // 2, (image.height - edge) // 2
        square = image.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + edge, top + edge))
        turn = number // len(paths) % 8
        array = np.rot90(np.asarray(square), turn % 4)
        squares.append(array[:, ::-1] if turn >= 4 else array)
    return np.ascontiguousarray(np.stack(squares))


def ways(images: np.ndarray, request: int, threads: int, pool: ThreadPoolExecutor) -> dict[str, Callable | None]:
    """For each provider a call that returns the label maps of all images; None = not installed here."""
    batch, calls = torch.from_numpy(images), {}
    for name, segment in peers().items():
        each = None if segment is None else partial(segment, request=request)
        calls[name] = each and (lambda each=each: list(pool.map(each, images)))
    for name, options in OURS.items():
        ours = partial(seeds, num_superpixels=request, **options)
        if threads == 1:
            calls[f"ours, {name}"] = lambda ours=ours: [ours(image[None])[0] for image in batch]
        else:
            calls[f"ours, {name}"] = partial(ours, batch)
        if torch.cuda.is_available():
            calls[f"ours on the GPU, {name}"] = partial(ours, batch.cuda())
    return calls


def measure_speed(images: np.ndarray, request: int, threads: int, turns: int) -> list[dict[str, Any]]:
    """A row per provider: milliseconds per image and the speed-up over OpenCV."""
    torch.set_num_threads(threads)
    with ThreadPoolExecutor(threads) as pool:
        every = ways(images, request, threads, pool)
        calls = {name: call for name, call in every.items() if call}
        found = {name: label_maps(call()) for name, call in calls.items()}  # and warm
        if not np.array_equal(found[PEER], found["ours, sequential"]):
            raise SystemExit("the sequential labels are not OpenCV's: nothing is measured")
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(turns):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                times[name].append(time.perf_counter() - start)
    rows = [{"provider": name, "note": "not installed"} for name in every if name not in calls]
    for name, seconds in times.items():
        ratios = [peer / mine for peer, mine in zip(times[PEER], seconds, strict=True)]
        row = {"provider": name, "ms_per_image": round(1e3 * statistics.median(seconds) / len(images), 4)}
        row |= {"times_opencv": round(statistics.median(ratios), 3), "least": round(min(ratios), 3)}
        rows.append(row | {"superpixels": len(np.unique(found[name][0]))})
    return rows


def label_maps(result: Iterable) -> np.ndarray:
    """Label maps of any provider in the host's memory."""
    return np.stack([torch.as_tensor(labels).cpu().numpy() for labels in result])


# 3. The picture
def draw(path: Path, request: int, photo: np.ndarray) -> Image.Image:
    """OpenCV, ours and SLIC side by side, whole and enlarged, written as JPEG."""
    ours = cast.superpixels(photo, request)
    theirs = torch.from_numpy(opencv_seeds(photo, request))[None]
    slic = cast.superpixels(photo, request, method="slic")
    for _ in range(3):  # it gives fewer than asked: ask for so many that the numbers come close
        request = round(request * ours.num_segments / slic.num_segments)
        slic = cast.superpixels(photo, request, method="slic")
    shown = {
        PEER: cast.Superpixels(ours.image, theirs, ours.num_segments),
        "cast_kernels.seeds": ours,
        "scikit-image SLIC": slic,
    }
    height, width, _ = photo.shape
    box = (width // 4, height // 4, width // 4 + width // 2, height // 4 + height // 2)
    tiles, captions = [], []
    for name, found in shown.items():
        tiles.append(found.outlined()[0].numpy())
        captions.append(name)
    for found in shown.values():
        mosaic = Image.fromarray(found.mosaic()[0].numpy())
        tiles.append(np.asarray(mosaic.crop(box).resize((width, height), Image.Resampling.NEAREST)))
        figures = superpixel_metrics(found.labels[0], image=photo)
        captions.append(
            f"{figures['segments']} superpixels in {figures['components']} pieces, "
            f"explained variation {figures['explained_variation']:.3f}"
        )
    picture = compose(tiles, captions)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, "JPEG", quality=80, optimize=True)
    return picture


def main(arguments: list[str] | None = None) -> None:
    """Measure all cases, or draw the picture."""
    parser = argparse.ArgumentParser(prog="python -m bench.superpixels", description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="*", default=[str(DEMO)], help="files, folders, globs (default: the demo)")
    parser.add_argument("--out", type=Path, default=RESULTS / "superpixels.csv", help="CSV to add rows to")
    parser.add_argument("--images", type=int, default=8, help="images per batch (default: 8)")
    parser.add_argument("--turns", type=int, default=5, help="rounds in which the providers take turns (default: 5)")
    parser.add_argument("--case", action="append", metavar="SIDE,REQUEST", help="instead of 224,196 and 512,1024")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="only draw the first photo, to this JPEG")
    options = parser.parse_args(arguments)
    paths = [path for pattern in options.photos for path in find_images(pattern)]
    if options.picture:
        picture = draw(options.picture, 300, read_image(paths[0]))
        print(f"{options.picture}: {picture.width} x {picture.height}")
        return
    cases = [tuple(map(int, case.split(","))) for case in options.case] if options.case else CASES
    table, about = Table(options.out), machine()
    cv2.setNumThreads(1)  # its SEEDS has one thread; more come from a pool
    for side, request in cases:
        images = photos(paths, side, options.images)
        for threads in sorted({1, os.cpu_count() or 1}):
            print(f"{side} x {side}, {request} wanted, {len(images)} images, {threads} thread(s)", flush=True)
            for row in measure_speed(images, request, threads, options.turns):
                case = {"side": side, "request": request, "images": len(images), "threads": threads}
                table.add(case | {"bins": BINS, "iterations": ITERATIONS} | row | about)
                figures = row.get("note") or (
                    f"{row['ms_per_image']:9.3f} ms an image, {row['times_opencv']:6.2f} x OpenCV "
                    f"(least {row['least']:.2f}), {row['superpixels']} superpixels"
                )
                print(f"  {row['provider']:<32} {figures}", flush=True)


if __name__ == "__main__":
    main()
