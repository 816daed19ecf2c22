"""Farthest point sampling, first launch: a centred Gram matrix, bounds on its errors, distances to the mean.

A vector near the mean is taken off, the rest is split into two bfloat16 parts, and three of their four products are
summed; the fast mode makes one. What a bound is made of stands at ``_rounding``.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cast_kernels.kernels._aot import Case
from cast_kernels.kernels._tiles import OLDEST, architecture, tiles

SAMPLE = 16  # tokens, spread evenly, whose mean is the centre

LARGE = tl.constexpr(2.0**120)  # above it a squared norm counts as overflow


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
            z_row = load_rows(x_ptr, row, row < N, x_row, c0, C, BLOCK_C).to(tl.float32) - centre[None, :]
            z_col = load_rows(x_ptr, col, col < col_end, x_row, c0, C, BLOCK_C).to(tl.float32) - centre[None, :]
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
            norm = tl.where(zz < LARGE, norm, tl.where(zz == zz, float("inf"), -1.0))
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
def load_rows(x_ptr, rows, inside, x_row, c0, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """x[rows, c0:c0 + BLOCK_C], zero outside."""
    c = c0 + tl.arange(0, BLOCK_C)
    keep = inside[:, None]
    if C % BLOCK_C != 0:
        keep = keep & (c[None, :] < C)
    return tl.load(x_ptr + rows[:, None] * x_row + c[None, :], mask=keep, other=0.0)


@triton.jit
def _centre(x_ptr, sample, sampled, share, x_row, c0, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """A vector near the mean, the same for all tiles. In the dtype of x: z then has few bits for the split to lose."""
    x = load_rows(x_ptr, sample, sampled, x_row, c0, C, BLOCK_C)
    finite = tl.where(tl.abs(x.to(tl.float32)) < LARGE, x.to(tl.float32), 0.0)
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
        x = load_rows(x_ptr, n, inside, x_row, c0, C, BLOCK_C).to(tl.float32)
        broken = tl.maximum(broken, tl.max((x != x).to(tl.int32), 1))
    counted = inside & (broken == 0)
    if HAS_MASK:
        counted = counted & (tl.load(mask_ptr + n, mask=inside, other=0) != 0)
    count = tl.maximum(tl.sum(counted.to(tl.int32), 0), 1).to(dtype)
    total = tl.zeros((BLOCK_N,), dtype)
    for c0 in range(0, C, BLOCK_C):
        x = load_rows(x_ptr, n, inside, x_row, c0, C, BLOCK_C).to(dtype)
        mean = tl.sum(tl.where(counted[:, None], x, 0.0), 0) / count
        x = x - mean[None, :]
        total += tl.sum(x * x, 1)
    tl.store(start_ptr + n, tl.where(total == total, total, 0.0).to(tl.float64), mask=inside)


# 2. Launcher
def distances(x: Tensor, valid: Tensor, has_mask: bool, start: int, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    """What ``gram_kernel`` makes, whose arguments say what it is: the Gram matrix, its statistics, the start."""
    B, N, C = x.shape
    lines = triton.cdiv(N, 16)  # rows of the Gram matrix start at 64 bytes
    gram = torch.empty(B, N, 16 * lines, dtype=torch.float32, device=x.device)
    stats = torch.empty(B, 3, 16 * lines, dtype=torch.float32, device=x.device)
    distance = torch.empty(B, 16 * lines, dtype=torch.float64, device=x.device)
    strides, options = strides_of(x)
    constants = _gram_constants(N, C, x.element_size(), precision, architecture(x.device)) | options
    rows = triton.cdiv(N, constants["BLOCK_M"])
    num_tiles = rows * (rows + 1) // 2
    gram_kernel[B * (num_tiles + (start < 0)),](
        x, valid, gram, stats, distance, *strides, N, lines, num_tiles,
        **constants, HAS_MASK=has_mask, START_MEAN=start < 0, UPCAST=x.device.type != "cuda", enable_fp_fusion=False,
    )  # fmt: skip
    return gram, stats, distance


def strides_of(x: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    """Strides of images and tokens as multiples of what divides both: how wide a load may be."""
    align = math.gcd(16, x.stride(0), x.stride(1))
    return (x.stride(0) // align, x.stride(1) // align), {"ALIGN": align}


def block(N: int) -> int:
    """Tokens that a program holds at once: all of them."""
    return max(32, triton.next_power_of_2(N))


def _gram_constants(N: int, C: int, itemsize: int, precision: str, arch: int) -> dict[str, Any]:
    """Constants of ``gram_kernel``, fusion off: the bits of a token's norm may not depend on what it is added to."""
    exact = precision == "exact"
    small = exact or N <= 64  # the exact mode holds two sums: small tiles, but more blocks at once
    default = {"BLOCK_M": 64, "num_warps": 4} if small else {"BLOCK_M": 128, "num_warps": 8}
    default |= {"BLOCK_C": 32, "num_stages": 2}
    chosen = tiles(f"farthest_point_sample.gram_kernel.{precision}", arch, default, N=N, C=C, itemsize=itemsize)
    mean = max(1, min(32, 1024 * chosen["num_warps"] // block(N)))  # 32 numbers per thread
    return {"C": C, "EXACT": exact, "SAMPLE": SAMPLE, "BLOCK_N": block(N), "MEAN_C": mean} | chosen


# 3. What is compiled ahead of time: the launches of CAST-S and CAST-B, and the largest
SHAPES = (("bf16", 196, 384), ("fp16", 64, 384), ("fp32", 196, 768), ("bf16", 1024, 768), ("fp32", 4096, 1536))


def aot_cases(arch: int = OLDEST) -> list[Case]:
    """Both precisions of every shape."""
    return [
        case(gram_kernel, shape, precision, _gram_constants(*shape[1:], itemsize, precision, arch) | {"UPCAST": False})
        for shape in SHAPES
        for itemsize in (4 if shape[0] == "fp32" else 2,)
        for precision in ("exact", "fast")
    ]


def case(kernel: triton.JITFunction, shape: tuple[str, int, int], precision: str, constants: dict[str, Any]) -> Case:
    """One specialisation for a shape (dtype, N, C), aligned, without a mask, from the mean."""
    dtype, N, C = shape
    own = {"gram_ptr": "*fp32", "stats_ptr": "*fp32", "start_ptr": "*fp64", "out_ptr": "*i64"}
    known = constants | {"HAS_MASK": False, "START_MEAN": True, "ALIGN": 16}
    launch = {key: known.pop(key) for key in ("num_warps", "num_stages", "maxnreg") if key in known}
    given = [argument for argument in kernel.arg_names if argument not in known]
    signature = {name: own.get(name, f"*{dtype}" if name.endswith("_ptr") else "i32") for name in given}
    name = f"{kernel.__name__} {dtype} {N} x {C} {precision}"
    return Case(kernel, signature, known, launch | {"enable_fp_fusion": False}, name)
