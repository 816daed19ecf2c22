"""Quality of SEEDS superpixels in both orders: ``python -m bench.superpixel_quality FOLDER [--csv FILE] [--every K]``.

FOLDER holds photos and human segmentations as BSDS500 does: ``images/ID.jpg`` and ``gt/ID.npz`` with ``seg`` [A, H, W].
The peer is OpenCV's order at the same request, from ``seeds(order="sequential")``, whose labels are those of OpenCV.
Printed are means over the photos, paired differences to it (mean and standard error) and what must hold of every
superpixel; the CSV has a row per photo and method.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.record import Table
from cast_kernels import seeds, superpixel_metrics

SETTINGS = {
    "224 x 224, 196": (224, 196),
    "native size, 260": (None, 260),
    "native size, 486": (None, 486),
}  # edge of the crop and request
ITERATIONS = {15: 20, 5: 15}  # of OpenCV at these bins: the settings of the published models
METRICS = {
    "BR": "boundary_recall",
    "BP": "boundary_precision",
    "UE": "undersegmentation_error",
    "ASA": "achievable_segmentation_accuracy",
    "EV": "explained_variation",
    "CO": "compactness",
}
AREAS = (0.33, 1.75)  # of the mean, between which 99 % of the superpixels should be


def photos(folder: Path, edge: int | None, every: int) -> Iterator[tuple[str, Tensor, np.ndarray]]:
    """Name, image [1, H, W, 3] and segmentations [A, H, W] of every ``every``th photo.

    With ``edge`` the usual evaluation transform: short side to 8/7 of it (area average), then the centre crop.
    """
    paths = sorted((folder / "images").glob("*.jpg"))[::every]
    if not paths:
        raise SystemExit(f"no photos in {folder / 'images'}")
    for path in paths:
        image = Image.open(path).convert("RGB")
        truth = np.load(folder / "gt" / f"{path.stem}.npz")["seg"].astype(np.int64)
        pixels = np.array(image)
        if edge is not None:
            scale = edge * 8 / 7 / min(image.size)
            width, height = (max(edge, round(side * scale)) for side in image.size)
            top, left = (height - edge) // 2, (width - edge) // 2
            crop = np.s_[top : top + edge, left : left + edge]
            pixels = np.array(image.resize((width, height), Image.Resampling.BOX))[crop]
            rows, columns = np.arange(height) * image.height // height, np.arange(width) * image.width // width
            truth = truth[:, rows][:, :, columns][:, *crop]
        yield path.stem, torch.from_numpy(np.ascontiguousarray(pixels))[None], truth


def methods(request: int, bins: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """The peer first."""
    iterations = ITERATIONS[bins]
    return {
        "OpenCV": lambda image: seeds(image, request, order="sequential", bins=bins, iterations=iterations),
        "best": lambda image: seeds(image, request, order="parallel", quality="best", bins=bins),
        "fast": lambda image: seeds(image, request, order="parallel", quality="fast", bins=bins),
    }


def measure(labels: Tensor, image: Tensor, truth: np.ndarray) -> dict[str, float]:
    """The metrics, extra components, and how many superpixels have an unusual area."""
    found = superpixel_metrics(labels[0], truth=truth, image=image[0])
    area = torch.bincount(labels.flatten().long()).double()
    unusual = (area < AREAS[0] * area.mean()) | (area > AREAS[1] * area.mean())
    return {short: found[name] for short, name in METRICS.items()} | {
        "segments": found["segments"],
        "split": found["components"] - found["segments"],
        "empty": int((area == 0).sum()),
        "unusual_areas": int(unusual.sum()),
    }


def table(rows: dict[str, list[dict[str, float]]]) -> list[str]:
    """Markdown lines: per method the means, and below them the differences to the peer with standard errors."""
    peer = next(iter(rows))
    lines = []
    for method, ours in rows.items():
        means = [f"{np.mean([row[m] for row in ours]):.4f}" for m in METRICS]
        labels = np.sum([row["segments"] for row in ours])
        unusual = 100 * np.sum([row["unusual_areas"] for row in ours]) / labels
        facts = [f"{np.sum([row[key] for row in ours]):.0f}" for key in ("split", "empty")]
        lines.append(f"| {method} | " + " | ".join([*means, *facts, f"{unusual:.2f} %"]) + " |")
        if method != peer:
            gaps = [np.array([a[m] - b[m] for a, b in zip(ours, rows[peer], strict=True)]) for m in METRICS]
            errors = [gap.std(ddof=1) / np.sqrt(len(gap)) if len(gap) > 1 else np.nan for gap in gaps]
            cells = [f"{gap.mean():+.4f} ± {error:.4f}" for gap, error in zip(gaps, errors, strict=True)]
            lines.append(f"| {method} - {peer} | " + " | ".join(cells) + " | | | |")
    return lines


def main() -> None:
    """Evaluate every setting, printing each when it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--csv", type=Path, help="add the rows to this file")
    parser.add_argument("--every", type=int, default=1, help="take every K-th photo")
    arguments = parser.parse_args()
    for setting, (edge, request) in SETTINGS.items():
        for bins in ITERATIONS:
            rows: dict[str, list[dict[str, float]]] = {name: [] for name in methods(request, bins)}
            records = []
            for photo, image, truth in photos(arguments.folder, edge, arguments.every):
                for name, method in methods(request, bins).items():
                    rows[name].append(measure(method(image), image, truth))
                    records.append({"setting": setting, "bins": bins, "photo": photo, "method": name} | rows[name][-1])
            if arguments.csv is not None:
                Table(arguments.csv).add(*records)
            count = len(next(iter(rows.values())))
            print(f"\n{setting} superpixels asked for, {bins} bins, {count} photos\n")
            print("| | " + " | ".join(METRICS) + " | split | empty | unusual areas |")
            print("|---|" + "---|" * (len(METRICS) + 3))
            print("\n".join(table(rows)), flush=True)


if __name__ == "__main__":
    main()
