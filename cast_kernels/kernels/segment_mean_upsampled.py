"""Kernels of ``segment_mean`` over an interpolated map, which is never made.

Interpolation is linear, so a segment is a weighted sum of the few cells that its pixels read (about 17 at 8 x 8 pixels
a cell): the box of each segment; inside it the weights, R^T M C with the 0/1 map M of its pixels and the two matrices
R, C of separable interpolation, kept as a list of (cell, weight); then the sum of ``segment_mean``. A segment with more
cells than its list can hold is summed from weights made on the way: slower, as right.

Boxes and sizes are maxima and sums of integers, the only atomics, equal in any order. FP fusion is on, as said in
``segment_mean``.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from cast_kernels.kernels._aot import Case
from cast_kernels.kernels._tiles import OLDEST, architecture, tiles
from cast_kernels.kernels.segment_mean_axes import TAPS, upsampled_case
from cast_kernels.kernels.segment_mean_rows import Rows, add_strides, is_flat, row_offset


# 1. Boxes: a pixel that differs from its left and upper neighbours is the only kind that can be leftmost or uppermost
@triton.jit
def _boxes_kernel(
    labels_ptr,  # [B, H, W] integer, any strides
    box_ptr,  # [B, S, 5] int32, zeroed: H - first y, W - first x, last y + 1, last x + 1, pixels
    S,
    H,
    W,
    stride_b,
    stride_y,
    stride_x,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(H * W, BLOCK)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    p = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    y, x = p // W, p % W
    at = labels_ptr + b * stride_b + y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x
    inside = p < H * W
    label = tl.load(at, mask=inside, other=0)
    left = inside & (x > 0) & (tl.load(at - stride_x, mask=inside & (x > 0), other=0) == label)
    up = inside & (y > 0) & (tl.load(at - stride_y, mask=inside & (y > 0), other=0) == label)
    right = inside & (x < W - 1) & (tl.load(at + stride_x, mask=inside & (x < W - 1), other=0) == label)
    down = inside & (y < H - 1) & (tl.load(at + stride_y, mask=inside & (y < H - 1), other=0) == label)
    label = label.to(tl.int64)
    inside &= (label >= 0) & (label < S)
    box = box_ptr + (b * S + label) * 5
    tl.atomic_max(box, H - y, mask=inside & ~left & ~up, sem="relaxed")
    tl.atomic_max(box + 1, W - x, mask=inside & ~left & ~up, sem="relaxed")
    tl.atomic_max(box + 2, y + 1, mask=inside & ~right & ~down, sem="relaxed")
    tl.atomic_max(box + 3, x + 1, mask=inside & ~right & ~down, sem="relaxed")
    tl.atomic_add(box + 4, x + 1, mask=inside & ~right, sem="relaxed")  # a run of pixels: its end less its start
    tl.atomic_add(box + 4, -x, mask=inside & ~left, sem="relaxed")


# 2. Weights of CELLS x CELLS cells for one segment
@triton.jit
def _reading(first, end, d0, d1, size, new_size, TAPS: tl.constexpr):
    """Pixels within [d0, d1) that may read the cells [first, end)."""
    low = tl.maximum(first - TAPS // 2 - 1, 0) * new_size // size - 1
    high = (end + TAPS // 2 + 1) * new_size // size + 2
    return tl.maximum(low, d0), tl.minimum(high, d1)


@triton.jit
def _read(d0, d1, size, new_size, TAPS: tl.constexpr):
    """Cells [first, end) such that the pixels [d0, d1) read none but these."""
    first = d0 * size // new_size - TAPS // 2 - 1
    last = d1 * size // new_size + TAPS // 2 + 1
    return tl.maximum(first, 0), tl.minimum(last, size - 1) + 1


@triton.jit
def _load_box(box_ptr, H, W):
    return H - tl.load(box_ptr), W - tl.load(box_ptr + 1), tl.load(box_ptr + 2), tl.load(box_ptr + 3)


@triton.jit
def _split(v):
    """``v`` as the sum of two float16, exact to 2^-22 of it or 2^-25: tensor cores then multiply as if in float32."""
    high = v.to(tl.float16)
    return high, (v - high.to(tl.float32)).to(tl.float16)


@triton.jit
def _weights(
    labels_ptr,  # [H, W] of one image
    axes_ptr,  # [h, H] then [w, W] float32
    s,
    ci,  # first row and column of the cells
    cj,
    y0,  # box of the segment
    x0,
    y1,
    x1,
    H,
    W,
    h,
    w,
    stride_y,
    stride_x,
    TAPS: tl.constexpr,
    CELLS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Weights [CELLS, CELLS] of the cells from (ci, cj) on."""
    i, j = ci + tl.arange(0, CELLS), cj + tl.arange(0, CELLS)
    ya, yb = _reading(ci, ci + CELLS, y0, y1, h, H, TAPS)
    xa, xb = _reading(cj, cj + CELLS, x0, x1, w, W, TAPS)
    total = tl.zeros([CELLS, CELLS], tl.float32)
    for x_first in range(xa, xb, COLUMNS):
        x = x_first + tl.arange(0, COLUMNS)
        reads = (x < xb)[:, None] & (j < w)[None, :]
        column = tl.load(axes_ptr + h * H + x[:, None] + j[None, :] * W, mask=reads, other=0.0)
        column_high, column_low = _split(column)  # [COLUMNS, CELLS]
        for y_first in range(ya, yb, ROWS):
            y = y_first + tl.arange(0, ROWS)
            inside = (y < yb)[:, None] & (x < xb)[None, :]
            offset = (y.to(tl.int64) * stride_y)[:, None] + (x.to(tl.int64) * stride_x)[None, :]
            label = tl.load(labels_ptr + offset, mask=inside, other=0)
            pixel = (inside & (label == s)).to(tl.float16)  # products with 0 and 1 are exact
            part_high, part_low = _split(tl.dot(pixel, column_high, tl.dot(pixel, column_low)))  # [ROWS, CELLS]
            in_y = (i < h)[:, None] & (y < yb)[None, :]
            row_high, row_low = _split(tl.load(axes_ptr + i[:, None] * H + y[None, :], mask=in_y, other=0.0))
            total = tl.dot(row_high, part_high, tl.dot(row_high, part_low, tl.dot(row_low, part_high, total)))
    return total


