"""Assignment by cosine and pooling: forward kernels and launcher.

Two ways, by size. Where the whole assignment of an image fits the registers of one program (16-bit features, N <=
256, K <= 64), `_whole_kernel` does everything: it computes the assignment of one image, keeps it, and
streams columns of z past it, so u and z are read once and nothing but the results is written. A small batch divides z's
columns among more programs; each repeats the assignment, whose inputs then come from the L2 cache.
Otherwise `_cosine_kernel` writes the cosines in float32 and `_pool_kernel` is a matrix product over them, both with the
tokens, clusters and columns split over programs.

Float32 takes the second way, with products in full float32: three TF32 products keep about 21 bits and tensor cores
truncate what they add, which errs more than plain float32 does.
"""

# ruff: noqa: RUF005  triton's language has no starred tuples

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from cast_kernels.kernels._aot import Case
from cast_kernels.kernels._launch import (
    TRITON,
    interpreted_bfloat16,
    padded,
    processors,
    rows,
    share_out,
    split_options,
)
from cast_kernels.kernels._tiles import OLDEST, architecture, tiles

LARGEST_N, LARGEST_K = 256, 64  # in 16 bits, 64 registers a thread at four warps
FUSION = True  # contracting a * b + c only saves a rounding, in sums of squares and in the corrected exponential
OPTIONS = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": FUSION}
FLOAT32_BUFFERS = (
    "cosine_ptr", "inverse_ptr", "norm_ptr", "parts_ptr", "change_ptr", "along_ptr", "along_centroid_ptr",
)  # fmt: skip


@triton.jit
def dot(a, b, acc, UPCAST: tl.constexpr):
    """Return acc + a b; the interpreter's product of bfloat16 is wrong, so it is given float32."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def exponential(cosine, power, rest, PRECISE: tl.constexpr):
    """exp(kappa cosine), where power + rest = kappa log2(e); power has 12 bits, for products that are exact.

    At kappa = 40 the rounding of kappa cosine log2(e) alone would cost PRECISE five bits.
    """
    if PRECISE:
        head = (cosine.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)
        return tl.exp2(head * power) * tl.exp2((cosine - head) * power + cosine * rest)
    else:
        return tl.exp2(cosine * (power + rest))


@triton.jit
def inverse_norm(square):
    """1 / norm, correctly rounded so that rows equal up to a power of two tie; 0 where the norm is 0."""
    return tl.where(square == 0.0, 0.0, tl.div_rn(1.0, tl.sqrt_rn(square)))


@triton.jit
def inside(in_row, column, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """Mask of a tile; where tiles divide the columns it is about rows only."""
    if COLUMNS % BLOCK == 0:
        return in_row[:, None]
    else:
        return in_row[:, None] & (column < COLUMNS)[None, :]


@triton.jit
def load_tile(x_ptr, row, in_row, column, COLUMNS: tl.constexpr, ROW: tl.constexpr, BLOCK: tl.constexpr):
    """Load x[row, column] from rows ROW apart; 0 outside."""
    return tl.load(x_ptr + row[:, None] * ROW + column[None, :], mask=inside(in_row, column, COLUMNS, BLOCK), other=0.0)


@triton.jit
def cosines(
    u_ptr,  # [N, C] of one image, rows U_ROW apart
    first_row,
    N,
    centroid,  # [BLOCK_K], with its mask
    in_centroid,
    C: tl.constexpr,
    U_ROW: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TOKENS_FIRST: tl.constexpr,
    PRECISE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Cosines of the centroids and TILES tiles of rows, and 1 / norm of both.

    [BLOCK_K, BLOCK_N] each, or with TOKENS_FIRST transposed.

    Not clamped. 0 where a row is masked, 0 or longer than float32 can square; NaN where it holds one.
    """
    products = ()
    squares = ()
    for _tile in tl.static_range(TILES):
        if TOKENS_FIRST:
            products = products + (tl.zeros((BLOCK_N, BLOCK_K), tl.float32),)
        else:
            products = products + (tl.zeros((BLOCK_K, BLOCK_N), tl.float32),)
        squares = squares + (tl.zeros((BLOCK_N,), tl.float32),)
    centroid_square = tl.zeros((BLOCK_K,), tl.float32)
    for first in range(0, C, BLOCK_C):
        column = first + tl.arange(0, BLOCK_C)
        v = load_tile(u_ptr, centroid, in_centroid, column, C, U_ROW, BLOCK_C)
        centroid_square += tl.sum(v.to(tl.float32) * v.to(tl.float32), 1)
        new_products = ()
        new_squares = ()
        for tile in tl.static_range(TILES):
            row = first_row + tile * BLOCK_N + tl.arange(0, BLOCK_N)
            u = load_tile(u_ptr, row, row < N, column, C, U_ROW, BLOCK_C)
            if TOKENS_FIRST:
                new_products = new_products + (dot(u, tl.trans(v), products[tile], UPCAST),)
            else:
                new_products = new_products + (dot(v, tl.trans(u), products[tile], UPCAST),)
            new_squares = new_squares + (squares[tile] + tl.sum(u.to(tl.float32) * u.to(tl.float32), 1),)
        products = new_products
        squares = new_squares
    centroid_inverse = inverse_norm(centroid_square)
    found = ()
    inverses = ()
    for tile in tl.static_range(TILES):
        inverse = inverse_norm(squares[tile])
        if TOKENS_FIRST:
            cosine = products[tile] * inverse[:, None] * centroid_inverse[None, :]
            known = (inverse != 0.0)[:, None] & (centroid_inverse != 0.0)[None, :]
        else:
            cosine = products[tile] * centroid_inverse[:, None] * inverse[None, :]
            known = (centroid_inverse != 0.0)[:, None] & (inverse != 0.0)[None, :]
            if PRECISE:
                norms = tl.sqrt_rn(centroid_square)[:, None] * tl.sqrt_rn(squares[tile])[None, :]
                cosine = tl.div_rn(products[tile], norms)
        found = found + (tl.where(known, cosine, 0.0),)  # the inverse of a norm that overflowed is 0, its products inf
        inverses = inverses + (inverse,)
    return found, inverses, centroid_inverse


