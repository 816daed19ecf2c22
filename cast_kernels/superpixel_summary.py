"""What one looks at superpixels with, in one pass over the label map: areas, boxes, mean colours and the boundary.

    area[b, s]  = number of pixels p with labels[b, p] == s
    box[b, s]   = (least y, least x, greatest y + 1, greatest x + 1) over these pixels,   0 where there are none
    color[b, s] = mean of image[b, p] over them,                                          0 where there are none

and a pixel is on the boundary where a 4-neighbour (right and lower, or all four) carries another label.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cast_kernels._checks import check_count, check_labels, check_same_device, shown
from cast_kernels._cuda import has_kernels
from cast_kernels._rgb import channel_dim
from cast_kernels._rows import sum_rows
from cast_kernels._vmap import folded

BOUNDARIES = ("thin", "thick")
MAX_PIXELS = 2**30  # of an image, for the kernels' 32-bit positions; above, the reference runs


# 1. Public function
class SuperpixelSummary(NamedTuple):
    """What ``superpixel_summary`` returns.

    Attributes:
        area: Pixels of each segment [B, S], int64.
        box: (y0, x0, y1, x1) of each segment in pixels, half-open as in scikit-image's ``regionprops``: [B, S, 4],
            int64; zeros for empty segments.
        color: Mean RGB of each segment in [0, 255], [B, S, 3], float32, zeros for empty segments; None without image.
        boundary: Pixels on a boundary [B, H, W], bool.
    """

    area: Tensor
    box: Tensor
    color: Tensor | None
    boundary: Tensor


def superpixel_summary(
    labels: Tensor, num_segments: int, image: Tensor | None = None, *, boundary: str = "thin"
) -> SuperpixelSummary:
    """Areas, bounding boxes, mean colours and boundary of the segments of label maps.

    Args:
        labels: Label maps [B, H, W]; int32, int64 or uint8, any strides. Pixels with a label outside
            [0, num_segments) belong to no segment.
        num_segments: Number of segments S. An argument, so that no shape depends on data.
        image: RGB [B, H, W, 3] or [B, 3, H, W], uint8, any strides. Where both readings fit the channels are last.
        boundary: "thin", pixels whose right or lower neighbour has another label, a line one pixel wide as in
            ``superpixel_metrics``; or "thick", pixels with any such 4-neighbour, which lie on both sides, as
            scikit-image's ``find_boundaries(mode="thick")`` (and its "inner", where every pixel has a segment). Pixels
            without a segment count as one segment more; the frame of the image is no boundary.

    Returns:
        ``SuperpixelSummary(area, box, color, boundary)``.

    Raises:
        TypeError: A dtype is not supported.
        ValueError: Shapes or devices do not fit, or the boundary is unknown.

    Deterministic, and equal on every device: sums are of integers in 64 bits, means their quotients in float64, rounded
    once. Never waits for the device. Not differentiable.
    """
    check_labels("labels", labels)
    if labels.dim() != 3:
        raise ValueError(f"expected labels [B, H, W], got {shown(labels)}")
    check_count("num_segments", num_segments)
    if boundary not in BOUNDARIES:
        raise ValueError(f"expected boundary to be one of {BOUNDARIES}, got {boundary!r}")
    pixels = None
    if image is not None:
        pixels = image if channel_dim(image) == 3 else image.permute(0, 2, 3, 1)
        if pixels.shape[:3] != labels.shape:
            raise ValueError(f"expected an image on the grid of labels {shown(labels)}, got {shown(image)}")
        check_same_device(labels=labels, image=image)
    area, box, color, edge = torch.ops.cast_kernels.superpixel_summary(
        labels, num_segments, pixels, boundary == "thick"
    )
    return SuperpixelSummary(area, box, None if image is None else color, edge)


# 2. Reference
def superpixel_summary_ref(
    labels: Tensor, num_segments: int, image: Tensor | None, thick: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The definition; ``image`` [B, H, W, 3], and without it a colour [B, S, 0]."""
    (B, H, W), S = labels.shape, num_segments
    labels = labels.long()
    labels = torch.where((labels >= 0) & (labels < S), labels, S)
    flat = labels.flatten(1)
    ones = torch.ones_like(flat)[..., None]
    rows = ones if image is None else torch.cat([ones, image.flatten(1, 2)], -1)
    total = sum_rows(rows, flat, S)
    area = total[..., 0].contiguous()
    color = (total[..., 1:].double() / area.clamp(min=1)[..., None]).float()

    y, x = torch.meshgrid(torch.arange(H, device=flat.device), torch.arange(W, device=flat.device), indexing="ij")
    corners = torch.stack([y, x, -1 - y, -1 - x], -1).view(1, H * W, 4).expand(B, -1, -1)
    least = torch.full((B, S + 1, 4), max(H, W), device=flat.device)
    least.scatter_reduce_(1, flat[..., None].expand(-1, -1, 4), corners, "amin")
    box = torch.cat([least[:, :S, :2], -least[:, :S, 2:]], -1).masked_fill(area[..., None] == 0, 0)
    return area, box, color, _boundary(labels, thick)


def _boundary(labels: Tensor, thick: bool) -> Tensor:
    edge = torch.zeros_like(labels, dtype=torch.bool, memory_format=torch.contiguous_format)
    across, down = labels[:, :, :-1] != labels[:, :, 1:], labels[:, :-1] != labels[:, 1:]
    edge[:, :, :-1] |= across
    edge[:, :-1] |= down
    if thick:
        edge[:, :, 1:] |= across
        edge[:, 1:] |= down
    return edge


# 3. Registration
_op = torch.library.custom_op("cast_kernels::superpixel_summary", mutates_args=())(superpixel_summary_ref)


@_op.register_kernel("cuda")
def _cuda(labels, num_segments, image, thick):
    if labels.shape[1] * labels.shape[2] > MAX_PIXELS or not has_kernels(labels.device):
        return superpixel_summary_ref(labels, num_segments, image, thick)
    from cast_kernels.kernels import superpixel_summary as kernels

    with torch.cuda.device(labels.device):
        return kernels.forward(labels, num_segments, image, thick)


@_op.register_fake
def _(labels, num_segments, image, thick):
    B, S = labels.shape[0], num_segments
    return (
        labels.new_empty(B, S, dtype=torch.int64),
        labels.new_empty(B, S, 4, dtype=torch.int64),
        labels.new_empty(B, S, 0 if image is None else 3, dtype=torch.float32),
        labels.new_empty(labels.shape, dtype=torch.bool),
    )


_op.register_vmap(folded(_op))