@triton.jit
def _weigh_kernel(
    labels_ptr,  # [B, H, W] integer, any strides
    box_ptr,  # [B, S, 5] int32
    axes_ptr,  # [h, H] then [w, W] float32
    cell_ptr,  # [B, S, CAPACITY] int32: cells with a weight, as far as they fit
    weight_ptr,  # [B, S, CAPACITY] float32
    size_ptr,  # [B, S] int32: how many there are
    count_ptr,  # [B, S] float32: pixels of the segment
    S,
    H,
    W,
    h,
    w,
    stride_b,
    stride_y,
    stride_x,
    CAPACITY: tl.constexpr,
    TAPS: tl.constexpr,
    CELLS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    segment = tl.program_id(0).to(tl.int64)  # over all images
    labels_ptr += segment // S * stride_b
    s = (segment % S).to(tl.int32)
    y0, x0, y1, x1 = _load_box(box_ptr + segment * 5, H, W)
    i0, i1 = _read(y0, y1, h, H, TAPS)
    j0, j1 = _read(x0, x1, w, W, TAPS)
    size = y0 * 0
    for ci in range(i0, i1, CELLS):
        for cj in range(j0, j1, CELLS):
            weight = _weights(
                labels_ptr, axes_ptr, s, ci, cj, y0, x0, y1, x1,
                H, W, h, w, stride_y, stride_x, TAPS, CELLS, ROWS, COLUMNS,
            )  # fmt: skip
            cell = (ci + tl.arange(0, CELLS))[:, None] * w + (cj + tl.arange(0, CELLS))[None, :]
            weight = tl.reshape(weight, [CELLS * CELLS])
            cell = tl.reshape(cell, [CELLS * CELLS])
            used = (weight != 0.0).to(tl.int32)
            at = size + tl.cumsum(used, 0) - used
            mask = (used > 0) & (at < CAPACITY)
            tl.store(cell_ptr + segment * CAPACITY + at, cell, mask=mask)
            tl.store(weight_ptr + segment * CAPACITY + at, weight, mask=mask)
            size += tl.sum(used, 0)
    tl.store(size_ptr + segment, size)
    tl.store(count_ptr + segment, tl.load(box_ptr + segment * 5 + 4).to(tl.float32))


# 3. Segments whose list did not hold all cells
@triton.jit
def _long_lists_kernel(
    x_ptr,  # [B, h, w, C], any strides
    add_ptr,  # [B or 1, h, w, C], any strides, or None
    labels_ptr,  # [B, H, W] integer, any strides
    box_ptr,  # [B, S, 5] int32
    axes_ptr,  # [h, H] then [w, W] float32
    size_ptr,  # [B, S] int32
    count_ptr,  # [B, S] float32
    base_ptr,  # [B, S, C] float32, added to the mean, or None
    mean_ptr,  # [B, S, C]
    S,
    C,
    H,
    W,
    h,
    w,
    x_stride_b,
    x_stride_y,
    x_stride_x,
    x_stride_c,
    add_stride_b,
    add_stride_y,
    add_stride_x,
    add_stride_c,
    stride_b,
    stride_y,
    stride_x,
    CAPACITY: tl.constexpr,
    X_FLAT: tl.constexpr,
    ADD_FLAT: tl.constexpr,
    TAPS: tl.constexpr,
    CELLS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    c_blocks = tl.cdiv(C, BLOCK_C)
    s_blocks = tl.cdiv(S, BLOCK_S)
    program = tl.program_id(0)
    b = (program // (c_blocks * s_blocks)).to(tl.int64)
    c = (program % c_blocks * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)
    first_s = program // c_blocks % s_blocks * BLOCK_S
    s = first_s + tl.arange(0, BLOCK_S)
    longest = tl.max(tl.load(size_ptr + b * S + s, mask=s < S, other=0))
    last_s = tl.where(longest > CAPACITY, tl.minimum(first_s + BLOCK_S, S), first_s)
    for s in range(first_s, last_s):
        segment = b * S + s
        if tl.load(size_ptr + segment) > CAPACITY:
            y0, x0, y1, x1 = _load_box(box_ptr + segment * 5, H, W)
            i0, i1 = _read(y0, y1, h, H, TAPS)
            j0, j1 = _read(x0, x1, w, W, TAPS)
            total = tl.zeros([BLOCK_C], tl.float32)
            for ci in range(i0, i1, CELLS):
                for cj in range(j0, j1, CELLS):
                    weight = _weights(
                        labels_ptr + b * stride_b, axes_ptr, s, ci, cj, y0, x0, y1, x1,
                        H, W, h, w, stride_y, stride_x, TAPS, CELLS, ROWS, COLUMNS,
                    )  # fmt: skip
                    cell = (ci + tl.arange(0, CELLS))[:, None] * w + (cj + tl.arange(0, CELLS))[None, :]
                    weight = tl.reshape(weight, [CELLS * CELLS])
                    cell = tl.reshape(cell, [CELLS * CELLS])
                    mask = (weight != 0.0)[:, None] & (c < C)[None, :]
                    offset = row_offset(cell, w, x_stride_y, x_stride_x, X_FLAT)[:, None] + c[None, :] * x_stride_c
                    value = tl.load(x_ptr + b * x_stride_b + offset, mask=mask, other=0.0).to(tl.float32)
                    if add_ptr is not None:
                        offset = row_offset(cell, w, add_stride_y, add_stride_x, ADD_FLAT)[:, None]
                        offset += b * add_stride_b + c[None, :] * add_stride_c
                        value += tl.load(add_ptr + offset, mask=mask, other=0.0).to(tl.float32)
                    total += tl.sum(weight[:, None] * value, 0)
            mean = tl.div_rn(total, tl.zeros_like(total) + tl.load(count_ptr + segment))
            if base_ptr is not None:
                mean += tl.load(base_ptr + segment * C + c, mask=c < C, other=0.0)
            tl.store(mean_ptr + segment * C + c, mean.to(mean_ptr.dtype.element_ty), mask=c < C)


# 4. Launchers
def segment_boxes(labels: Tensor, num_segments: int) -> Tensor:
    """Boxes and sizes of all segments, [B, S, 5] int32, as ``_boxes_kernel`` writes them; zero for empty segments."""
    B, H, W = labels.shape
    boxes = labels.new_zeros(B, num_segments, 5, dtype=torch.int32)
    constants = {"enable_fp_fusion": True} | tiles(
        "segment_mean_boxes", architecture(labels.device), {"BLOCK": 1024, "num_warps": 4}, P=H * W
    )
    grid = (B * triton.cdiv(H * W, constants["BLOCK"]),)
    _boxes_kernel[grid](labels, boxes, num_segments, H, W, *labels.stride(), **constants)
    return boxes


def weigh_cells(labels: Tensor, boxes: Tensor, axes: Tensor, grid: tuple[int, int], mode: str) -> Rows:
    """The cells of a map of size ``grid`` that each segment is the weighted sum of, and the pixels it has."""
    (B, H, W), S = labels.shape, boxes.shape[1]
    constants = _weigh_constants(architecture(labels.device), *grid, S, mode)
    capacity = constants["CAPACITY"]
    cell = labels.new_empty(B, S, capacity, dtype=torch.int32)
    weight = labels.new_empty(B, S, capacity, dtype=torch.float32)
    size = labels.new_empty(B, S, dtype=torch.int32)
    count = labels.new_empty(B, S, dtype=torch.float32)
    _weigh_kernel[(B * S,)](
        *(labels, boxes, axes, cell, weight, size, count, S, H, W, *grid, *labels.stride()),
        **constants,
    )
    return Rows(cell, size, count, weight)


def sum_long_lists(
    x: Tensor,
    labels: Tensor,
    boxes: Tensor,
    axes: Tensor,
    rows: Rows,
    mode: str,
    mean: Tensor,
    add: Tensor | None,
    base: Tensor | None,
) -> None:
    """Write ``mean(x + add) + base`` of the segments whose cells did not fit into ``rows``."""
    (B, h, w, C), (_, H, W), S = x.shape, labels.shape, mean.shape[1]
    constants = _long_constants(architecture(x.device), h, w, S, mode)
    blocks = triton.cdiv(S, constants["BLOCK_S"]) * triton.cdiv(C, constants["BLOCK_C"])
    _long_lists_kernel[(B * blocks,)](
        *(x, add, labels, boxes, axes, rows.start, rows.count, base, mean, S, C, H, W, h, w),
        *(*x.stride(), *add_strides(add), *labels.stride()),
        X_FLAT=is_flat(x),
        ADD_FLAT=add is None or is_flat(add),
        **constants,
    )


def _capacity(h: int, w: int, S: int, mode: str) -> int:
    """Cells that a list holds: a square of 3.5 times the side of an average segment, and the taps around it."""
    side = 3.5 * math.sqrt(h * w / S) + TAPS[mode]
    return triton.next_power_of_2(min(h * w, math.ceil(side * side)))


def _weigh_constants(arch: int, h: int, w: int, S: int, mode: str) -> dict:
    fixed = {"CAPACITY": _capacity(h, w, S, mode), "TAPS": TAPS[mode], "CELLS": 16, "enable_fp_fusion": True}
    # no loads ahead (num_stages): registers are what limits how many segments a multiprocessor works on
    tile = {"ROWS": 16, "COLUMNS": 16, "num_warps": 1, "num_stages": 1, "maxnreg": 128}
    return fixed | tiles("segment_mean_weigh", arch, tile, h=h, w=w, S=S)


def _long_constants(arch: int, h: int, w: int, S: int, mode: str) -> dict:
    fixed = {"CAPACITY": _capacity(h, w, S, mode), "TAPS": TAPS[mode], "CELLS": 16, "enable_fp_fusion": True}
    return fixed | {
        "ROWS": 16,
        "COLUMNS": 16,
        "num_stages": 1,
        "BLOCK_S": 16,
        "BLOCK_C": 16,
        "num_warps": 4,
        "maxnreg": 168,
    }


# 5. What the standard shapes launch
def aot_cases(arch: int = OLDEST) -> list[Case]:
    """28 x 28 cells under labels of 224 x 224 pixels, 196 segments, 384 channels."""
    return [
        upsampled_case(_boxes_kernel, {"BLOCK": 1024, "num_warps": 4, "enable_fp_fusion": True}),
        *(upsampled_case(_weigh_kernel, _weigh_constants(arch, 28, 28, 196, mode), mode) for mode in TAPS),
        *(_long_case(arch, dtype) for dtype in ("fp32", "bf16")),
    ]


def _long_case(arch: int, dtype: str) -> Case:
    constants = _long_constants(arch, 28, 28, 196, "bicubic") | {"X_FLAT": True, "ADD_FLAT": True}
    return upsampled_case(_long_lists_kernel, constants, "bicubic", dtype)
