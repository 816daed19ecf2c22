"""How well segments that know nothing of a mask fit it: by the majority in each segment, and by the best one alone.

The majority vote over the 8 coarsest segments is how CAST (ICLR 2024, https://arxiv.org/abs/2210.00314, Appendix C)
turns its segmentation into foreground and background.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor


class ForegroundScores(NamedTuple):
    """Two scores of one segmentation against one mask, in [0, 1]; see `foreground_iou`."""

    majority: float  # IoU of the union of the segments that lie mostly in the mask
    best_match: float  # largest IoU of a single segment


def foreground_iou(segments: ArrayLike | Tensor, mask: ArrayLike | Tensor) -> ForegroundScores:
    """Compare a segmentation with the mask of an object. The scores know the mask: they are what labelling could reach.

    With ``a_s`` the pixels of segment ``s``, ``f_s`` those of them in the mask, and ``F`` the pixels of the mask::

        majority   = sum of f_s over M / (F + sum of a_s - f_s over M),   M = segments with f_s > a_s / 2
        best_match = largest f_s / (F + a_s - f_s)

    So in ``majority`` each segment is labelled by most of its pixels (a tie: background), which leaves the fewest wrong
    pixels. Finer segmentations gain by it (one segment per pixel is always right), so compare at an equal number of
    segments; ``best_match`` falls where an object is cut into parts.
    One segment for the whole image has ``best_match = F / (H W)``, the score of a guess that all is foreground; its
    ``majority`` is the same where the mask holds more than half the image, and else 0.

    Args:
        segments: Label map ``[H, W]``, integers; a negative label belongs to no segment, and is background.
        mask: ``[H, W]``, bool; or integers, of which nonzero is foreground.

    Returns:
        The two scores.

    Raises:
        TypeError: ``segments`` are not integers, or ``mask`` is neither bool nor integers.
        ValueError: The shapes are not equal and two-dimensional, or no pixel of the mask is set: nothing to score.
    """
    labels, inside = (np.asarray(x.cpu() if isinstance(x, Tensor) else x) for x in (segments, mask))
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"expected integer segments, got {labels.dtype}")
    if inside.dtype != bool and not np.issubdtype(inside.dtype, np.integer):
        raise TypeError(f"expected a bool or integer mask, got {inside.dtype}")
    if labels.ndim != 2 or labels.shape != inside.shape:
        raise ValueError(f"expected segments and mask [H, W], got {list(labels.shape)} and {list(inside.shape)}")
    inside = inside != 0
    true = int(inside.sum())
    if not true:
        raise ValueError("expected a mask with at least one pixel set: there is nothing to score")
    kept = labels >= 0
    if not kept.any():
        return ForegroundScores(0.0, 0.0)
    _, dense = np.unique(labels[kept], return_inverse=True)  # labels may be large and sparse
    area = np.bincount(dense)
    shared = np.bincount(dense[inside[kept]], minlength=len(area))
    chosen = 2 * shared > area
    union = true + (area - shared)[chosen].sum()
    return ForegroundScores(float(shared[chosen].sum() / union), float((shared / (true + area - shared)).max()))


def mean_foreground_iou(pairs: Iterable[tuple[ArrayLike | Tensor, ArrayLike | Tensor]]) -> ForegroundScores:
    """Average both scores over images, each image counting the same.

    Args:
        pairs: ``(segments, mask)`` of each image, as `foreground_iou` takes them; images may differ in size.

    Raises:
        TypeError: As in `foreground_iou`.
        ValueError: As in `foreground_iou`, or there is no image.
    """
    scores = [foreground_iou(segments, mask) for segments, mask in pairs]
    if not scores:
        raise ValueError("expected at least one image to score, got none")
    return ForegroundScores(*(float(mean) for mean in np.mean(scores, axis=0)))
