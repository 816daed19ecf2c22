"""Triton kernels of ``segment_mean``, and the launchers behind it.

Forward, where map and labels share a grid: the pixels of each image are put in the order of their labels (a stable
counting sort of small integers, without atomics), then each program sums the rows of a few segments for a slice of the
channels, so that every byte of the map is read once. A map to interpolate goes through the same sum, over weighted
cells instead of pixels (``segment_mean_upsampled``). Backward: each pixel fetches the gradient of its segment.

Every sum has an order fixed by shapes and alignment, so results are bitwise the same from run to run; a NaN reaches
its own segment only. FP fusion is on in all kernels: where a product is summed, one rounding instead of two, and stated
here so that results do not follow Triton's default.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cast_kernels.kernels import segment_mean_upsampled, segment_mean_upsampled_backward
from cast_kernels.kernels._aot import Case
from cast_kernels.kernels._tiles import OLDEST, architecture, tiles
from cast_kernels.kernels.segment_mean_axes import axis_weights
from cast_kernels.kernels.segment_mean_rows import (
    Rows,
    add_strides,
    is_flat,
    load_labels,
    make_case,
    map_strides,
    order_pixels,
    per_channel,
    per_row,
    row_offset,
)
from cast_kernels.segment_mean import empty_map, is_channels_first

IMAGES_PER_SUM = 16  # the gradient of a shared map is summed over so many images in a program, then over programs


# 1. Sum of rows per segment: of the pixels in that order, or of weighted cells
@triton.jit
def _entry(row_ptr, weight_ptr, at, end):
    """Rows to sum and their weights, which are zero past the end."""
    row = tl.load(row_ptr + at, mask=at < end, other=0)
    if weight_ptr is None:  # noqa: SIM108 - the other branch is not compiled
        weight = (at < end).to(tl.float32)
    else:
        weight = tl.load(weight_ptr + at, mask=at < end, other=0.0)
    return row, weight


@triton.jit
def _values(map_ptr, row, weight, in_c, W, stride_y, stride_x, FLAT: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Rows of a map, zero where the weight is: what has no weight is not read, be it NaN."""
    offset = per_row(row_offset(row, W, stride_y, stride_x, FLAT), CHANNELS_LAST)
    return tl.load(map_ptr + offset, mask=per_row(weight != 0.0, CHANNELS_LAST) & in_c, other=0.0)


