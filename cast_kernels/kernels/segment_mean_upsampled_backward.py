"""Gradient of ``segment_mean`` by a map that it interpolates: each cell looks through the pixels that read it.

A cell goes through the labels in its window of pixels in ascending order, so its sum has one order and needs no
atomics. FP fusion is on, as said in ``segment_mean``.
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from cast_kernels.kernels._aot import Case
from cast_kernels.kernels._tiles import OLDEST, architecture, tiles
from cast_kernels.kernels.segment_mean_axes import TAPS, axis_weights, upsampled_case


@triton.jit
def _first_reader(cell, size, new_size, TAPS: tl.constexpr):
    """The first pixel that reads ``cell``, or one before: src(d) > cell - TAPS / 2."""
    if TAPS == 1:
        first = tl.maximum(cell * new_size // size - 1, 0)
    else:
        twice = (2 * cell - TAPS + 1) * new_size - size
        first = tl.where(twice < 0, 0, tl.maximum(twice, 0) // (2 * size) + 1)
    return first


@triton.jit(do_not_specialize=["B"])  # it follows the batch: no compilation for each
def _fetch_cells_kernel(
    grad_mean_ptr,  # [B, S, C], any strides
    labels_ptr,  # [B, H, W] integer, any strides
    count_ptr,  # [B, S] float32
    axes_ptr,  # [h, H] then [w, W] float32
    grad_ptr,  # [ceil(B / IMAGES), h, w, C]: each the sum over IMAGES images
    B,
    S,
    C,
    H,
    W,
    h,
    w,
    grad_mean_stride_b,
    grad_mean_stride_s,
    grad_mean_stride_c,
    labels_stride_b,
    labels_stride_y,
    labels_stride_x,
    grad_stride_b,
    grad_stride_p,
    grad_stride_c,
    IMAGES: tl.constexpr,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,  # of the window of pixels that may read a cell
    COLUMNS: tl.constexpr,
    CELLS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    c_blocks = tl.cdiv(C, BLOCK_C)
    cell_blocks = tl.cdiv(h * w, CELLS)
    program = tl.program_id(0)
    group = (program // (c_blocks * cell_blocks)).to(tl.int64)
    c = (program % c_blocks * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)
    cell = program // c_blocks % cell_blocks * CELLS + tl.arange(0, CELLS)
    i, j = (cell // w)[:, None], (cell % w)[:, None]
    total = tl.zeros([CELLS, BLOCK_C], tl.float32)
    for b in range(group * IMAGES, tl.minimum(group * IMAGES + IMAGES, B)):
        for q0 in range(0, ROWS * COLUMNS, BLOCK_P):
            q = (q0 + tl.arange(0, BLOCK_P))[None, :]
            y = _first_reader(i, h, H, TAPS) + q // COLUMNS
            x = _first_reader(j, w, W, TAPS) + q % COLUMNS
            inside = (q < ROWS * COLUMNS) & (y < H) & (x < W) & (cell < h * w)[:, None]
            weight = tl.load(axes_ptr + i * H + y, mask=inside, other=0.0)
            weight *= tl.load(axes_ptr + h * H + j * W + x, mask=inside, other=0.0)
            inside &= weight != 0.0
            at = b * labels_stride_b + y.to(tl.int64) * labels_stride_y + x.to(tl.int64) * labels_stride_x
            label = tl.load(labels_ptr + at, mask=inside, other=0).to(tl.int64)
            label = tl.where(inside & (label >= 0) & (label < S), label, S).to(tl.int32)
            current = tl.min(label, 1)
            while tl.min(current, 0) < S:
                share = tl.sum(tl.where(label == current[:, None], weight, 0.0), 1)
                mask = current < S
                share = tl.div_rn(share, tl.load(count_ptr + b * S + current, mask=mask, other=1.0))
                offset = b * grad_mean_stride_b + current.to(tl.int64)[:, None] * grad_mean_stride_s
                offset += c[None, :] * grad_mean_stride_c
                value = tl.load(grad_mean_ptr + offset, mask=mask[:, None] & (c < C)[None, :], other=0.0)
                total += share[:, None] * value.to(tl.float32)
                current = tl.min(tl.where(label > current[:, None], label, S), 1)
    offset = group * grad_stride_b + cell.to(tl.int64)[:, None] * grad_stride_p + c[None, :] * grad_stride_c
    mask = (cell < h * w)[:, None] & (c < C)[None, :]
    tl.store(grad_ptr + offset, total.to(grad_ptr.dtype.element_ty), mask=mask)


def fetch_cells(grad_mean: Tensor, labels: Tensor, count: Tensor, grad: Tensor, images: int, mode: str) -> None:
    """Write ``grad`` [ceil(B / images), h, w, C]."""
    (B, H, W), (groups, h, w, C) = labels.shape, grad.shape
    constants = _fetch_constants(architecture(grad.device), (H, W), (h, w), C, images, mode)
    blocks = triton.cdiv(h * w, constants["CELLS"]) * triton.cdiv(C, constants["BLOCK_C"])
    _fetch_cells_kernel[(groups * blocks,)](
        *(grad_mean, labels, count, axis_weights(labels, (h, w), mode), grad, B, grad_mean.shape[1], C, H, W, h, w),
        *(*grad_mean.stride(), *labels.stride(), grad.stride(0), *grad.stride()[2:]),
        **constants,
    )


def _fetch_constants(arch: int, new: tuple[int, int], old: tuple[int, int], C: int, images: int, mode: str) -> dict:
    taps = TAPS[mode]
    # a cell is read by the pixels of an open interval, `taps` cells long; by one cell in float32 for "nearest"
    window = [min(n, -(-taps * n // o) + (2 if taps == 1 else 0)) for n, o in zip(new, old, strict=True)]
    tile = {"CELLS": 4, "BLOCK_P": min(1024, triton.next_power_of_2(math.prod(window))), "num_warps": 4}
    tile["BLOCK_C"] = min(512, max(16, triton.next_power_of_2(C)))
    fixed = {"IMAGES": images, "TAPS": taps, "ROWS": window[0], "COLUMNS": window[1], "enable_fp_fusion": True}
    return fixed | tiles("segment_mean_fetch_cells", arch, tile, taps=taps, rows=window[0], columns=window[1], C=C)


def aot_cases(arch: int = OLDEST) -> list[Case]:
    """28 x 28 cells under labels of 224 x 224 pixels, 196 segments, 384 channels."""
    return [
        *(_fetch_case(arch, mode, "bf16") for mode in TAPS),
        *(_fetch_case(arch, "bilinear", dtype) for dtype in ("fp32", "fp16")),
    ]


def _fetch_case(arch: int, mode: str, dtype: str) -> Case:
    return upsampled_case(_fetch_cells_kernel, _fetch_constants(arch, (224, 224), (28, 28), 384, 1, mode), mode, dtype)
