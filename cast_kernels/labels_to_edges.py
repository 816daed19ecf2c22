"""The region adjacency graph of label maps: which segments touch.

(u, v), u < v, is an edge where some pixel of u has a 4-neighbour in v
"""

import torch
from torch import Tensor

from cast_kernels._checks import check_count, check_labels, shown
from cast_kernels._cuda import has_kernels
from cast_kernels._vmap import folded
from cast_kernels.superpixel_summary import MAX_PIXELS

MAX_SEGMENTS = 16_384  # above, the reference runs: the kernels hold a bit for each pair of segments


# 1. Public function
def labels_to_edges(labels: Tensor, num_segments: int, *, max_edges: int | None = None) -> tuple[Tensor, Tensor]:
    """List the pairs of segments that touch, for each label map.

    Args:
        labels: Label maps [B, H, W]; int32, int64 or uint8, any strides. Pixels with a label outside
            [0, num_segments) belong to no segment and join none.
        num_segments: Number of segments S.
        max_edges: Room E for edges per image. Default: ``min(S (S - 1) / 2, pairs of neighbouring pixels, 6 S - 6)``.
            S connected segments have at most 3 S - 6 edges (a planar graph), and any label map whose segments fall
            into n pieces at most 3 n - 6, so the default holds all edges of up to 2 S pieces.

    Returns:
        ``edges`` [B, E, 2] int64, each row u < v, in ascending order, then rows of -1; and ``count`` [B] int64, how
        many edges there are, room or not: where ``count > E`` the last ones were left out.

    Raises:
        TypeError: The labels' dtype is not supported.
        ValueError: Shapes do not fit; or, where that is known without waiting (on the CPU), E is too small.

    Deterministic, and equal on every device. Never waits for the device. Not differentiable.
    """
    check_labels("labels", labels)
    if labels.dim() != 3:
        raise ValueError(f"expected labels [B, H, W], got {shown(labels)}")
    check_count("num_segments", num_segments)
    if max_edges is None:
        _, H, W = labels.shape
        pairs = max(0, H * (W - 1)) + max(0, (H - 1) * W)
        max_edges = min(num_segments * (num_segments - 1) // 2, pairs, 6 * num_segments - 6)
    check_count("max_edges", max_edges, 0)
    return torch.ops.cast_kernels.labels_to_edges(labels, num_segments, max_edges)


# 2. Reference
def labels_to_edges_ref(labels: Tensor, num_segments: int, max_edges: int) -> tuple[Tensor, Tensor]:
    """The definition: the pairs of all neighbouring pixels, sorted; the first of each run of equal pairs is an edge."""
    B, S = labels.shape[0], num_segments
    labels = labels.long()
    sides = [(labels[:, :, :-1], labels[:, :, 1:]), (labels[:, :-1], labels[:, 1:])]
    a, b = (torch.cat([side[k].flatten(1) for side in sides], 1) for k in (0, 1))
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    joined = (low != high) & (low >= 0) & (high < S)
    key = torch.where(joined, low * S + high, S * S)
    key = key.to(torch.int32 if S * S < 2**31 else torch.int64).sort(1).values.long()  # narrow keys sort faster
    new = torch.nn.functional.pad(key[:, 1:] != key[:, :-1], (1, 0), value=True)[:, : key.shape[1]] & (key < S * S)
    rank = new.cumsum(1)
    slot = torch.where(new, rank - 1, max_edges).clamp(max=max_edges)  # what has no room goes to a slot that is dropped
    found = key.new_full((B, max_edges + 1), -1).scatter_(1, slot, key)[:, :max_edges, None]
    edges = torch.where(found < 0, -1, torch.cat([found.div(S, rounding_mode="floor"), found % S], 2))
    return edges, new.sum(1)


# 3. Registration
@torch.library.custom_op("cast_kernels::labels_to_edges", mutates_args=())
def _op(labels: Tensor, num_segments: int, max_edges: int) -> tuple[Tensor, Tensor]:
    edges, count = labels_to_edges_ref(labels, num_segments, max_edges)
    if labels.device.type == "cpu" and (count > max_edges).any():
        raise ValueError(f"expected room for {count.max()} edges, got {max_edges}: pass max_edges={count.max()}")
    return edges, count


@_op.register_kernel("cuda")
def _cuda(labels, num_segments, max_edges):
    large = num_segments > MAX_SEGMENTS or labels.shape[1] * labels.shape[2] > MAX_PIXELS
    if large or not has_kernels(labels.device):
        return labels_to_edges_ref(labels, num_segments, max_edges)
    from cast_kernels.kernels import labels_to_edges as kernels

    with torch.cuda.device(labels.device):
        return kernels.forward(labels, num_segments, max_edges)


@_op.register_fake
def _(labels, num_segments, max_edges):
    B = labels.shape[0]
    return labels.new_empty(B, max_edges, 2, dtype=torch.int64), labels.new_empty(B, dtype=torch.int64)


_op.register_vmap(folded(_op))
