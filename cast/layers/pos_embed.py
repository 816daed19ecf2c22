"""Position tables of the stem grid: fixed sin-cos, and the resizing of a learned one."""

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_2d(
    height: int, width: int, dim: int, *, temperature: float = 10000.0, device: torch.device | str | None = None
) -> Tensor:
    """Return the fixed 2-D sin-cos table of a grid, row first.

    Token ``(r, c)``, in row-major order, holds ``[sin(r w), cos(r w), sin(c w), cos(c w)]`` with
    ``w_k = temperature ** (-k / (dim / 4))``. Computed in float32, in which published weights hold it.

    Args:
        height: Rows of the grid.
        width: Columns of the grid.
        dim: Number of channels C, a multiple of 4.
        temperature: Largest wavelength over 2 pi.
        device: Where the table is made.

    Returns:
        ``[1, height * width, dim]`` float32.

    Raises:
        ValueError: ``dim`` is not a multiple of 4.

    Source: MoCo v3 (https://arxiv.org/abs/2104.02057), section 4.
    """
    if dim < 4 or dim % 4:
        raise ValueError(f"expected dim to be a multiple of 4, got {dim}")
    quarter = dim // 4
    omega = 1.0 / (temperature ** (torch.arange(quarter, dtype=torch.float32, device=device) / quarter))

    def waves(length: int) -> Tensor:
        angle = torch.arange(length, dtype=torch.float32, device=device)[:, None] * omega
        return torch.cat([angle.sin(), angle.cos()], dim=1)  # [length, dim / 2]

    rows = waves(height)[:, None].expand(height, width, -1)
    columns = waves(width)[None].expand(height, width, -1)
    return torch.cat([rows, columns], dim=2).reshape(1, height * width, dim)


def resize_pos_embed(table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Resize a position table by bicubic interpolation (``align_corners=False``), in float32 at least.

    Args:
        table: ``[1, grid_h * grid_w, C]`` without rows for class tokens, floating point.
        grid: Rows and columns of ``table``.
        new_grid: Rows and columns wanted.

    Returns:
        ``[1, new_h * new_w, C]``; ``table`` itself where the grids are equal. Differentiable.

    Raises:
        ValueError: ``table`` does not have ``grid_h * grid_w`` rows.
    """
    if table.ndim != 3 or table.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"expected a table of {grid[0]} x {grid[1]} rows, got shape {tuple(table.shape)}")
    if tuple(grid) == tuple(new_grid):
        return table
    # Interpolating in half precision would round weights too, and differently in each compiler.
    image = table.to(torch.promote_types(table.dtype, torch.float32)).transpose(1, 2).unflatten(2, grid)
    image = F.interpolate(image, size=new_grid, mode="bicubic", align_corners=False)
    return image.flatten(2).transpose(1, 2).to(table.dtype)
