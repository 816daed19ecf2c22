"""Farthest point sampling on the GPU: one launch makes a centred Gram matrix, one selects from it.

    |x_i - x_j|² = G_ii + G_jj - 2 G_ij,   G_ij = <z_i, z_j>,   z = x - (a vector near the mean)

A Gram matrix alone does not order tokens that lie close to each other. The exact mode therefore holds each minimum
distance as an interval: every entry of G has a bound on its error, made of what the split into bfloat16 leaves out and
of what the tensor cores may round away. A pick is taken where one interval alone reaches the best lower bound. Where
several do, their distances are computed from the tokens themselves; where many do (tight clusters, equal tokens), the
rest of the image is sampled from float64 distances, as is an image with infinite tokens.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cast_kernels.kernels._aot import Case
from cast_kernels.kernels._tiles import OLDEST, architecture, tiles

MOST = 32768  # tokens: up to there offsets within one Gram matrix and sums of indices fit 32 bits
SAMPLE = 16  # tokens, spread evenly, whose mean is the centre
FEW = 8  # candidates that are resolved one by one; more send the image to float64
ROWS = 32  # tokens at a time in those computations

_LARGE = tl.constexpr(2.0**120)  # above it a squared norm counts as overflow
_TINY = tl.constexpr(2.0**-100)  # products below it may have been lost
_UNDERFLOW = tl.constexpr(2.0**-80)  # a float32 distance below it is computed again in float64
_ROUND = tl.constexpr(2.0**-22)  # a float64 rounded to float32, with room
_NOISE = tl.constexpr(2.0**-20)  # below it times |z_i|² + |z_j|², a distance of the fast mode is rounding
_FROM_GRAM, _DIRECT, _EXHAUSTED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


# 1. Gram matrix and distances to the mean
@triton.jit(do_not_specialize=["x_batch", "x_row", "N", "lines", "num_tiles"])
def gram_kernel(
    x_ptr,  # [B, N, C], channels contiguous
    mask_ptr,  # [B, N] uint8, 1 where valid; not read without HAS_MASK
    gram_ptr,  # [B, N, LD] float32
    stats_ptr,  # [B, 3, LD] float32: G_ii (-1: has a NaN, inf: too large), error bound of distances, (|rest| / |z|)²
    start_ptr,  # [B, LD] float64: squared distance to the mean of the valid tokens
    x_batch,  # strides, in multiples of ALIGN
    x_row,
    N,
    lines,  # LD / 16
    num_tiles,
    C: tl.constexpr,
    HAS_MASK: tl.constexpr,
    START_MEAN: tl.constexpr,  # one more program per image, the first, makes the distances to the mean
    EXACT: tl.constexpr,
    UPCAST: tl.constexpr,
    ALIGN: tl.constexpr,
    SAMPLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MEAN_C: tl.constexpr,
):
    """One tile on or below the diagonal per program, also stored transposed."""
    programs = num_tiles + START_MEAN
    b = (tl.program_id(0) // programs).to(tl.int64)
    tile = tl.program_id(0) % programs - START_MEAN
    x_row = x_row.to(tl.int64) * ALIGN  # the compiler sees what divides the product
    x_ptr += b * x_batch * ALIGN
    LD = lines * 16
    mask_ptr += b * N
    if START_MEAN & (tile < 0):
        _mean_distances(x_ptr, mask_ptr, start_ptr + b * LD, x_row, N, C, HAS_MASK, EXACT, BLOCK_N, MEAN_C)
    else:
        gram_ptr += b * N * LD
        stats_ptr += b * 3 * LD
        i, j = _triangle(tile)
        row = i * BLOCK_M + tl.arange(0, BLOCK_M)
        col = j * BLOCK_M + tl.arange(0, BLOCK_M)
        sample = tl.arange(0, SAMPLE) * ((N + SAMPLE - 1) // SAMPLE)
        sampled = sample < N
        if HAS_MASK:
            sampled = sampled & (tl.load(mask_ptr + sample, mask=sampled, other=0) != 0)
        share = 1.0 / tl.maximum(tl.sum(sampled.to(tl.float32), 0), 1.0)
        col_end = tl.where(i == j, 0, N)  # a tile on the diagonal reads its tokens once
        gram = tl.zeros((BLOCK_M, BLOCK_M), tl.float32)
        zz = tl.zeros((BLOCK_M,), tl.float32)  # |z|², |middle|², |rest|² of the rows: z = high + middle + rest
        mm = tl.zeros((BLOCK_M,), tl.float32)
        rr = tl.zeros((BLOCK_M,), tl.float32)
        for c0 in range(0, C, BLOCK_C):
            centre = _centre(x_ptr, sample, sampled, share, x_row, c0, C, BLOCK_C)
            z_row = _load(x_ptr, row, row < N, x_row, c0, C, BLOCK_C).to(tl.float32) - centre[None, :]
            z_col = _load(x_ptr, col, col < col_end, x_row, c0, C, BLOCK_C).to(tl.float32) - centre[None, :]
            z_col = tl.where(i == j, z_row, z_col)
            high_row = z_row.to(tl.bfloat16)
            high_col = z_col.to(tl.bfloat16)
            if EXACT:  # small products first, in a sum of their own per slice: rounding grows with the sum so far
                middle_row = (z_row - high_row.to(tl.float32)).to(tl.bfloat16)
                middle_col = (z_col - high_col.to(tl.float32)).to(tl.bfloat16)
                part = tl.zeros((BLOCK_M, BLOCK_M), tl.float32)
                part = _dot(middle_row, high_col, part, UPCAST)
                part = _dot(high_row, middle_col, part, UPCAST)
                gram += _dot(high_row, high_col, part, UPCAST)
                if i == j:
                    rest = z_row - high_row.to(tl.float32) - middle_row.to(tl.float32)
                    middle = middle_row.to(tl.float32)
                    mm += tl.sum(middle * middle, 1)
                    rr += tl.sum(rest * rest, 1)
                    zz += tl.sum(z_row * z_row, 1)
            else:
                gram = _dot(high_row, high_col, gram, UPCAST)
                if i == j:
                    zz += tl.sum(z_row * z_row, 1)
        gram = tl.where(gram == gram, gram, 0.0)
        here = (row[:, None] < N) & (col[None, :] < N)
        tl.store(gram_ptr + row[:, None] * LD + col[None, :], gram, mask=here)
        if i == j:
            norm = tl.sum(tl.where(row[:, None] == col[None, :], gram, 0.0), 1)
            norm = tl.where(zz < _LARGE, norm, tl.where(zz == zz, float("inf"), -1.0))
            tl.store(stats_ptr + row, norm, mask=row < N)
            if EXACT:
                tl.store(stats_ptr + LD + row, 2.1 * mm + _rounding(C, BLOCK_C) * zz, mask=row < N)
                tl.store(stats_ptr + 2 * LD + row, tl.where(zz > 0, rr / zz, 0.0), mask=row < N)
        else:
            here = (col[:, None] < N) & (row[None, :] < N)
            tl.store(gram_ptr + col[:, None] * LD + row[None, :], tl.trans(gram), mask=here)


@triton.jit
def _triangle(tile):
    """Row and column of a tile counted along the rows of the lower triangle."""
    i = ((tl.sqrt(8.0 * tile + 1.0) - 1.0) * 0.5).to(tl.int32)
    i = tl.where(i * (i + 1) // 2 > tile, i - 1, i)
    i = tl.where((i + 1) * (i + 2) // 2 <= tile, i + 1, i)
    return i, tile - i * (i + 1) // 2


@triton.jit
def _load(x_ptr, rows, inside, x_row, c0, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """x[rows, c0:c0 + BLOCK_C], zero outside."""
    c = c0 + tl.arange(0, BLOCK_C)
    keep = inside[:, None]
    if C % BLOCK_C != 0:
        keep = keep & (c[None, :] < C)
    return tl.load(x_ptr + rows[:, None] * x_row + c[None, :], mask=keep, other=0.0)


@triton.jit
def _centre(x_ptr, sample, sampled, share, x_row, c0, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """A vector near the mean, the same for all tiles. In the dtype of x: z then has few bits for the split to lose."""
    x = _load(x_ptr, sample, sampled, x_row, c0, C, BLOCK_C)
    finite = tl.where(tl.abs(x.to(tl.float32)) < _LARGE, x.to(tl.float32), 0.0)
    return tl.sum(finite * share, 0).to(x.dtype).to(tl.float32)


@triton.jit
def _dot(a, b, total, UPCAST: tl.constexpr):
    """Return total + a bᵀ; the interpreter has no product of bfloat16."""
    if UPCAST:
        return tl.dot(a.to(tl.float32), tl.trans(b.to(tl.float32)), total, input_precision="ieee")
    else:
        return tl.dot(a, tl.trans(b), total)


@triton.jit
def _rounding(C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Bound per |z|² on the rounding of a distance.

    A tensor core is taken to lose 2^-22 of the sum so far at every 8 products of a slice, the sum of the slices 2^-24
    at each. That enters twice, by G_ii and by 2 G_ij with |z_i||z_j| <= (|z_i|² + |z_j|²) / 2. Centring and the
    subtraction are within 2^-21.
    """
    return 2.1 * (BLOCK_C / 8 * 2.0**-22 + (C + BLOCK_C - 1) // BLOCK_C * 2.0**-24) + 2.0**-21


@triton.jit
def _mean_distances(
    x_ptr,
    mask_ptr,
    start_ptr,
    x_row,
    N,
    C: tl.constexpr,
    HAS_MASK: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Squared distances to the mean of the valid tokens without a NaN; float64 arithmetic in the exact mode."""
    dtype: tl.constexpr = tl.float64 if EXACT else tl.float32
    n = tl.arange(0, BLOCK_N)
    inside = n < N
    broken = tl.zeros((BLOCK_N,), tl.int32)
    for c0 in range(0, C, BLOCK_C):
        x = _load(x_ptr, n, inside, x_row, c0, C, BLOCK_C).to(tl.float32)
        broken = tl.maximum(broken, tl.max((x != x).to(tl.int32), 1))
    counted = inside & (broken == 0)
    if HAS_MASK:
        counted = counted & (tl.load(mask_ptr + n, mask=inside, other=0) != 0)
    count = tl.maximum(tl.sum(counted.to(tl.int32), 0), 1).to(dtype)
    total = tl.zeros((BLOCK_N,), dtype)
    for c0 in range(0, C, BLOCK_C):
        x = _load(x_ptr, n, inside, x_row, c0, C, BLOCK_C).to(dtype)
        mean = tl.sum(tl.where(counted[:, None], x, 0.0), 0) / count
        x = x - mean[None, :]
        total += tl.sum(x * x, 1)
    tl.store(start_ptr + n, tl.where(total == total, total, 0.0).to(tl.float64), mask=inside)


# 2. Selection
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
        step = _load(x_ptr, rows, inside, x_row, c0, C, BLOCK_C).to(dtype) - centre[None, :]
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


# 3. Launchers
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
    strides, options = _strides(x)
    constants = _select_constants(N, C, precision, architecture(x.device)) | options
    select_kernel[B,](
        x, valid, gram, stats, distance, samples, *strides, N, num_samples, gram.shape[2] // 16, max(start, 0),
        **constants, HAS_MASK=mask is not None, START_MEAN=start < 0, DISTINCT=duplicates == "distinct",
        enable_fp_fusion=False,
    )  # fmt: skip
    return samples


def distances(x: Tensor, valid: Tensor, has_mask: bool, start: int, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    """What ``gram_kernel`` makes, whose arguments say what it is: the Gram matrix, its statistics, the start."""
    B, N, C = x.shape
    lines = triton.cdiv(N, 16)  # rows of the Gram matrix start at 64 bytes
    gram = torch.empty(B, N, 16 * lines, dtype=torch.float32, device=x.device)
    stats = torch.empty(B, 3, 16 * lines, dtype=torch.float32, device=x.device)
    distance = torch.empty(B, 16 * lines, dtype=torch.float64, device=x.device)
    strides, options = _strides(x)
    constants = _gram_constants(N, C, x.element_size(), precision, architecture(x.device)) | options
    rows = triton.cdiv(N, constants["BLOCK_M"])
    num_tiles = rows * (rows + 1) // 2
    gram_kernel[B * (num_tiles + (start < 0)),](
        x, valid, gram, stats, distance, *strides, N, lines, num_tiles,
        **constants, HAS_MASK=has_mask, START_MEAN=start < 0, UPCAST=x.device.type != "cuda", enable_fp_fusion=False,
    )  # fmt: skip
    return gram, stats, distance


def _strides(x: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    """Strides of images and tokens as multiples of what divides both: how wide a load may be."""
    align = math.gcd(16, x.stride(0), x.stride(1))
    return (x.stride(0) // align, x.stride(1) // align), {"ALIGN": align}


def _block(N: int) -> int:
    return max(32, triton.next_power_of_2(N))


def _gram_constants(N: int, C: int, itemsize: int, precision: str, arch: int) -> dict[str, Any]:
    """Constants of ``gram_kernel``, fusion off: the bits of a token's norm may not depend on what it is added to."""
    exact = precision == "exact"
    small = exact or N <= 64  # the exact mode holds two sums: small tiles, but more blocks at once
    default = {"BLOCK_M": 64, "num_warps": 4} if small else {"BLOCK_M": 128, "num_warps": 8}
    default |= {"BLOCK_C": 32, "num_stages": 2}
    chosen = tiles(f"farthest_point_sample.gram_kernel.{precision}", arch, default, N=N, C=C, itemsize=itemsize)
    mean = max(1, min(32, 1024 * chosen["num_warps"] // _block(N)))  # 32 numbers per thread
    return {"C": C, "EXACT": exact, "SAMPLE": SAMPLE, "BLOCK_N": _block(N), "MEAN_C": mean} | chosen


def _select_constants(N: int, C: int, precision: str, arch: int) -> dict[str, Any]:
    """Constants of ``select_kernel``, fusion off: its float64 distances are then rounded as PyTorch rounds them.

    Few blocks run at once, so each may have all registers; left alone, the assembler spills some to admit more blocks.
    """
    default = {"num_warps": min(8, max(1, _block(N) // 256)), "num_stages": 1, "maxnreg": 255}
    chosen = tiles("farthest_point_sample.select_kernel", arch, default, N=N)
    fixed = {"C": C, "EXACT": precision == "exact", "FEW": FEW, "ROWS": ROWS, "BLOCK_C": 16, "BLOCK_N": _block(N)}
    return fixed | chosen


# 4. What is compiled ahead of time
def aot_cases(arch: int = OLDEST) -> list[Case]:
    """The launches of CAST-S and CAST-B, and the largest."""
    return [
        case
        for dtype, N, C in (
            ("bf16", 196, 384),
            ("fp16", 64, 384),
            ("fp32", 196, 768),
            ("bf16", 1024, 768),
            ("fp32", 4096, 1536),
        )
        for precision in ("exact", "fast")
        for case in _cases(dtype, N, C, precision, arch)
    ]


def _cases(dtype: str, N: int, C: int, precision: str, arch: int) -> list[Case]:
    name = f"{dtype} {N} x {C} {precision}"
    options = {"HAS_MASK": False, "START_MEAN": True, "ALIGN": 16}
    x = {"x_ptr": f"*{dtype}", "mask_ptr": f"*{dtype}", "gram_ptr": "*fp32", "stats_ptr": "*fp32", "start_ptr": "*fp64"}
    integers = dict.fromkeys(("x_batch", "x_row", "N", "lines", "num_tiles", "K", "first"), "i32")
    cases = []
    for kernel, constants, types in (
        (
            gram_kernel,
            _gram_constants(N, C, 4 if dtype == "fp32" else 2, precision, arch) | {"UPCAST": False},
            x | integers,
        ),
        (
            select_kernel,
            _select_constants(N, C, precision, arch) | {"DISTINCT": True},
            x | {"out_ptr": "*i64"} | integers,
        ),
    ):
        known = constants | options
        launch = {key: known.pop(key) for key in ("num_warps", "num_stages", "maxnreg") if key in known}
        signature = {key: value for key, value in types.items() if key in kernel.arg_names}
        cases.append(Case(kernel, signature, known, launch | {"enable_fp_fusion": False}, f"{kernel.__name__} {name}"))
    return cases
