"""Triton kernels of ``labels_to_edges``, and their launcher.

A table of bits, one for each pair of segments, is filled by atomics on integers, whose result does not depend on their
order; whoever turns a bit on counts the edge for its row. Sums over the rows before say where each row's edges start,
and one program a row writes them out, in order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cast_kernels.kernels._aot import Case
from cast_kernels.kernels._tiles import OLDEST, architecture, tiles
from cast_kernels.kernels.segment_mean_rows import make_case
from cast_kernels.kernels.superpixel_summary import load_label

FUSION = False  # there is no product to fuse


@triton.jit
def _join(table_ptr, label, other, both, S, WORDS):
    """Turn on the bits of the pairs (label, other); ``table_ptr`` [S, 1 + WORDS]: edges of the row, then its bits."""
    low = tl.minimum(label, other)
    high = tl.maximum(label, other)
    row_ptr = table_ptr + low.to(tl.int64) * (1 + WORDS)
    word_ptr = row_ptr + 1 + high // 32
    bit = 1 << (high % 32)
    joined = both & (low != high) & (high < S)
    unseen = joined & ((tl.load(word_ptr, mask=joined, other=0) & bit) == 0)  # spares most atomics: borders are long
    before = tl.atomic_or(word_ptr, bit, mask=unseen, sem="relaxed")
    tl.atomic_add(row_ptr, 1, mask=unseen & ((before & bit) == 0), sem="relaxed")


@triton.jit
def _mark_kernel(
    labels_ptr,  # [B, H, W] integer, any strides
    table_ptr,  # [B, S, 1 + WORDS] int32, zeros before
    H,
    W,
    S,
    WORDS,
    stride_b,
    stride_y,
    stride_x,
    BLOCK_P: tl.constexpr,
):
    stretches = tl.cdiv(H * W, BLOCK_P)
    b = (tl.program_id(0) // stretches).to(tl.int64)
    p = tl.program_id(0) % stretches * BLOCK_P + tl.arange(0, BLOCK_P)
    y = p // W
    x = p % W
    inside = p < H * W
    labels_ptr += b * stride_b
    table_ptr += b * S * (1 + WORDS)
    label = load_label(labels_ptr, y, x, inside, S, stride_y, stride_x)
    has_right = inside & (x < W - 1)
    has_lower = inside & (y < H - 1)
    right = load_label(labels_ptr, y, x + 1, has_right, S, stride_y, stride_x)
    lower = load_label(labels_ptr, y + 1, x, has_lower, S, stride_y, stride_x)
    _join(table_ptr, label, right, has_right, S, WORDS)
    _join(table_ptr, label, lower, has_lower, S, WORDS)


@triton.jit
def _write_kernel(
    table_ptr,  # [B, S, 1 + WORDS] int32
    end_ptr,  # [B, S] int64: edges of this row and those before
    edges_ptr,  # [B, E, 2] int64
    S,
    E,
    WORDS,
    BLOCK_V: tl.constexpr,
):
    b = (tl.program_id(0) // S).to(tl.int64)
    u = tl.program_id(0) % S
    table_ptr += (b * S + u) * (1 + WORDS)
    edges_ptr += b * E * 2
    count = tl.load(table_ptr)
    if count > 0:
        slot = tl.load(end_ptr + b * S + u) - count
        for v0 in range(u // BLOCK_V * BLOCK_V, S, BLOCK_V):
            v = v0 + tl.arange(0, BLOCK_V)
            word = tl.load(table_ptr + 1 + v // 32, mask=v < S, other=0)
            joined = (word >> (v % 32)) & 1
            rank = tl.cumsum(joined, 0)
            at = slot + rank - 1
            mask = (joined == 1) & (at < E)
            tl.store(edges_ptr + at * 2, u, mask=mask)
            tl.store(edges_ptr + at * 2 + 1, v, mask=mask)
            slot += tl.sum(joined, 0)


def forward(labels: Tensor, num_segments: int, max_edges: int) -> tuple[Tensor, Tensor]:
    """Launch: edges [B, E, 2] and count [B], int64."""
    (B, H, W), S, E = labels.shape, num_segments, max_edges
    edges = labels.new_full((B, E, 2), -1, dtype=torch.int64)
    if labels.numel() == 0:
        return edges, labels.new_zeros(B, dtype=torch.int64)
    words = triton.cdiv(S, 32)
    table = labels.new_zeros(B, S, 1 + words, dtype=torch.int32)
    arch = architecture(labels.device)
    constants = _mark_constants(arch, H * W)
    grid = (B * triton.cdiv(H * W, constants["BLOCK_P"]),)
    _mark_kernel[grid](labels, table, H, W, S, words, *labels.stride(), **constants)
    end = table[..., 0].cumsum(1)
    _write_kernel[(B * S,)](table, end, edges, S, E, words, **_write_constants(arch, S))
    return edges, end[:, -1].clone()


def _mark_constants(arch: int, P: int) -> dict:
    chosen = tiles("labels_to_edges_mark", arch, {"BLOCK_P": 1024, "num_warps": 4}, P=P)
    return chosen | {"enable_fp_fusion": FUSION}


def _write_constants(arch: int, S: int) -> dict:
    chosen = tiles("labels_to_edges_write", arch, {"BLOCK_V": 256, "num_warps": 1}, S=S)
    return chosen | {"enable_fp_fusion": FUSION}


def aot_cases(arch: int = OLDEST) -> list[Case]:
    """224 x 224 pixels and 196 segments, labels of each dtype."""
    types = {"table": "i32", "end": "i64", "edges": "i64"}
    known = {"stride_x": 1}
    return [
        *(
            make_case(_mark_kernel, types | {"labels": dtype}, known, _mark_constants(arch, 224 * 224), dtype)
            for dtype in ("i32", "i64", "u8")
        ),
        make_case(_write_kernel, types, {}, _write_constants(arch, 196), "196 segments"),
    ]
