"""From a feature map and a label map to one token per superpixel (CAST, section 3.1)."""

import torch
from torch import Tensor, nn

from cast_kernels import segment_mean


def resize_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a label map by nearest neighbour, taking index ``floor(i * old / new)``: the top-left pixel of each cell.

    Args:
        labels: ``[B, H, W]``, any integer type.
        size: New height and width.

    Returns:
        ``[B, height, width]`` in the dtype of ``labels``; a strided view where the sizes divide.

    Raises:
        ValueError: ``labels`` is not ``[B, H, W]``, or a size is below 1.
    """
    if labels.ndim != 3 or min(size) < 1 or min(labels.shape[1:]) < 1:
        raise ValueError(f"expected labels [B, H, W] and a size of at least 1, got {tuple(labels.shape)} and {size}")
    for axis, new in ((1, size[0]), (2, size[1])):
        old = labels.shape[axis]
        if old % new == 0:
            labels = labels[:, :: old // new] if axis == 1 else labels[:, :, :: old // new]
        else:
            labels = labels.index_select(axis, torch.arange(new, device=labels.device) * old // new)
    return labels


def superpixel_tokens(
    features: Tensor,
    labels: Tensor,
    num_segments: int,
    pos_embed: Tensor,
    proj: nn.Module | None = None,
    *,
    pos_grid: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Average features and positions over each superpixel: ``token[s] = mean(features[s]) + mean(pos_embed[s])``.

    By default labels are brought to the grid of the features, one per cell. With ``pos_grid``, features (bilinear) and
    positions (bicubic, ``align_corners=False``) are brought to the grid of the labels instead, and the average is over
    all pixels. Both interpolations are linear, so the upsampled maps need not exist: see `cast_kernels.segment_mean`.

    With ``proj`` the features are those before that 1x1 convolution, which is applied to the means, as a map
    ``[B, C, S, 1]``, instead of to the map of all cells: ``mean(W x + b) = W mean(x) + b``, equal to rounding, for as
    many products as there are superpixels instead of cells. The bias does not reach empty superpixels.

    Args:
        features: Stem output ``[B, C, h, w]``, floating point.
        labels: Superpixels ``[B, H, W]``, integer, of any resolution; labels outside ``[0, num_segments)`` are ignored.
        num_segments: Number of segments S.
        pos_embed: Position table ``[1, h * w, C]``, or with ``pos_grid`` ``[1, rows * columns, C]``.
        proj: 1x1 convolution that is still due, or whatever wraps or replaces it; None = none. It is called as a
            module, hooks included.
        pos_grid: Rows and columns of ``pos_embed``, to average over the pixels of the labels instead of the cells of
            the features.

    Returns:
        Tokens ``[B, S, C]`` in the dtype promoted from both, and which of them hold at least one cell (or pixel),
        ``[B, S]`` bool. A superpixel without any is a zero token.
    """
    cells, mode, pos_mode = features.permute(0, 2, 3, 1), "bilinear", "bicubic"
    if pos_grid is None:
        pos_grid, mode, pos_mode = cells.shape[1:3], None, None
        labels = resize_labels(labels, pos_grid)
    positions = pos_embed.unflatten(1, pos_grid)
    if proj is None:
        tokens, count = segment_mean(
            cells, labels, num_segments, add=positions, interpolation=mode, add_interpolation=pos_mode
        )
        return tokens, count > 0
    mean, count = segment_mean(cells, labels, num_segments, interpolation=mode)
    mask = count > 0
    tokens = proj(mean[:, :, None].permute(0, 3, 1, 2))  # [B, C, S, 1], channels last in memory
    tokens = tokens.squeeze(3).transpose(1, 2) * mask[..., None]
    place, _ = segment_mean(positions.expand(labels.shape[0], -1, -1, -1), labels, num_segments, interpolation=pos_mode)
    return tokens + place, mask