@triton.jit
def clamp(cosine):
    """To [-1, 1]; NaN stays."""
    return tl.clamp(cosine, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _largest(logits, in_centroid):
    """Largest logit over axis 0 and its lowest index, NaN above all numbers as torch has it."""
    ranked = tl.where(logits == logits, logits, float("inf"))
    return tl.max(tl.where(in_centroid[:, None], ranked, float("-inf")), 0, return_indices=True)


@triton.jit(do_not_specialize=["slices", "steps"])  # it follows the batch: no compilation for each
def _whole_kernel(
    u_ptr,  # [B, N, C], rows U_ROW apart, images u_rows rows apart
    centroids_ptr,  # [B, K] int64
    z_ptr,  # [B, N, D], rows Z_ROW apart, images z_rows rows apart
    logits_ptr,  # [B, N, K]
    pooled_ptr,  # [B, K, D]
    parents_ptr,  # [B, N] int64
    N,
    u_rows,
    z_rows,
    kappa,
    power,  # power + rest = kappa log2(e)
    rest,
    slices,  # programs per image
    steps,  # tiles of z's columns per program
    K: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    U_ROW: tl.constexpr,
    Z_ROW: tl.constexpr,
    TILES: tl.constexpr,
    AT_ONCE: tl.constexpr,  # tiles per pass over u, to load the centroids less often
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):
    # offsets within an image fit 32 bits here: the launcher sends longer rows the other way
    image = (tl.program_id(0) // slices).to(tl.int64)
    part = tl.program_id(0) % slices
    k = tl.arange(0, BLOCK_K)
    in_k = k < K
    centroid = tl.load(centroids_ptr + image * K + k, mask=in_k, other=-1)
    in_centroid = (centroid >= 0) & (centroid < N)
    centroid = tl.where(in_centroid, centroid, 0).to(tl.int32)
    u_ptr += image * u_rows * U_ROW
    found = ()
    shares = ()
    for tile in tl.static_range(TILES):
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        in_n = n < N
        if tile % AT_ONCE == 0:
            found, _inverses, _centroid_inverse = cosines(
                u_ptr, tile * BLOCK_N, N, centroid, in_centroid, C, U_ROW, AT_ONCE, BLOCK_N, BLOCK_K, BLOCK_C,
                False, False, UPCAST,
            )  # fmt: skip
        cosine = clamp(found[tile % AT_ONCE])
        logits = kappa * cosine
        valid = in_k[:, None] & in_n[None, :]
        if part == 0:
            tl.store(logits_ptr + image * N * K + n[None, :] * K + k[:, None], logits, mask=valid)
            _top, parent = _largest(logits, in_k)
            tl.store(parents_ptr + image * N + n, parent.to(tl.int64), mask=in_n)
        share = tl.where(valid, exponential(cosine, power, rest, False), 0.0)
        share = share * (1.0 / tl.where(in_n, tl.sum(share, 0), 1.0))[None, :]
        if z_ptr.dtype.element_ty != tl.float16:
            share = share.to(z_ptr.dtype.element_ty)
        shares = shares + (share,)

    if z_ptr.dtype.element_ty == tl.float16:  # a cluster that no token is close to must not underflow as a whole
        top = tl.where(in_k, 0.0, 1.0)
        for tile in tl.static_range(TILES):
            top = tl.maximum(top, tl.max(shares[tile], 1))
        scaled = ()
        for tile in tl.static_range(TILES):
            scaled = scaled + ((shares[tile] * (1.0 / top)[:, None]).to(tl.float16),)
        shares = scaled
    # the sum of the rounded shares, so that the pooled value is a mean whatever they were rounded to
    weight = tl.where(in_k, 0.0, 1.0)
    for tile in tl.static_range(TILES):
        weight += tl.sum(shares[tile].to(tl.float32), 1)
    scale = 1.0 / weight

    z_ptr += image * z_rows * Z_ROW
    pooled_ptr += image * K * D
    for step in range(part * steps, tl.minimum((part + 1) * steps, tl.cdiv(D, BLOCK_D))):
        d = step * BLOCK_D + tl.arange(0, BLOCK_D)
        total = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
        for tile in tl.static_range(TILES):
            n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
            z = load_tile(z_ptr, n, n < N, d, D, Z_ROW, BLOCK_D)
            total = dot(shares[tile], z, total, UPCAST)
        tl.store(pooled_ptr + k[:, None] * D + d[None, :], total * scale[:, None], mask=inside(in_k, d, D, BLOCK_D))


@triton.jit(do_not_specialize=["n_tiles"])  # it follows the batch: no compilation for each
def _cosine_kernel(
    u_ptr,  # [B, N, C], rows U_ROW apart, images u_rows rows apart
    centroids_ptr,  # [B, K] int64
    cosine_ptr,  # [B, K, N] float32, clamped
    logits_ptr,  # [B, N, K]
    inverse_ptr,  # [B, N] float32: 1 / sum over k of exp(logits)
    parents_ptr,  # [B, N] int64
    N,
    u_rows,
    kappa,
    power,
    rest,
    n_tiles,  # programs per image
    K: tl.constexpr,
    C: tl.constexpr,
    U_ROW: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    image = (tl.program_id(0) // n_tiles).to(tl.int64)
    first_row = (tl.program_id(0) % n_tiles).to(tl.int64) * BLOCK_N
    n = first_row + tl.arange(0, BLOCK_N)
    in_n = n < N
    u_ptr += image * u_rows * U_ROW
    total = tl.zeros((BLOCK_N,), tl.float32)
    best = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    parent = tl.zeros((BLOCK_N,), tl.int32)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        in_k = k < K
        centroid = tl.load(centroids_ptr + image * K + k, mask=in_k, other=-1)
        in_centroid = (centroid >= 0) & (centroid < N)
        centroid = tl.where(in_centroid, centroid, 0)
        found, _inverses, _centroid_inverse = cosines(
            u_ptr, first_row, N, centroid, in_centroid, C, U_ROW, 1, BLOCK_N, BLOCK_K, BLOCK_C,
            False, PRECISE, UPCAST,
        )  # fmt: skip
        cosine = clamp(found[0])
        logits = kappa * cosine
        valid = in_k[:, None] & in_n[None, :]
        tl.store(cosine_ptr + (image * K + k[:, None]) * N + n[None, :], cosine, mask=valid)
        tl.store(logits_ptr + (image * N + n[None, :]) * K + k[:, None], logits, mask=valid)
        total += tl.sum(tl.where(in_k[:, None], exponential(cosine, power, rest, PRECISE), 0.0), 0)
        top, index = _largest(logits, in_k)
        parent = tl.where(top > best, first + index, parent)
        best = tl.maximum(best, top)
    tl.store(inverse_ptr + image * N + n, 1.0 / total, mask=in_n)
    tl.store(parents_ptr + image * N + n, parent.to(tl.int64), mask=in_n)


@triton.jit
def _pool_kernel(
    cosine_ptr,  # [B, K, N] float32
    inverse_ptr,  # [B, N] float32
    z_ptr,  # [B, N, D], rows Z_ROW apart, images z_rows rows apart
    pooled_ptr,  # [B, K, D]
    N,
    z_rows,
    power,
    rest,
    K: tl.constexpr,
    D: tl.constexpr,
    Z_ROW: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    d_tiles: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    k_tiles: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    image = (tl.program_id(0) // (k_tiles * d_tiles)).to(tl.int64)
    k = tl.program_id(0) // d_tiles % k_tiles * BLOCK_K + tl.arange(0, BLOCK_K)
    d = tl.program_id(0) % d_tiles * BLOCK_D + tl.arange(0, BLOCK_D)
    in_k = k < K
    cosine_ptr += image * K * N
    inverse_ptr += image * N
    z_ptr += image * z_rows * Z_ROW
    scale = tl.full((BLOCK_K,), 1.0, tl.float32)
    if z_ptr.dtype.element_ty == tl.float16:  # a cluster that no token is close to must not underflow as a whole
        top = tl.zeros((BLOCK_K,), tl.float32)
        for first in range(0, N, BLOCK_N):
            n = first + tl.arange(0, BLOCK_N)
            share = _softmax(cosine_ptr, inverse_ptr, k, in_k, n, N, power, rest, PRECISE)
            top = tl.maximum(top, tl.max(share, 1))
        scale = 1.0 / tl.where(in_k, top, 1.0)
    weight = tl.zeros((BLOCK_K,), tl.float32)
    total = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for first in range(0, N, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        share = _softmax(cosine_ptr, inverse_ptr, k, in_k, n, N, power, rest, PRECISE)
        share = (share * scale[:, None]).to(z_ptr.dtype.element_ty)
        weight += tl.sum(share.to(tl.float32), 1)
        z = load_tile(z_ptr, n.to(tl.int64), n < N, d, D, Z_ROW, BLOCK_D)
        total = dot(share, z, total, UPCAST)
    pooled = total * (1.0 / tl.where(in_k, weight, 1.0))[:, None]
    tl.store(pooled_ptr + (image * K + k[:, None]) * D + d[None, :], pooled, mask=inside(in_k, d, D, BLOCK_D))


@triton.jit
def _softmax(cosine_ptr, inverse_ptr, k, in_k, n, N, power, rest, PRECISE: tl.constexpr):
    """P of one image [BLOCK_K, BLOCK_N] from its cosines [K, N]; 0 outside."""
    valid = in_k[:, None] & (n < N)[None, :]
    cosine = tl.load(cosine_ptr + k[:, None].to(tl.int64) * N + n[None, :], mask=valid, other=0.0)
    inverse = tl.load(inverse_ptr + n, mask=n < N, other=0.0)
    return tl.where(valid, exponential(cosine, power, rest, PRECISE) * inverse[None, :], 0.0)


def forward(u: Tensor, centroids: Tensor, z: Tensor, kappa: float) -> tuple[Tensor, Tensor, Tensor]:
    """Launch: ``u`` [B, N, C], ``centroids`` [B, K], ``z`` [B, N, D] -> logits [B, N, K], pooled [B, K, D], parents."""
    (B, N, C), D, K = u.shape, z.shape[2], centroids.shape[1]
    logits = u.new_empty(B, N, K)
    pooled = z.new_empty(B, K, D)
    parents = centroids.new_empty(B, N)
    if B == 0:
        return logits, pooled, parents
    (u, u_row, u_rows), (z, z_row, z_rows), centroids = rows(u), rows(z), centroids.contiguous()
    arch, upcast = architecture(u.device), interpreted_bfloat16(u)
    if fits_whole(u.dtype, N, K, u_row) and fits_whole(u.dtype, N, K, z_row):
        sizes, options = _whole_tiles(arch, N, K, C, D)
        wanted = options.pop("per_processor") * processors(u.device) // B
        slices, steps = share_out(D, sizes["BLOCK_D"], wanted)
        constants = {"K": K, "C": C, "D": D, "U_ROW": u_row, "Z_ROW": z_row, "UPCAST": upcast} | sizes
        _whole_kernel[(B * slices,)](
            u, centroids, z, logits, pooled, parents, N, u_rows, z_rows, kappa, *exponent(kappa), slices, steps,
            **constants, **options,
        )  # fmt: skip
        return logits, pooled, parents
    cosine, inverse = _cosine_pass(u, u_row, u_rows, centroids, kappa, logits, parents)
    if D > 0:
        sizes, options = _pool_tiles(z.dtype, arch, N, K, D)
        constants = {"K": K, "D": D, "Z_ROW": z_row, "PRECISE": z.dtype == torch.float32, "UPCAST": upcast} | sizes
        grid = (B * triton.cdiv(K, sizes["BLOCK_K"]) * triton.cdiv(D, sizes["BLOCK_D"]),)
        _pool_kernel[grid](cosine, inverse, z, pooled, N, z_rows, *exponent(kappa), **constants, **options)
    return logits, pooled, parents


def _cosine_pass(
    u: Tensor, u_row: int, u_rows: int, centroids: Tensor, kappa: float, logits: Tensor, parents: Tensor
) -> tuple[Tensor, Tensor]:
    """Fill ``logits`` and ``parents``; return the cosines [B, K, N] and 1 / sum of exp(logits) [B, N] in float32."""
    B, N, K = logits.shape
    cosine = u.new_empty(B, K, N, dtype=torch.float32)
    inverse = u.new_empty(B, N, dtype=torch.float32)
    sizes, options = _cosine_tiles(u.dtype, architecture(u.device), B, N, K, u.shape[2], processors(u.device))
    n_tiles = triton.cdiv(N, sizes["BLOCK_N"])
    constants = {"K": K, "C": u.shape[2], "U_ROW": u_row} | sizes
    _cosine_kernel[(B * n_tiles,)](
        u, centroids, cosine, logits, inverse, parents, N, u_rows, kappa, *exponent(kappa), n_tiles,
        PRECISE=u.dtype == torch.float32, UPCAST=interpreted_bfloat16(u), **constants, **options,
    )  # fmt: skip
    return cosine, inverse


def exponent(kappa: float) -> tuple[float, float]:
    """Split kappa log2(e) into 12 bits and the rest."""
    fraction, scale = math.frexp(kappa * math.log2(math.e))
    power = math.ldexp(round(fraction * 4096), scale - 12)
    return power, kappa * math.log2(math.e) - power


def fits_whole(dtype: torch.dtype, N: int, K: int, row: int) -> bool:
    """Whether one program can keep an image's assignment in registers and address its aligned rows in 32 bits."""
    return dtype != torch.float32 and N <= LARGEST_N and K <= LARGEST_K and row % 8 == 0 and LARGEST_N * row < 2**31


# Defaults, overridden by the table of tuned tiles
def _whole_tiles(arch: int, N: int, K: int, C: int, D: int) -> tuple[dict, dict]:
    """Constants and options of `_whole_kernel`."""
    block_n = min(64, padded(N))
    default = {"AT_ONCE": 1, "BLOCK_C": 64, "BLOCK_D": 128, "num_warps": 4, "num_stages": 4, "per_processor": 4}
    default["enable_fp_fusion"] = FUSION
    if N * K > 64 * 32:  # registers are what limits here
        default |= {"BLOCK_C": 32, "BLOCK_D": 32, "num_warps": 8, "num_stages": 3, "per_processor": 1}
        if arch == 90:  # its products take the shares from the registers of four warps; two programs fill a processor
            default |= {"BLOCK_D": 64, "num_warps": 4, "per_processor": 2}
    sizes, options = split_options(tiles("assign_pool", arch, default, N=N, K=K, C=C, D=D))
    sizes |= {"TILES": triton.cdiv(N, block_n), "BLOCK_N": block_n, "BLOCK_K": padded(K)}
    if sizes["TILES"] % sizes["AT_ONCE"]:
        sizes["AT_ONCE"] = 1
    return sizes, options


def _cosine_tiles(dtype: torch.dtype, arch: int, B: int, N: int, K: int, C: int, count: int) -> tuple[dict, dict]:
    """Constants and options of `_cosine_kernel`; fewer rows a program where programs are few."""
    wide = dtype == torch.float32
    default = {"BLOCK_N": 32 if wide else 64, "BLOCK_K": min(64, padded(K)), "BLOCK_C": 16 if wide else 64}
    if B * triton.cdiv(N, default["BLOCK_N"]) < count:
        default["BLOCK_N"] = 16 if wide else 32
    return split_options(tiles("assign_pool_cosine", arch, default | OPTIONS, N=N, K=K, C=C))


def _pool_tiles(dtype: torch.dtype, arch: int, N: int, K: int, D: int) -> tuple[dict, dict]:
    """Constants and options of `_pool_kernel`."""
    wide = dtype == torch.float32
    default = {"BLOCK_N": 16 if wide else 64, "BLOCK_K": min(64, padded(K)), "BLOCK_D": 64}
    return split_options(tiles("assign_pool_pool", arch, default | OPTIONS, N=N, K=K, D=D))


def aot_cases(arch: int = OLDEST) -> list[Case]:
    """What CAST-S launches on ``arch`` in its stages, by the way of whole images and by the split one."""
    cases = []
    for dtype, name in TRITON.items():
        for N, K in ((196, 64), (64, 32), (32, 16)):
            C, D = 384, 1536
            named = {"K": K, "UPCAST": False}
            if fits_whole(dtype, N, K, D):
                sizes, options = _whole_tiles(arch, N, K, C, D)
                del options["per_processor"]
                constants = named | {"C": C, "D": D, "U_ROW": C, "Z_ROW": D} | sizes
                cases.append(case(_whole_kernel, dtype, constants, options, f"assign_pool {name} {N} -> {K}"))
            if N == 196:
                named["PRECISE"] = dtype == torch.float32
                sizes, options = _cosine_tiles(dtype, arch, 256, N, K, C, 132)
                constants = named | {"C": C, "U_ROW": C} | sizes
                cases.append(case(_cosine_kernel, dtype, constants, options, f"assign_pool cosines {name} {N} -> {K}"))
                sizes, options = _pool_tiles(dtype, arch, N, K, D)
                constants = named | {"D": D, "Z_ROW": D} | sizes
                cases.append(case(_pool_kernel, dtype, constants, options, f"assign_pool product {name} {N} -> {K}"))
    return cases


def case(kernel: triton.JITFunction, dtype: torch.dtype, constants: dict, options: dict, name: str) -> Case:
    """One specialisation; the arguments' types follow from their names."""
    own = {"centroids_ptr": "*i64", "parents_ptr": "*i64", "kappa": "fp32", "power": "fp32", "rest": "fp32"}
    own |= dict.fromkeys(FLOAT32_BUFFERS, "*fp32")
    given = [argument for argument in kernel.arg_names if argument not in constants]
    signature = {n: own.get(n, f"*{TRITON[dtype]}" if n.endswith("_ptr") else "i32") for n in given}
    return Case(kernel, signature, constants, options, name)
