"""Farthest point sampling on the GPU: one launch makes a centred Gram matrix, one selects from it.

    |x_i - x_j|² = G_ii + G_jj - 2 G_ij,   G_ij = <z_i, z_j>,   z = x - (a vector near the mean)

A Gram matrix alone does not order tokens that lie close to each other. The exact mode therefore holds each minimum
distance as an interval: every entry of G has a bound on its error, made of what the split into bfloat16 leaves out and
of what the tensor cores may round away. A pick is taken where one interval alone reaches the best lower bound. Where
several do, their distances are computed from the tokens themselves; where many do (tight clusters, equal tokens), the
rest of the image is sampled from float64 distances, as is an image with infinite tokens.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cast_kernels.kernels._aot import Case
from cast_kernels.kernels._tiles import OLDEST, architecture, tiles
from cast_kernels.kernels.farthest_point_gram import SHAPES, block, case, distances, load_rows, strides_of

MOST = 32768  # tokens: up to there offsets within one Gram matrix and sums of indices fit 32 bits
FEW = 8  # candidates that are resolved one by one; more send the image to float64
ROWS = 32  # tokens at a time in those computations

_TINY = tl.constexpr(2.0**-100)  # products below it may have been lost
_UNDERFLOW = tl.constexpr(2.0**-80)  # a float32 distance below it is computed again in float64
_ROUND = tl.constexpr(2.0**-22)  # a float64 rounded to float32, with room
_NOISE = tl.constexpr(2.0**-20)  # below it times |z_i|² + |z_j|², a distance of the fast mode is rounding
_FROM_GRAM, _DIRECT, _EXHAUSTED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


# 1. Selection
@triton.jit(do_not_specialize=["x_batch", "x_row", "N", "K", "lines", "first"])
def select_kernel(
    x_ptr,  # [B, N, C], channels contiguous
    mask_ptr,  # [B, N] uint8
    gram_ptr,  # [B, N, LD] float32
    stats_ptr,  # [B, 3, LD] float32
    start_ptr,  # [B, LD] float64, read; working memory of the float64 distances
    out_ptr,  # [B, K] int64
    x_batch,  # strides, in multiples of ALIGN
    x_row,
    N,
    K,
    lines,  # LD / 16
    first,  # the first pick; not read with START_MEAN
    C: tl.constexpr,
    HAS_MASK: tl.constexpr,
    START_MEAN: tl.constexpr,
    EXACT: tl.constexpr,
    DISTINCT: tl.constexpr,
    ALIGN: tl.constexpr,
    FEW: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """All picks of one image; ``low`` and ``high`` enclose the minimum distances, -1 where no pick is allowed."""
    b = tl.program_id(0).to(tl.int64)
    x_row = x_row.to(tl.int64) * ALIGN
    x_ptr += b * x_batch * ALIGN
    LD = lines * 16
    gram_ptr += b * N * LD
    stats_ptr += b * 3 * LD
    start_ptr += b * LD
    out_ptr += b * K
    n = tl.arange(0, BLOCK_N)
    inside = n < N
    valid = inside
    if HAS_MASK:
        valid = valid & (tl.load(mask_ptr + b * N + n, mask=inside, other=0) != 0)
    norm = tl.load(stats_ptr + n, mask=inside, other=0.0)
    wild = tl.max((valid & (norm == float("inf"))).to(tl.int32), 0)
    plain = (norm >= 0.0) & (norm < float("inf"))
    if START_MEAN:
        low = tl.load(start_ptr + n, mask=inside, other=0.0).to(tl.float32)
        high = low
        if EXACT:
            low = low * (1.0 - _ROUND)
            high = high * (1.0 + _ROUND) + _TINY
    else:
        low = tl.where(norm >= 0.0, float("inf"), 0.0)
        high = low
    low = tl.where(valid, low, -1.0)
    high = tl.where(valid, high, -1.0)
    bound = tl.zeros((BLOCK_N,), tl.float32)
    rest = 0.0
    if EXACT:  # 2 |<rest_i, z_j>| + 2 |<z_i, rest_j>| + 2 |<rest_i, z_i>| + ...
        ratio = tl.load(stats_ptr + 2 * LD + n, mask=inside, other=0.0)
        rest = 4.2 * tl.sqrt(tl.max(tl.where(plain, ratio, 0.0), 0))
        bound = tl.load(stats_ptr + LD + n, mask=inside, other=0.0) + rest * norm + _TINY
        bound = tl.where(plain, bound, 0.0)
    norm = tl.where(plain, norm, 0.0)

    k = 0
    if not START_MEAN:
        tl.store(out_ptr, first.to(tl.int64))
        first_norm = tl.load(stats_ptr + first)
        wild = tl.maximum(wild, (first_norm == float("inf")).to(tl.int32))
        if first_norm < 0.0:  # everything is at distance 0 from a NaN
            low = tl.minimum(low, 0.0)
            high = tl.minimum(high, 0.0)
        else:
            low, high = _narrow(low, high, first, n, norm, bound, rest, gram_ptr, stats_ptr, N, LD, EXACT)
        low, high = _close(low, high, first, n, DISTINCT)
        k = 1

    state = tl.where(wild != 0, _DIRECT, _FROM_GRAM)
    while (k < K) & (state == _FROM_GRAM):
        # Distances are not negative, so they are ordered as their bits: a warp reduces integers in one instruction
        best = tl.max(low.to(tl.int32, bitcast=True), 0).to(tl.float32, bitcast=True)
        pick = 0
        if EXACT:
            reach = (high >= best) & (high >= 0.0)
            packed = tl.sum(tl.where(reach, BLOCK_N + n, 0), 0)  # one candidate: its index, above BLOCK_N
            if packed < 2 * BLOCK_N:
                pick = packed - BLOCK_N
                if packed == 0:
                    state = _EXHAUSTED
            elif tl.sum(reach.to(tl.int32), 0) > FEW:
                state = _DIRECT
            else:
                pick, farthest, low, high = _resolve(
                    low, high, reach, k, n, x_ptr, out_ptr, start_ptr, x_row, C, START_MEAN, ROWS, BLOCK_C, BLOCK_N
                )
                if farthest < _UNDERFLOW:
                    state = _DIRECT
        else:
            pick = tl.min(tl.where((low == best) & (low > 0.0), n, BLOCK_N), 0)
            if pick == BLOCK_N:
                state = _EXHAUSTED
        if state == _FROM_GRAM:
            tl.store(out_ptr + k, pick.to(tl.int64))
            low, high = _narrow(low, high, pick, n, norm, bound, rest, gram_ptr, stats_ptr, N, LD, EXACT)
            low, high = _close(low, high, pick, n, DISTINCT)
            k += 1

    if state == _DIRECT:
        k, low, high = _sample_directly(
            low, high, k, K, n, x_ptr, out_ptr, start_ptr, x_row, N, C, START_MEAN, DISTINCT, ROWS, BLOCK_C, BLOCK_N
        )
    if k < K:
        if START_MEAN:
            first = -1
        _fill(high, valid, first, k, K, n, N, out_ptr, DISTINCT, BLOCK_N)


@triton.jit
def _narrow(low, high, pick, n, norm, bound, rest, gram_ptr, stats_ptr, N, LD, EXACT: tl.constexpr):
    """Minimum distances after one more pick, from its row of the Gram matrix."""
    row = tl.load(gram_ptr + pick.to(tl.int64) * LD + n, mask=n < LD, other=0.0)  # up to LD: whole vectors
    row = tl.where(n < N, row, 0.0)
    pick_norm = tl.maximum(tl.load(stats_ptr + pick), 0.0)
    size = norm + pick_norm
    distance = size - 2.0 * row
    if EXACT:
        error = bound + (tl.load(stats_ptr + LD + pick) + rest * pick_norm + _TINY)
        low = tl.minimum(low, tl.maximum(distance - error, 0.0))
        high = tl.minimum(high, tl.maximum(distance + error, 0.0))
    else:
        low = tl.minimum(low, tl.where(distance > size * _NOISE, distance, 0.0))
        high = low
    return low, high


@triton.jit
def _close(low, high, pick, n, DISTINCT: tl.constexpr):
    """Take a picked token out, or leave it at distance 0 where picks may repeat."""
    here = n == pick
    if DISTINCT:
        return tl.where(here, -1.0, low), tl.where(here, -1.0, high)
    else:
        return tl.where(here, tl.minimum(low, 0.0), low), tl.where(here, tl.minimum(high, 0.0), high)


@triton.jit
def _resolve(
    low,
    high,
    reach,
    k,
    n,
    x_ptr,
    out_ptr,
    start_ptr,
    x_row,
    C: tl.constexpr,
    START_MEAN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The farthest of a few candidates and its distance, from the tokens; its interval and theirs become narrow."""
    tl.debug_barrier()  # the picks stored so far are read
    pick = 0
    farthest = tl.full((), -1.0, tl.float64)
    candidate = tl.min(tl.where(reach, n, BLOCK_N), 0)
    while candidate < BLOCK_N:
        distance = tl.full((), float("inf"), tl.float64)
        if START_MEAN:
            distance = tl.load(start_ptr + candidate)
        for p in range(0, k, ROWS):
            near = _to_picks(x_ptr, out_ptr, candidate, p, k, x_row, C, ROWS, BLOCK_C)
            distance = tl.minimum(distance, near.to(tl.float64))
        rounding: tl.constexpr = ((C + BLOCK_C - 1) // BLOCK_C + 16) * 2.0**-24  # of a float32 sum
        low = tl.where(n == candidate, distance.to(tl.float32) * (1.0 - rounding), low)
        high = tl.where(n == candidate, distance.to(tl.float32) * (1.0 + rounding) + _TINY, high)
        if distance > farthest:  # indices ascend: the lowest of equal ones stays
            farthest = distance
            pick = candidate
        candidate = tl.min(tl.where(reach & (n > candidate), n, BLOCK_N), 0)
    return pick, farthest, low, high


@triton.jit
def _to_picks(x_ptr, out_ptr, candidate, p, k, x_row, C: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Smallest squared distance from a candidate to picks p, p + 1, ..., p + ROWS - 1, as far as there are any."""
    p = p + tl.arange(0, ROWS)
    rows = tl.load(out_ptr + p, mask=p < k, other=0)
    distance = _distances(x_ptr, rows, p < k, candidate.to(tl.int64), x_row, C, BLOCK_C, tl.float32)
    return tl.min(tl.where(p < k, distance, float("inf")), 0)


@triton.jit
def _sample_directly(
    low,
    high,
    k,
    K,
    n,
    x_ptr,
    out_ptr,
    distance_ptr,  # [N] float64, holds the distances to the mean with START_MEAN
    x_row,
    N,
    C: tl.constexpr,
    START_MEAN: tl.constexpr,
    DISTINCT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Go on after k picks by the definition, in float64, while a token is at a positive distance."""
    inside = n < N
    distance = tl.full((BLOCK_N,), float("inf"), tl.float64)
    if START_MEAN:
        distance = tl.load(distance_ptr + n, mask=inside, other=0.0)
    tl.store(distance_ptr + n, tl.where(high >= 0.0, distance, -1.0), mask=inside)  # -1: may not be picked
    tl.debug_barrier()
    for p in range(0, k):
        _approach(x_ptr, distance_ptr, tl.load(out_ptr + p), x_row, N, C, False, ROWS, BLOCK_C)
    farthest = tl.full((), float("inf"), tl.float64)
    while (k < K) & (farthest > 0.0):
        distance = tl.load(distance_ptr + n, mask=inside, other=-1.0)
        farthest = tl.max(distance, 0)
        if farthest > 0.0:
            pick = tl.min(tl.where(distance == farthest, n, BLOCK_N), 0)
            tl.store(out_ptr + k, pick.to(tl.int64))
            _approach(x_ptr, distance_ptr, pick.to(tl.int64), x_row, N, C, DISTINCT, ROWS, BLOCK_C)
            low, high = _close(low, high, pick, n, DISTINCT)
            k += 1
    return k, low, high


@triton.jit
def _approach(
    x_ptr, distance_ptr, pick, x_row, N, C: tl.constexpr, CLOSE: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Lower the float64 distances to those from one more pick."""
    tl.debug_barrier()
    for r in range(0, N, ROWS):
        rows = r + tl.arange(0, ROWS)
        distance = _distances(x_ptr, rows, rows < N, pick, x_row, C, BLOCK_C, tl.float64)
        distance = tl.minimum(distance, tl.load(distance_ptr + rows, mask=rows < N, other=0.0))
        if CLOSE:
            distance = tl.where(rows == pick, -1.0, distance)
        tl.store(distance_ptr + rows, distance, mask=rows < N)
    tl.debug_barrier()


@triton.jit
def _distances(x_ptr, rows, inside, point, x_row, C: tl.constexpr, BLOCK_C: tl.constexpr, dtype: tl.constexpr):
    """|x[rows] - x[point]|², 0 where it is not a number; equal for equal rows."""
    total = tl.zeros(rows.shape, dtype)
    for c0 in range(0, C, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        centre = tl.load(x_ptr + point * x_row + c, mask=c < C, other=0.0).to(dtype)
        step = load_rows(x_ptr, rows, inside, x_row, c0, C, BLOCK_C).to(dtype) - centre[None, :]
        total += tl.sum(step * step, 1)
    return tl.where(total == total, total, 0.0)


@triton.jit
def _fill(high, valid, first, k, K, n, N, out_ptr, DISTINCT: tl.constexpr, BLOCK_N: tl.constexpr):
    """Picks k, k + 1, ..., K - 1 once nothing is at a positive distance: all of them are known."""
    if DISTINCT:  # the valid tokens that are left, then the masked ones
        left = (n < N) & ((high >= 0.0) | ((valid == 0) & (n != first)))
        early = (left & valid).to(tl.int32)
        late = left.to(tl.int32) - early
        rank = tl.where(valid, tl.cumsum(early, 0), tl.sum(early, 0) + tl.cumsum(late, 0)) - 1
        tl.store(out_ptr + k + rank, n.to(tl.int64), mask=left & (k + rank < K))
    else:
        lowest = tl.min(tl.where(valid, n, BLOCK_N), 0)
        lowest = tl.where(lowest == BLOCK_N, 0, lowest)
        tl.store(out_ptr + n, (n * 0 + lowest).to(tl.int64), mask=(n >= k) & (n < K))


# 2. Launcher
def forward(x: Tensor, num_samples: int, start: int, mask: Tensor | None, precision: str, duplicates: str) -> Tensor:
    """Picks [B, K] for x [B, N, C] in float32, float16 or bfloat16; ``start`` is an index, or -1 for the mean."""
    B, N, C = x.shape
    if N > MOST:
        raise ValueError(f"expected at most {MOST} tokens on a GPU, got {N}")
    samples = torch.empty(B, num_samples, dtype=torch.int64, device=x.device)
    if B == 0:
        return samples
    x = x if x.stride(2) == 1 else x.contiguous()
    valid = x if mask is None else mask.contiguous().view(torch.uint8)
    gram, stats, distance = distances(x, valid, mask is not None, start, precision)
    strides, options = strides_of(x)
    constants = _select_constants(N, C, precision, architecture(x.device)) | options
    select_kernel[B,](
        x, valid, gram, stats, distance, samples, *strides, N, num_samples, gram.shape[2] // 16, max(start, 0),
        **constants, HAS_MASK=mask is not None, START_MEAN=start < 0, DISTINCT=duplicates == "distinct",
        enable_fp_fusion=False,
    )  # fmt: skip
    return samples


def _select_constants(N: int, C: int, precision: str, arch: int) -> dict[str, Any]:
    """Constants of ``select_kernel``, fusion off: its float64 distances are then rounded as PyTorch rounds them.

    Few blocks run at once, so each may have all registers; left alone, the assembler spills some to admit more blocks.
    """
    default = {"num_warps": min(8, max(1, block(N) // 256)), "num_stages": 1, "maxnreg": 255}
    chosen = tiles("farthest_point_sample.select_kernel", arch, default, N=N)
    fixed = {"C": C, "EXACT": precision == "exact", "FEW": FEW, "ROWS": ROWS, "BLOCK_C": 16, "BLOCK_N": block(N)}
    return fixed | chosen


# 3. What is compiled ahead of time
def aot_cases(arch: int = OLDEST) -> list[Case]:
    """Both precisions of every shape."""
    return [
        case(select_kernel, shape, precision, _select_constants(*shape[1:], precision, arch) | {"DISTINCT": True})
        for shape in SHAPES
        for precision in ("exact", "fast")
    ]
