"""Interpolation along one axis as a matrix, for maps that ``segment_mean`` brings to the grid of the labels."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cast_kernels.kernels._aot import Case
from cast_kernels.kernels._tiles import OLDEST
from cast_kernels.kernels.segment_mean_rows import make_case, map_strides

TAPS = {"nearest": 1, "bilinear": 2, "bicubic": 4}  # cells that a pixel reads along each axis


# 1. Interpolation along one axis, from ``size`` cells to ``new_size`` pixels
@triton.jit
def _source(d, size, new_size, scale, TAPS: tl.constexpr):
    """Cell before pixel ``d`` (-1 before the first), and the fraction of the way to the next."""
    if TAPS == 1:  # torch multiplies in float32, and which cell is nearest hangs on that
        before = tl.minimum((d.to(tl.float32) * scale).to(tl.int32), size - 1)
        fraction = d.to(tl.float32) * 0.0
    else:  # (d + 1/2) size / new_size - 1/2, in integers: twice / (2 new_size) - 1
        twice = (2 * d + 1) * size + new_size
        before = twice // (2 * new_size) - 1
        fraction = (twice - (before + 1) * 2 * new_size).to(tl.float32) * scale
    return before, fraction


@triton.jit
def _tap(f, T: tl.constexpr, TAPS: tl.constexpr):
    """Weight of tap T at the fraction ``f``; the cubic kernel has a = -3/4."""
    g = f if T < TAPS // 2 else 1.0 - f  # as far from the cell as the tap is
    if TAPS == 1:
        weight = 1.0 + f
    elif TAPS == 2:
        weight = 1.0 - g
    elif T % 3 == 0:  # the outer two
        weight = -0.75 * g * (1.0 - g) * (1.0 - g)
    else:
        weight = (1.25 * g - 2.25) * g * g + 1.0
    return weight


@triton.jit
def _axes_kernel(
    axes_ptr,  # [h, H] then [w, W] float32: what each pixel reads of each cell
    H,
    W,
    h,
    w,
    scale_y,
    scale_x,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    along_x = at >= h * H
    size, new_size = tl.where(along_x, w, h), tl.where(along_x, W, H)
    at_axis = at - along_x.to(tl.int32) * (h * H)
    cell, d = at_axis // new_size, at_axis % new_size
    before, f = _source(d, size, new_size, tl.where(along_x, scale_x, scale_y), TAPS)
    total = tl.zeros([BLOCK], tl.float32)
    for t in tl.static_range(TAPS):
        read = tl.minimum(tl.maximum(before + t - (TAPS - 1) // 2, 0), size - 1)  # beyond the map, its border
        total += tl.where(read == cell, _tap(f, t, TAPS), 0.0)
    tl.store(axes_ptr + at, total, mask=at < h * H + w * W)


# 2. Launcher
def axis_weights(labels: Tensor, grid: tuple[int, int], mode: str) -> Tensor:
    """The matrices of interpolation from ``grid`` to the labels: [h, H] then [w, W] float32, one after the other."""
    (_, H, W), (h, w) = labels.shape, grid
    axes = labels.new_empty(h * H + w * W, dtype=torch.float32)
    constants = {"TAPS": TAPS[mode], "BLOCK": 256, "num_warps": 4, "enable_fp_fusion": True}
    scales = (h / H, w / W) if mode == "nearest" else (0.5 / H, 0.5 / W)
    _axes_kernel[(triton.cdiv(axes.numel(), 256),)](axes, H, W, h, w, *scales, **constants)
    return axes


# 3. What the standard shapes launch
def aot_cases(arch: int = OLDEST) -> list[Case]:
    """28 x 28 cells under labels of 224 x 224 pixels."""
    return [upsampled_case(_axes_kernel, {"TAPS": 4, "BLOCK": 256, "num_warps": 4, "enable_fp_fusion": True})]


def upsampled_case(kernel, constants: dict, mode: str = "", dtype: str = "bf16", C: int = 384) -> Case:
    """One specialisation of a kernel over an interpolated map, for 28 x 28 cells and 224 x 224 pixels."""
    types = dict.fromkeys(("labels", "box", "cell", "size"), "i32") | dict.fromkeys(("axes", "weight", "count"), "fp32")
    types |= dict.fromkeys(("x", "mean", "grad_mean", "grad"), dtype) | {"add": None, "base": None}
    known = {"C": C, "h": 28, "w": 28, "H": 224, "W": 224, "stride_x": 1, "labels_stride_x": 1}
    known |= map_strides("x", 28, C, True) | map_strides("add", 28, C, True)
    known |= {"grad_mean_stride_b": 196 * C, "grad_mean_stride_s": C, "grad_mean_stride_c": 1}
    known |= {"grad_stride_b": 784 * C, "grad_stride_p": C, "grad_stride_c": 1}
    return make_case(kernel, types, known, constants, f"{mode} {dtype}" if mode else "")
