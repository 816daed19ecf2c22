"""What the kernels of ``segment_mean`` share: maps in any layout, and pixels in the order of their labels.

The order is a stable counting sort of each image without atomics. Up to 4096 pixels one program sorts an image. Larger
images are cut into tiles: count the labels of each tile, add up the counts of the tiles before, sort each tile and
write it to its places.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from cast_kernels.kernels._aot import Case
from cast_kernels.kernels._tiles import OLDEST, architecture, tiles

SORTED_AT_ONCE = 4096


# 1. Maps in any layout
@triton.jit
def load_labels(labels_ptr, p, S, P, W, stride_y, stride_x):
    """Labels of the pixels ``p`` as int32; S where out of range or past the last pixel."""
    offset = (p // W).to(tl.int64) * stride_y + (p % W).to(tl.int64) * stride_x
    label = tl.load(labels_ptr + offset, mask=p < P, other=0).to(tl.int64)
    return tl.where((p < P) & (label >= 0) & (label < S), label, S).to(tl.int32)


@triton.jit
def row_offset(p, W, stride_y, stride_x, FLAT: tl.constexpr):
    """Offset of pixel ``p`` of a map; FLAT: its rows follow each other, so that one stride does."""
    if FLAT:  # noqa: SIM108 - the other branch is not compiled
        offset = p.to(tl.int64) * stride_x
    else:
        offset = (p // W).to(tl.int64) * stride_y + (p % W).to(tl.int64) * stride_x
    return offset


@triton.jit
def per_row(v, CHANNELS_LAST: tl.constexpr):
    """One value per row of a tile that is rows x channels, or channels x rows."""
    return tl.expand_dims(v, -1) if CHANNELS_LAST else tl.expand_dims(v, -2)


@triton.jit
def per_channel(v, CHANNELS_LAST: tl.constexpr):
    """One value per channel of such a tile."""
    return v[None, :] if CHANNELS_LAST else v[:, None]


# 2. Pixels in the order of their labels
@triton.jit
def _order_kernel(
    labels_ptr,  # [B, H, W] integer, any strides
    order_ptr,  # [B, P] int32: the pixels, sorted by label, then by position
    start_ptr,  # [B, S + 1] int32: where each segment starts in the order; the last is where it ends
    count_ptr,  # [B, S] float32
    P,
    S,
    W,
    stride_b,
    stride_y,
    stride_x,
    BLOCK_P: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    p = tl.arange(0, BLOCK_P)
    label = load_labels(labels_ptr + b * stride_b, p, S, P, W, stride_y, stride_x)
    key = tl.sort(label * BLOCK_P + p)  # keys differ, so the order is that of a stable sort
    tl.store(order_ptr + b * P + p, key % BLOCK_P, mask=p < P)

    s = tl.arange(0, BLOCK_S)
    size = tl.histogram(label, BLOCK_S)
    tl.store(start_ptr + b * (S + 1) + s, tl.cumsum(size, 0) - size, mask=s <= S)
    tl.store(count_ptr + b * S + s, size.to(tl.float32), mask=s < S)


@triton.jit
def _tile_counts_kernel(
    labels_ptr,  # [B, H, W] integer, any strides
    below_ptr,  # [B, T, S + 1] int32: pixels of the tile whose label is less than s
    P,
    S,
    W,
    stride_b,
    stride_y,
    stride_x,
    T,
    BLOCK_P: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    tile = tl.program_id(0).to(tl.int64)  # over all images
    p = (tile % T).to(tl.int32) * BLOCK_P + tl.arange(0, BLOCK_P)
    label = load_labels(labels_ptr + tile // T * stride_b, p, S, P, W, stride_y, stride_x)
    s = tl.arange(0, BLOCK_S)
    size = tl.histogram(label, BLOCK_S)
    tl.store(below_ptr + tile * (S + 1) + s, tl.cumsum(size, 0) - size, mask=s <= S)


@triton.jit
def _tile_starts_kernel(
    below_ptr,  # [B, T, S + 1] int32
    base_ptr,  # [B, T, S] int32: add the rank in the tile to get the place in the order
    start_ptr,  # [B, S + 1] int32
    count_ptr,  # [B, S] float32
    S,
    T,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    blocks = tl.cdiv(S + 1, BLOCK_S)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    s = tl.program_id(0) % blocks * BLOCK_S + tl.arange(0, BLOCK_S)
    below_ptr += b * T * (S + 1)
    start = tl.zeros([BLOCK_S], tl.int32)
    for t0 in range(0, T, BLOCK_T):
        t = t0 + tl.arange(0, BLOCK_T)
        offset = t.to(tl.int64)[:, None] * (S + 1) + s[None, :]
        start += tl.sum(tl.load(below_ptr + offset, mask=(t < T)[:, None] & (s <= S)[None, :], other=0), 0)
    tl.store(start_ptr + b * (S + 1) + s, start, mask=s <= S)

    earlier = tl.zeros([BLOCK_S], tl.int32)  # pixels of the segment in the tiles before
    for t0 in range(0, T, BLOCK_T):
        t = t0 + tl.arange(0, BLOCK_T)
        offset = t.to(tl.int64)[:, None] * (S + 1) + s[None, :]
        mask = (t < T)[:, None] & (s < S)[None, :]
        below = tl.load(below_ptr + offset, mask=mask, other=0)
        size = tl.load(below_ptr + offset + 1, mask=mask, other=0) - below
        base = start[None, :] + earlier[None, :] + tl.cumsum(size, 0) - size - below
        tl.store(base_ptr + b * T * S + t.to(tl.int64)[:, None] * S + s[None, :], base, mask=mask)
        earlier += tl.sum(size, 0)
    tl.store(count_ptr + b * S + s, earlier.to(tl.float32), mask=s < S)


@triton.jit
def _tile_order_kernel(
    labels_ptr,  # [B, H, W] integer, any strides
    base_ptr,  # [B, T, S] int32
    order_ptr,  # [B, P] int32, written for pixels with a label in range
    P,
    S,
    W,
    stride_b,
    stride_y,
    stride_x,
    T,
    BLOCK_P: tl.constexpr,
):
    tile = tl.program_id(0).to(tl.int64)
    b = tile // T
    first = (tile % T).to(tl.int32) * BLOCK_P
    i = tl.arange(0, BLOCK_P)
    label = load_labels(labels_ptr + b * stride_b, first + i, S, P, W, stride_y, stride_x)
    key = tl.sort(label * BLOCK_P + i)
    label = key // BLOCK_P
    base = tl.load(base_ptr + tile * S + label, mask=label < S, other=0)
    tl.store(order_ptr + b * P + base + i, first + key % BLOCK_P, mask=label < S)


# 3. Launchers
@dataclass(frozen=True)
class Rows:
    """The rows of a map that each segment is the sum of.

    Attributes:
        row: Pixels or cells, int32: [B, P] in the order of the segments, or [B, S, capacity] beside ``weight``.
        start: Where each segment starts in ``row``, [B, S + 1] int32; beside ``weight`` the length of its list, [B, S].
        count: Pixels per segment, [B, S] float32.
        weight: [B, S, capacity] float32, or None where every row weighs one.
    """

    row: Tensor
    start: Tensor
    count: Tensor
    weight: Tensor | None = None


def order_pixels(labels: Tensor, num_segments: int) -> Rows:
    """Order the pixels of ``labels`` [B, H, W] by segment, in one launch up to 4096 pixels and in three above."""
    B, H, W = labels.shape
    P, S = H * W, num_segments
    order = labels.new_empty(B, P, dtype=torch.int32)
    start = labels.new_empty(B, S + 1, dtype=torch.int32)
    count = labels.new_empty(B, S, dtype=torch.float32)
    sizes = (P, S, W, *labels.stride())
    arch = architecture(labels.device)
    if P <= SORTED_AT_ONCE:
        _order_kernel[(B,)](labels, order, start, count, *sizes, **_order_constants(arch, P, S))
        return Rows(order, start, count)
    constants = _tile_constants(arch, P, S)
    T = triton.cdiv(P, constants["tile"]["BLOCK_P"])
    below = labels.new_empty(B, T, S + 1, dtype=torch.int32)
    base = labels.new_empty(B, T, S, dtype=torch.int32)
    _tile_counts_kernel[(B * T,)](labels, below, *sizes, T, **constants["counts"])
    blocks = triton.cdiv(S + 1, constants["starts"]["BLOCK_S"])
    _tile_starts_kernel[(B * blocks,)](below, base, start, count, S, T, **constants["starts"])
    _tile_order_kernel[(B * T,)](labels, base, order, *sizes, T, **constants["tile"])
    return Rows(order, start, count)


def _order_constants(arch: int, P: int, S: int) -> dict:
    pixels, block_s = triton.next_power_of_2(P), triton.next_power_of_2(S + 1)
    warps = {"num_warps": min(32, max(4, max(pixels, block_s) // 256))}
    chosen = {"BLOCK_S": block_s, "enable_fp_fusion": True} | tiles("segment_mean_order", arch, warps, P=P, S=S)
    # A pixel for each thread at least: the histogram of triton 3.6 counts the copies that surplus threads hold.
    return chosen | {"BLOCK_P": max(32 * chosen["num_warps"], pixels)}


def _tile_constants(arch: int, P: int, S: int) -> dict[str, dict]:
    chosen = tiles("segment_mean_order_tile", arch, {"BLOCK_P": 1024, "num_warps": 4}, P=P, S=S)
    tile = chosen | {"enable_fp_fusion": True}
    block_s = triton.next_power_of_2(S + 1)
    counts = tile | {"BLOCK_S": block_s, "num_warps": min(32, max(chosen["num_warps"], block_s // 256))}
    return {"tile": tile, "counts": counts, "starts": {"BLOCK_T": 32, "BLOCK_S": 32, "enable_fp_fusion": True}}


def is_flat(x: Tensor) -> bool:
    """Whether the rows of a map [B, H, W, C] follow each other in memory, so that pixels have one stride."""
    return x.shape[1] == 1 or x.stride(1) == x.shape[2] * x.stride(2)


def add_strides(add: Tensor | None) -> tuple[int, ...]:
    """Strides of a map to add; a batch of 1 is shared."""
    if add is None:
        return (0, 0, 0, 0)
    return (0 if add.shape[0] == 1 else add.stride(0), *add.stride()[1:])


# 4. What the standard shapes launch
def aot_cases(arch: int = OLDEST) -> list[Case]:
    """Labels of 196 segments: 28 x 28 and 56 x 56 pixels sorted at once, 224 x 224 in tiles."""
    tiled = _tile_constants(arch, 224 * 224, 196)
    return [
        _order_case(arch, "i32", 28),
        _order_case(arch, "u8", 56),
        _labels_case(_tile_counts_kernel, tiled["counts"]),
        _labels_case(_tile_starts_kernel, tiled["starts"]),
        _labels_case(_tile_order_kernel, tiled["tile"]),
    ]


def _order_case(arch: int, labels: str, side: int) -> Case:
    constants = _order_constants(arch, side * side, 196)
    return _labels_case(_order_kernel, constants, labels, f"{side} x {side} {labels}")


def _labels_case(kernel, constants: dict, labels: str = "i32", name: str = "224 x 224") -> Case:
    types = {"labels": labels, "order": "i32", "start": "i32", "count": "fp32", "below": "i32", "base": "i32"}
    return make_case(kernel, types, {"stride_x": 1}, constants, name)


def map_strides(name: str, side: int, C: int, last: bool) -> dict[str, int]:
    """Strides of a square map [B, side, side, C], as arguments of a kernel."""
    pixel, channel = (C, 1) if last else (1, side * side)
    strides = {"b": side * side * C, "y": side * pixel, "x": pixel, "c": channel}
    return {f"{name}_stride_{axis}": stride for axis, stride in strides.items()}


def make_case(kernel, types: dict[str, str | None], known: dict[str, int], constants: dict, name: str) -> Case:
    """A Case as the JIT would specialise it.

    Args:
        kernel: The kernel; what it has no argument for is left out.
        types: Element type of each pointer, without ``_ptr``; None for a tensor that is absent.
        known: Integers folded into the code, for the sake of those that the JIT finds to be 1 or multiples of 16.
        constants: What the launcher passes by name.
        name: What the case stands for.
    """
    names = kernel.arg_names
    known = {key: value for key, value in known.items() if key in names}
    known |= {key: value for key, value in constants.items() if key in names}
    known |= {f"{key}_ptr": None for key, value in types.items() if value is None and f"{key}_ptr" in names}
    signature = {f"{key}_ptr": f"*{value}" for key, value in types.items() if value and f"{key}_ptr" in names}
    rest = [key for key in names if key not in known and key not in signature]
    signature |= {key: "fp32" if key.startswith("scale") else "i32" for key in rest}
    options = {key: value for key, value in constants.items() if key not in names}
    return Case(kernel, signature, known, options, f"{kernel.__name__} {name}".strip())