@triton.jit
def _sum_kernel(
    x_ptr,  # [B, h, w, C], any strides
    add_ptr,  # [B or 1, h, w, C], any strides, or None
    row_ptr,  # int32 pixels of the map: [B, P] by segment, or [B, S, CAPACITY] with weights
    weight_ptr,  # [B, S, CAPACITY] float32, or None
    start_ptr,  # [B, S + 1] int32; with weights [B, S], how many rows each segment has
    count_ptr,  # [B, S] float32
    base_ptr,  # [B, S, C] float32, added to the mean, or None
    mean_ptr,  # [B, S, C]
    P,
    S,
    C,
    W,
    x_stride_b,
    x_stride_y,
    x_stride_x,
    x_stride_c,
    add_stride_b,
    add_stride_y,
    add_stride_x,
    add_stride_c,
    CAPACITY: tl.constexpr,
    X_FLAT: tl.constexpr,
    ADD_FLAT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LANES: tl.constexpr,  # rows of one segment that are summed side by side
):
    c_blocks = tl.cdiv(C, BLOCK_C)
    s_blocks = tl.cdiv(S, BLOCK_S)
    program = tl.program_id(0)
    b = (program // (c_blocks * s_blocks)).to(tl.int64)
    c = program % c_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    r = tl.arange(0, BLOCK_S * LANES)
    first_s = program // c_blocks % s_blocks * BLOCK_S
    s = first_s + r // LANES
    if weight_ptr is None:
        row_ptr += b * P
        start = tl.load(start_ptr + b * (S + 1) + s, mask=s < S, other=0)
        end = tl.load(start_ptr + b * (S + 1) + s + 1, mask=s < S, other=0)
    else:
        row_ptr += b * S * CAPACITY
        weight_ptr += b * S * CAPACITY
        size = tl.load(start_ptr + b * S + s, mask=s < S, other=0)
        start = s * CAPACITY
        end = start + tl.where(size <= CAPACITY, size, 0)  # longer lists are not complete: another kernel's
    x_ptr += b * x_stride_b
    if add_ptr is not None:
        add_ptr += b * add_stride_b

    c_across = per_channel(c, CHANNELS_LAST).to(tl.int64)
    x_ptr += c_across * x_stride_c
    if add_ptr is not None:
        add_ptr += c_across * add_stride_c
    in_c = c_across < C
    total = tl.zeros([BLOCK_S * LANES, BLOCK_C] if CHANNELS_LAST else [BLOCK_C, BLOCK_S * LANES], tl.float32)
    for i in range(0, tl.max(end - start), 4 * LANES):  # all loads stand before the sums, so that four are in flight
        at = start + i + r % LANES
        row0, weight0 = _entry(row_ptr, weight_ptr, at, end)
        row1, weight1 = _entry(row_ptr, weight_ptr, at + LANES, end)
        row2, weight2 = _entry(row_ptr, weight_ptr, at + 2 * LANES, end)
        row3, weight3 = _entry(row_ptr, weight_ptr, at + 3 * LANES, end)
        x0 = _values(x_ptr, row0, weight0, in_c, W, x_stride_y, x_stride_x, X_FLAT, CHANNELS_LAST)
        x1 = _values(x_ptr, row1, weight1, in_c, W, x_stride_y, x_stride_x, X_FLAT, CHANNELS_LAST)
        x2 = _values(x_ptr, row2, weight2, in_c, W, x_stride_y, x_stride_x, X_FLAT, CHANNELS_LAST)
        x3 = _values(x_ptr, row3, weight3, in_c, W, x_stride_y, x_stride_x, X_FLAT, CHANNELS_LAST)
        if add_ptr is not None:
            x0 = x0.to(tl.float32)
            x1 = x1.to(tl.float32)
            x2 = x2.to(tl.float32)
            x3 = x3.to(tl.float32)
            x0 += _values(add_ptr, row0, weight0, in_c, W, add_stride_y, add_stride_x, ADD_FLAT, CHANNELS_LAST)
            x1 += _values(add_ptr, row1, weight1, in_c, W, add_stride_y, add_stride_x, ADD_FLAT, CHANNELS_LAST)
            x2 += _values(add_ptr, row2, weight2, in_c, W, add_stride_y, add_stride_x, ADD_FLAT, CHANNELS_LAST)
            x3 += _values(add_ptr, row3, weight3, in_c, W, add_stride_y, add_stride_x, ADD_FLAT, CHANNELS_LAST)
        total += per_row(weight0, CHANNELS_LAST) * x0
        total += per_row(weight1, CHANNELS_LAST) * x1
        total += per_row(weight2, CHANNELS_LAST) * x2
        total += per_row(weight3, CHANNELS_LAST) * x3

    if LANES > 1:
        if CHANNELS_LAST:
            total = tl.sum(tl.reshape(total, [BLOCK_S, LANES, BLOCK_C]), 1)
        else:
            total = tl.sum(tl.reshape(total, [BLOCK_C, BLOCK_S, LANES]), 2)
    s = first_s + tl.arange(0, BLOCK_S)
    written = s < S
    if weight_ptr is not None:
        written &= tl.load(start_ptr + b * S + s, mask=s < S, other=0) <= CAPACITY
    count = tl.load(count_ptr + b * S + s, mask=s < S, other=0.0)
    mask = per_row(written, CHANNELS_LAST) & (c_across < C)
    offset = (b * S + per_row(s, CHANNELS_LAST)) * C + c_across
    mean = tl.div_rn(total, tl.zeros_like(total) + tl.maximum(per_row(count, CHANNELS_LAST), 1.0))
    if base_ptr is not None:
        mean += tl.load(base_ptr + offset, mask=mask, other=0.0)
    tl.store(mean_ptr + offset, mean.to(mean_ptr.dtype.element_ty), mask=mask)


# 2. Gradient: each pixel fetches the gradient of its segment over the count
@triton.jit(do_not_specialize=["B"])  # it follows the batch: no compilation for each
def _fetch_kernel(
    grad_mean_ptr,  # [B, S, C], any strides
    labels_ptr,  # [B, H, W] integer, any strides
    count_ptr,  # [B, S] float32
    grad_ptr,  # [ceil(B / IMAGES), H, W, C]: each the sum over IMAGES images
    B,
    P,
    S,
    C,
    W,
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
    CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    UNROLL: tl.constexpr,
):
    c_blocks = tl.cdiv(C, BLOCK_C)
    p_blocks = tl.cdiv(P, BLOCK_P)
    program = tl.program_id(0)
    group = (program // (c_blocks * p_blocks)).to(tl.int64)
    c = program % c_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    p = program // c_blocks % p_blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    p_across = per_row(p, CHANNELS_LAST).to(tl.int64)
    c_across = per_channel(c, CHANNELS_LAST).to(tl.int64)
    total = tl.zeros_like((p_across + c_across).to(tl.float32))
    for i in range(0, IMAGES, UNROLL):
        for u in tl.static_range(UNROLL):
            b = group * IMAGES + i + u
            limit = tl.where(b < B, P, 0)
            label = load_labels(labels_ptr + b * labels_stride_b, p, S, limit, W, labels_stride_y, labels_stride_x)
            count = tl.load(count_ptr + b * S + label, mask=label < S, other=1.0)
            share = tl.div_rn(tl.full([BLOCK_P], 1.0, tl.float32), count)
            offset = b * grad_mean_stride_b + label.to(tl.int64) * grad_mean_stride_s
            offset = per_row(offset, CHANNELS_LAST) + c_across * grad_mean_stride_c
            mask = per_row(label < S, CHANNELS_LAST) & (c_across < C)
            value = tl.load(grad_mean_ptr + offset, mask=mask, other=0.0).to(tl.float32)
            total += value * per_row(share, CHANNELS_LAST)
    mask = (p_across < P) & (c_across < C)
    offset = group * grad_stride_b + p_across * grad_stride_p
    offset += c_across * grad_stride_c
    tl.store(grad_ptr + offset, total.to(grad_ptr.dtype.element_ty), mask=mask)


# 3. Launchers
def forward(
    x: Tensor,
    labels: Tensor,
    num_segments: int,
    add: Tensor | None = None,
    interpolation: str | None = None,
    add_interpolation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """``segment_mean`` by kernels: mean [B, S, C] and count [B, S]; arguments as the registered op takes them."""
    B, C, S = x.shape[0], x.shape[3], num_segments
    mean = x.new_empty(B, S, C, dtype=x.dtype if add is None else torch.promote_types(x.dtype, add.dtype))
    if labels.numel() == 0:
        return mean.zero_(), x.new_zeros(B, S, dtype=torch.float32)
    if C == 0:
        return mean, order_pixels(labels, S).count
    mode = _mode(x, labels, interpolation)
    base = None
    if add is not None and (add.shape[1:3] != x.shape[1:3] or _mode(add, labels, add_interpolation) != mode):
        base = torch.empty_like(mean, dtype=torch.float32)  # the maps have different rows: one after the other
        _average(add.expand(B, -1, -1, -1), labels, _mode(add, labels, add_interpolation), base)
        add = None
    return mean, _average(x, labels, mode, mean, add, base)


def _mode(x: Tensor, labels: Tensor, interpolation: str | None) -> str | None:
    """On equal grids every interpolation is the identity."""
    return None if x.shape[1:3] == labels.shape[1:] else interpolation


def _average(
    x: Tensor,  # [B, h, w, C]
    labels: Tensor,  # [B, H, W]
    mode: str | None,
    mean: Tensor,  # [B, S, C], written
    add: Tensor | None = None,  # [B or 1, h, w, C]
    base: Tensor | None = None,  # [B, S, C] float32
) -> Tensor:
    """Write ``mean(x + add) + base`` and return the count."""
    S = mean.shape[1]
    if mode is None:
        rows = order_pixels(labels, S)
        _sum_rows(x, rows, mean, add, base)
    else:
        boxes = segment_mean_upsampled.segment_boxes(labels, S)
        axes = axis_weights(labels, x.shape[1:3], mode)
        rows = segment_mean_upsampled.weigh_cells(labels, boxes, axes, x.shape[1:3], mode)
        _sum_rows(x, rows, mean, add, base)
        segment_mean_upsampled.sum_long_lists(x, labels, boxes, axes, rows, mode, mean, add, base)
    return rows.count


def _sum_rows(x: Tensor, rows: Rows, mean: Tensor, add: Tensor | None, base: Tensor | None) -> None:
    (B, h, w, C), S = x.shape, mean.shape[1]
    capacity = 0 if rows.weight is None else rows.weight.shape[2]
    constants = _sum_constants(architecture(x.device), B, h * w, S, C, capacity, not is_channels_first(x))
    grid = (B * triton.cdiv(S, constants["BLOCK_S"]) * triton.cdiv(C, constants["BLOCK_C"]),)
    _sum_kernel[grid](
        *(x, add, rows.row, rows.weight, rows.start, rows.count, base, mean),
        *(h * w, S, C, w, *x.stride(), *add_strides(add)),
        X_FLAT=is_flat(x),
        ADD_FLAT=add is None or is_flat(add),
        **constants,
    )


def _sum_constants(arch: int, B: int, P: int, S: int, C: int, capacity: int, last: bool) -> dict:
    """Tiles; sums are ordered by LANES, which follows from the shape of one image: no result depends on B."""
    each = triton.next_power_of_2(triton.cdiv(P, S))  # rows per segment
    if not last:  # lanes along the pixels of a segment, many of which share a sector of memory
        lanes = min(32, each)
        tile = {"LANES": lanes, "BLOCK_S": max(1, 128 // lanes), "BLOCK_C": 16, "num_warps": 4}
    elif capacity:  # neighbouring segments share cells: many segments to a program, so that they meet in its L1
        small = B * S * C < 32 * 196 * 384
        tile = {"LANES": 1, "BLOCK_S": 4 if small else 32, "BLOCK_C": 64, "num_warps": 1 if small else 8}
    else:
        lanes = min(8, max(1, each // 8))
        tile = {"LANES": lanes, "BLOCK_S": 8 // lanes, "BLOCK_C": 128, "num_warps": 4}
    tile["BLOCK_C"] = min(tile["BLOCK_C"], max(16, triton.next_power_of_2(C)))
    name = f"segment_mean_sum{'_weighted' if capacity else ''}{'' if last else '_channels_first'}"
    tile["maxnreg"] = 128 if last else 168  # with no limit ptxas saves registers, and waits for each load in turn
    fixed = {"CAPACITY": capacity, "CHANNELS_LAST": last, "enable_fp_fusion": True}
    return fixed | tiles(name, arch, tile, B=B, P=P, S=S, C=C)


def backward(
    grad_mean: Tensor,
    labels: Tensor,
    count: Tensor,
    shape: list[int],
    interpolation: str | None,
    dtype: torch.dtype,
    channels_first: bool,
) -> Tensor:
    """Gradient of ``x``, of shape [B or 1, h, w, C]; for a batch of 1 it is summed over the images."""
    grad = empty_map(grad_mean, shape, dtype, channels_first)
    if grad.numel() == 0 or labels.numel() == 0:
        return grad.zero_()
    images = 1 if shape[0] == labels.shape[0] else IMAGES_PER_SUM
    groups = triton.cdiv(labels.shape[0], images)
    part = grad
    if groups > shape[0]:
        part = empty_map(grad_mean, [groups, *shape[1:]], torch.float32, channels_first)
    mode = _mode(grad, labels, interpolation)
    if mode is None:
        _fetch(grad_mean, labels, count, part, images)
    else:
        segment_mean_upsampled_backward.fetch_cells(grad_mean, labels, count, part, images, mode)
    return grad if part is grad else grad.copy_(part.sum(0, keepdim=True))


def _fetch(grad_mean: Tensor, labels: Tensor, count: Tensor, grad: Tensor, images: int) -> None:
    (B, S, C), (groups, H, W, _) = grad_mean.shape, grad.shape
    constants = _fetch_constants(architecture(grad.device), H * W, C, images, not is_channels_first(grad))
    blocks = triton.cdiv(H * W, constants["BLOCK_P"]) * triton.cdiv(C, constants["BLOCK_C"])
    _fetch_kernel[(groups * blocks,)](
        *(grad_mean, labels, count, grad, B, H * W, S, C, W),
        *(*grad_mean.stride(), *labels.stride(), grad.stride(0), *grad.stride()[2:]),
        **constants,
    )


def _fetch_constants(arch: int, P: int, C: int, images: int, last: bool) -> dict:
    block_p, block_c = (16 if images == 1 else 4, 128) if last else (128, 16)
    block_c = min(block_c, max(16, triton.next_power_of_2(C)))
    tile = {"BLOCK_P": block_p, "BLOCK_C": block_c, "UNROLL": min(4, images), "num_warps": 4}
    name = f"segment_mean_fetch{'' if images == 1 else '_shared'}{'' if last else '_channels_first'}"
    fixed = {"IMAGES": images, "CHANNELS_LAST": last, "enable_fp_fusion": True}
    return fixed | tiles(name, arch, tile, P=P, C=C)


# 4. What the standard shapes launch
def aot_cases(arch: int = OLDEST) -> list[Case]:
    """196 segments, batch 256: maps of 28 x 28 x 384 and 224 x 224 x 768, both layouts, with and without ``add``."""
    return [
        *(_sum_case(arch, dtype) for dtype in ("fp32", "fp16", "bf16")),
        _sum_case(arch, "bf16", add="fp32", mean="fp32"),
        _sum_case(arch, "bf16", last=False),
        _sum_case(arch, "bf16", last=False, add="fp32", mean="fp32"),
        _sum_case(arch, "bf16", side=224, C=768),
        *(_sum_case(arch, dtype, capacity=128) for dtype in ("fp32", "fp16", "bf16")),
        _sum_case(arch, "bf16", capacity=128, add="fp32", mean="fp32"),
        _sum_case(arch, "bf16", capacity=128, base="fp32", mean="fp32", C=768),
        *(_fetch_case(arch, dtype) for dtype in ("fp32", "fp16", "bf16")),
        _fetch_case(arch, "bf16", last=False),
        _fetch_case(arch, "fp32", images=IMAGES_PER_SUM),
    ]


def _sum_case(
    arch: int,
    x: str,
    add: str | None = None,
    base: str | None = None,
    mean: str | None = None,
    capacity: int = 0,
    last: bool = True,
    side: int = 28,
    C: int = 384,
) -> Case:
    constants = _sum_constants(arch, 256, side * side, 196, C, capacity, last) | {"X_FLAT": True, "ADD_FLAT": True}
    types = {"x": x, "add": add, "row": "i32", "weight": "fp32" if capacity else None, "start": "i32", "count": "fp32"}
    types |= {"base": base, "mean": mean or x}
    known = map_strides("x", side, C, last) | map_strides("add", side, C, True) | {"P": side * side, "C": C, "W": side}
    parts = [
        f"{side} x {side} x {C} {x}",
        f"+ {add}" if add else "",
        "weighted" if capacity else "",
        "" if last else "channels first",
    ]
    return make_case(_sum_kernel, types, known, constants, " ".join(part for part in parts if part))


def _fetch_case(arch: int, dtype: str, images: int = 1, last: bool = True, side: int = 28, C: int = 384) -> Case:
    constants = _fetch_constants(arch, side * side, C, images, last)
    types = {"grad_mean": dtype, "labels": "i32", "count": "fp32", "grad": dtype}
    strides = map_strides("grad", side, C, last)
    known = {
        "C": C,
        "P": side * side,
        "W": side,
        "grad_mean_stride_b": 196 * C,
        "grad_mean_stride_s": C,
        "grad_mean_stride_c": 1,
    }
    known |= {
        "grad_stride_b": strides["grad_stride_b"],
        "grad_stride_p": strides["grad_stride_x"],
        "grad_stride_c": strides["grad_stride_c"],
    }
    name = f"{side} x {side} x {C} {dtype}, {images} at once{'' if last else ', channels first'}"
    return make_case(_fetch_kernel, types, known, constants, name)
