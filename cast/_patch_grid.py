"""Between pixels and the patch grid of a timm model: labels, superpixel tokens, rotary positions."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cast_kernels import segment_mean


def patch_labels(patch_embed: nn.Module, image: Tensor, num_patches: int) -> Tensor:
    """Return the label map in which each patch of the images is a segment, row by row: int32 ``[B, H, W]``.

    Raises:
        ValueError: ``num_patches``, as many as the model had, are not those of the image.
    """
    (rows, columns), (height, width) = _grid(patch_embed, image)
    _check_whole(num_patches, (rows, columns))
    y = torch.arange(image.shape[2], device=image.device, dtype=torch.int32) // height
    x = torch.arange(image.shape[3], device=image.device, dtype=torch.int32) // width
    labels = y[:, None] * columns + x
    labels = torch.where((y[:, None] < rows) & (x < columns), labels, -1)  # a margin that no patch covers
    return labels.expand(image.shape[0], -1, -1)


def superpixels_of_patches(
    patch_embed: nn.Module, image: Tensor, patches: Tensor, labels: Tensor, num_segments: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Average patch tokens over the pixels of each superpixel.

    Args:
        patch_embed: The model's patch embedding, which knows the grid.
        image: ``[B, C, H, W]``, for its size.
        patches: ``[B, N, C]``, row by row.
        labels: Superpixels ``[B, H, W]``.
        num_segments: Number of superpixels S.

    Returns:
        Tokens ``[B, S, C]``, zero where a superpixel has no pixel; which of them have any, ``[B, S]`` bool; and the
        patch nearest to the mean position of their pixels, ``[B, S]`` int64.

    Raises:
        ValueError: Patches are missing.
    """
    grid, cell = _grid(patch_embed, image)
    _check_whole(patches.shape[1], grid)
    right, bottom = (c * g - side for c, g, side in zip(cell[::-1], grid[::-1], image.shape[:1:-1], strict=True))
    labels = F.pad(labels.int(), (0, right, 0, bottom), value=-1)  # to the pixels that the patches cover
    tokens, count = segment_mean(patches.unflatten(1, grid), labels, num_segments, interpolation="nearest")
    axes = [torch.arange(side, dtype=torch.float32, device=image.device) for side in grid]
    position = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=2).expand(labels.shape[0], -1, -1, -1)
    middle = segment_mean(position, labels, num_segments, interpolation="nearest")[0].round().long()
    return tokens, count > 0, middle[..., 0] * grid[1] + middle[..., 1]


def gather_rotary(table: Tensor, place: Tensor | None) -> Tensor:
    """Return the rotary embedding ``[B, heads or 1, K, D]`` of tokens at ``place [B, K]`` in timm's table.

    The table is ``[N, D]``, ``[heads, N, D]``, or, after patch dropout, ``[B, heads or 1, N, D]``. Without ``place``,
    all tokens are where they were: the table itself.
    """
    if place is None:
        return table
    if table.ndim == 2:
        return table[place][:, None]
    if table.ndim == 3:
        return table[:, place].transpose(0, 1)
    return table.gather(2, place[:, None, :, None].expand(-1, table.shape[1], -1, table.shape[3]))


def uint8_image(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return the nearest uint8 ``[B, 3, H, W]`` of a normalised image; constants stay out of device memory."""
    planes = [
        plane.to(torch.promote_types(image.dtype, torch.float32)) * (255 * s) + 255 * m
        for plane, m, s in zip(image.unbind(1), mean, std, strict=True)
    ]
    return torch.stack(planes, dim=1).round().clamp(0, 255).to(torch.uint8)


def _check_whole(num_patches: int, grid: tuple[int, int]) -> None:
    if num_patches != grid[0] * grid[1]:
        raise ValueError(
            f"expected all {grid[0]} x {grid[1]} patches of the image, got {num_patches}: patch dropout has taken the "
            "others; call model.eval() first"
        )


def _grid(patch_embed: nn.Module, image: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return rows and columns of patches, and the height and width of a patch in pixels."""
    rows, columns = patch_embed.dynamic_feat_size(image.shape[-2:])
    height, width = patch_embed.feat_ratio(as_scalar=False)
    return (rows, columns), (height, width)
