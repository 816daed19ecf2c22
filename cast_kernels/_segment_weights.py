"""Means of an interpolated map over segments on CPUs, which never make that map.

    mean[s] = sum of weight[s, cell] x[cell] over the cells that pixels of s read

Interpolation and mean are linear, so a segment is a weighted sum of few cells (about 22 with bilinear, 46 with bicubic
interpolation at 8 x 8 pixels a cell and 256 pixels a segment). Weights are summed in float64, one image at a time, from
what pixels read along each axis; all sums run in one order, whatever the number of threads.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = {"nearest": 1, "bilinear": 2, "bicubic": 4}  # cells that a pixel reads along each axis
Weights = tuple[Tensor, Tensor, Tensor]  # segment, cell, weight, each [n]: ascending, none zero


# 1. Weights
def interpolation_matrix(size: int, new_size: int, interpolation: str, like: Tensor) -> Tensor:
    """[new_size, size], what ``interpolate`` does along one axis: the identity, interpolated."""
    basis = torch.eye(size, dtype=like.dtype, device=like.device)[None, :, :, None]  # channel i is the i-th unit vector
    options = {} if interpolation == "nearest" else {"align_corners": False}
    return F.interpolate(basis, size=(new_size, 1), mode=interpolation, **options)[0, :, :, 0].mT


def segment_weights(
    labels: Tensor, num_segments: int, grid: tuple[int, int], interpolation: str, dtype: torch.dtype
) -> Weights:
    """Weights of the cells of ``grid``, held in ``dtype``, in the sum over each segment of one map [H, W]."""
    (H, W), (h, w) = labels.shape, grid
    rows, in_rows = _taps(h, H, interpolation, dtype)
    columns, in_columns = _taps(w, W, interpolation, dtype)
    labels = labels.long()
    key = torch.where((labels >= 0) & (labels < num_segments), labels, num_segments) * w + columns  # [H, W]
    starts = torch.ones_like(key, dtype=torch.bool)  # of runs: pixels of a segment that read the same columns
    starts[:, 1:] = key[:, 1:] != key[:, :-1]
    run = starts.flatten().cumsum(0) - 1
    at = starts.flatten().nonzero()[:, 0]
    along_x = in_columns.new_zeros(at.numel(), in_columns.shape[1]).index_add_(0, run, in_columns.repeat(H, 1))
    key, y = key.flatten()[at], at // W
    kept = key < num_segments * w
    key, y, along_x = key[kept], y[kept], along_x[kept]
    product = in_rows[y][:, :, None] * along_x[:, None]  # [runs, taps, taps]
    # Runs that read the same cells become one before they are taken apart into cells: fewer to sort
    key, weight = _merge(key * h + rows[y], product.flatten(1))
    corner = key // h % w + key % h * w
    i, j = torch.arange(in_rows.shape[1])[:, None], torch.arange(in_columns.shape[1])
    key = (key // h // w * (h * w) + corner)[:, None] + (i * w + j).flatten()
    key, weight = _merge(key.flatten(), weight.view(-1, 1))
    used = weight[:, 0] != 0  # a cell of weight zero may hold what is not finite
    key, weight = key[used], weight[used, 0]
    return key // (h * w), key % (h * w), weight


def _taps(size: int, new_size: int, interpolation: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """First cell [new_size] that each pixel reads along an axis, and the weights [new_size, taps] from there on."""
    exact = dtype if interpolation == "nearest" else torch.float64  # which cell is nearest hangs on the dtype
    matrix = interpolation_matrix(size, new_size, interpolation, torch.empty((), dtype=exact)).double()
    taps = min(TAPS[interpolation], size)
    first = (matrix != 0).byte().argmax(1).clamp(max=size - taps)
    return first, matrix.gather(1, first[:, None] + torch.arange(taps))


def _merge(key: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Keys [n], each once and ascending, and the sums of their rows of ``weight``."""
    key, order = key.sort(stable=True)
    key, group = torch.unique_consecutive(key, return_inverse=True)
    return key, weight.new_zeros(key.numel(), weight.shape[1]).index_add_(0, group, weight[order])


# 2. The mean and its transpose
def interpolated_mean(x: Tensor, labels: Tensor, count: Tensor, interpolation: str, dtype: torch.dtype) -> Tensor:
    """Means [B, S, C] in ``dtype`` of a map x [B, h, w, C], or [1, h, w, C], under labels [B, H, W] of count [B, S]."""
    _, h, w, C = x.shape
    mean = x.new_empty(*count.shape, C, dtype=dtype)
    for b, (segment, cell, weight) in enumerate(_weights_over_count(labels, count, (h, w), interpolation, dtype)):
        cells = x[b if x.shape[0] > 1 else 0].reshape(h * w, C).to(mean.dtype)
        mean[b] = _product(segment, cell, weight, cells, count.shape[1])
    return mean


def interpolated_mean_transpose(
    grad_mean: Tensor, labels: Tensor, count: Tensor, shape: list[int], interpolation: str
) -> Tensor:
    """Gradient of a map of ``shape`` [B, h, w, C]; of [1, h, w, C], the sum over images. In the dtype of grad_mean."""
    shared, h, w, C = shape[0] == 1, *shape[1:]
    dtype = grad_mean.dtype
    grad = grad_mean.new_zeros(shape[0], h * w, C)
    for b, (segment, cell, weight) in enumerate(_weights_over_count(labels, count, (h, w), interpolation, dtype)):
        row, order = cell.sort(stable=True)
        grad[0 if shared else b] += _product(row, segment[order], weight[order], grad_mean[b], h * w)
    return grad.view(shape)


def _weights_over_count(
    labels: Tensor, count: Tensor, grid: tuple[int, int], interpolation: str, dtype: torch.dtype
) -> Iterator[Weights]:
    for label, pixels in zip(labels, count, strict=True):
        segment, cell, weight = segment_weights(label, pixels.numel(), grid, interpolation, dtype)
        yield segment, cell, weight / pixels[segment]


def _product(row: Tensor, column: Tensor, weight: Tensor, x: Tensor, size: int) -> Tensor:
    """The sparse matrix [size, N], rows ascending, times x [N, C]: ``embedding_bag`` is that product."""
    offsets = torch.searchsorted(row, torch.arange(size))
    return F.embedding_bag(column, x.contiguous(), offsets, mode="sum", per_sample_weights=weight.to(x.dtype))
