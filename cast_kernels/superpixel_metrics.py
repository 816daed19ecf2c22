"""Quality of a superpixel label map: against human segmentations, against the image, and on its own.

Sources: boundary recall and precision, undersegmentation error and achievable segmentation accuracy as in Neubert and
Protzel (2012) and Stutz, Hermans, Leibe (CVIU 2018); explained variation, Moore et al. (CVPR 2008); compactness,
Schick, Fischer, Stiefelhagen (ICPR 2012).
"""

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor


def superpixel_metrics(
    labels: ArrayLike | Tensor,
    *,
    truth: ArrayLike | Tensor | None = None,
    image: ArrayLike | Tensor | None = None,
    tolerance: int = 2,
) -> dict[str, float]:
    """Measure one label map.

    Args:
        labels: Label map [H, W], integers (tensor or array).
        truth: Segmentation [H, W], or those of A annotators [A, H, W], over which its figures are averaged; integers.
        image: The image [H, W, C] whose colours the superpixels should explain.
        tolerance: Chebyshev distance in pixels within which two boundary pixels match.

    Returns:
        Always: ``segments`` (distinct labels), ``components`` (4-connected; equal to ``segments`` where each superpixel
        is one piece), ``compactness`` (isoperimetric quotient, area-weighted; 1 is best), ``boundary_density`` (share
        of boundary pixels; boundary recall compares only at equal density), ``area_variation`` (standard deviation
        over mean) and ``area_minimum`` (over mean).
        With truth: ``boundary_recall`` (share of true boundary pixels with a superpixel boundary within the tolerance),
        ``boundary_precision`` (the other way round), ``undersegmentation_error`` (Neubert-Protzel; 0 is best),
        ``achievable_segmentation_accuracy`` (when each superpixel takes the truth it overlaps most).
        With image: ``explained_variation`` (share of the colour variance that lies between superpixels).

    Raises:
        TypeError: Labels or truth are not integers.
        ValueError: Shapes do not fit, or the tolerance is negative.
    """
    labels = _integers("labels", labels)
    if labels.ndim != 2 or labels.size == 0:
        raise ValueError(f"expected labels [H, W], got {list(labels.shape)}")
    if isinstance(tolerance, bool) or not isinstance(tolerance, int) or tolerance < 0:
        raise ValueError(f"expected tolerance to be a whole number of pixels >= 0, got {tolerance!r}")
    names, dense = np.unique(labels, return_inverse=True)
    dense, S = dense.reshape(labels.shape), len(names)
    area = np.bincount(dense.ravel(), minlength=S)
    boundary = _boundary(dense)
    result = {
        "segments": S,
        "components": _count_components(dense),
        "compactness": _compactness(dense, area),
        "boundary_density": float(boundary.mean()),
        "area_variation": float(area.std() / area.mean()),
        "area_minimum": float(area.min() / area.mean()),
    }
    if truth is not None:
        truth = _integers("truth", truth)
        maps = truth[None] if truth.ndim == 2 else truth
        if maps.ndim != 3 or maps.shape[1:] != labels.shape or len(maps) == 0:
            raise ValueError(f"expected truth {list(labels.shape)} or [A, H, W] of it, got {list(truth.shape)}")
        rows = [_against_truth(dense, area, boundary, one, tolerance) for one in maps]
        result |= {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    if image is not None:
        image = np.asarray(image.detach().double().cpu() if isinstance(image, Tensor) else image)
        if image.ndim != 3 or image.shape[:2] != labels.shape:
            raise ValueError(f"expected image {[*labels.shape, 'C']}, got {list(image.shape)}")
        result["explained_variation"] = _explained_variation(dense, area, image)
    return result


def _integers(name: str, x: ArrayLike | Tensor) -> np.ndarray:
    x = np.asarray(x.cpu() if isinstance(x, Tensor) else x)
    if not np.issubdtype(x.dtype, np.integer):
        raise TypeError(f"expected integer {name}, got {x.dtype}")
    return x


def _boundary(labels: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour has another label: one-sided, so a boundary is one pixel wide."""
    edge = np.zeros(labels.shape, bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge


def _dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Pixels within Chebyshev distance ``radius`` of the mask: a box filter by sums over both axes."""
    padded = np.pad(mask.astype(np.int64), ((radius + 1, radius), (radius + 1, radius))).cumsum(0).cumsum(1)
    size = 2 * radius + 1
    return (padded[size:, size:] - padded[:-size, size:] - padded[size:, :-size] + padded[:-size, :-size]) > 0


def _count_components(labels: np.ndarray) -> int:
    """Number of 4-connected components over all labels, by hooking roots to the lower one and jumping pointers."""
    ids = np.arange(labels.size).reshape(labels.shape)
    across, down = labels[:, 1:] == labels[:, :-1], labels[1:] == labels[:-1]
    a = np.concatenate([ids[:, :-1][across], ids[:-1][down]])
    b = np.concatenate([ids[:, 1:][across], ids[1:][down]])
    root = np.arange(labels.size)
    while len(a):
        low, high = np.minimum(root[a], root[b]), np.maximum(root[a], root[b])
        open_ = low != high
        if not open_.any():
            break
        a, b = a[open_], b[open_]
        np.minimum.at(root, high[open_], low[open_])
        while not np.array_equal(root, jumped := root[root]):
            root = jumped
    return int((root == np.arange(labels.size)).sum())


def _compactness(labels: np.ndarray, area: np.ndarray) -> float:
    """Mean over pixels of 4 pi area / perimeter², at most 1; the perimeter counts pixel sides, the frame's included."""
    perimeter = np.zeros(len(area))
    for rows in (labels, labels.T):
        edge = rows[1:] != rows[:-1]
        for side in (rows[1:][edge], rows[:-1][edge], rows[0], rows[-1]):
            perimeter += np.bincount(side, minlength=len(area))
    return float((area / labels.size * np.minimum(1.0, 4 * np.pi * area / perimeter**2)).sum())


def _explained_variation(labels: np.ndarray, area: np.ndarray, image: np.ndarray) -> float:
    colours = image.reshape(labels.size, -1).astype(np.float64)
    centred = colours - colours.mean(0)
    total = (centred**2).sum()
    if total == 0:
        return 1.0  # a constant image has nothing left to explain
    means = [np.bincount(labels.ravel(), channel, len(area)) / area for channel in centred.T]
    return float((area * np.square(means)).sum() / total)


def _against_truth(
    labels: np.ndarray, area: np.ndarray, boundary: np.ndarray, truth: np.ndarray, tolerance: int
) -> dict[str, float]:
    names, truth = np.unique(truth, return_inverse=True)
    truth = truth.reshape(labels.shape)
    pairs = labels.ravel() * len(names) + truth.ravel()
    overlap = np.bincount(pairs, minlength=len(area) * len(names)).reshape(len(area), len(names))
    leak = np.where(overlap > 0, np.minimum(overlap, area[:, None] - overlap), 0)
    true_boundary = _boundary(truth)
    found = true_boundary & _dilate(boundary, tolerance)
    right = boundary & _dilate(true_boundary, tolerance)
    return {
        "boundary_recall": found.sum() / true_boundary.sum() if true_boundary.any() else 1.0,
        "boundary_precision": right.sum() / boundary.sum() if boundary.any() else 1.0,
        "undersegmentation_error": leak.sum() / labels.size,
        "achievable_segmentation_accuracy": overlap.max(1).sum() / labels.size,
    }
