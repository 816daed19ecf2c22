"""What the kernels of ``assign_pool`` and of its gradient share: cosines, exponentials, tiles, and which way to go."""

# ruff: noqa: RUF005  triton's language has no starred tuples

import math

import torch
import triton
import triton.language as tl

from cast_kernels.kernels._aot import Case
from cast_kernels.kernels._launch import TRITON

LARGEST_N, LARGEST_K = 256, 64  # in 16 bits, 64 registers a thread at four warps
FUSION = True  # contracting a * b + c only saves a rounding, in sums of squares and in the corrected exponential
FLOAT32_BUFFERS = (
    "cosine_ptr", "inverse_ptr", "norm_ptr", "parts_ptr", "change_ptr", "along_ptr", "along_centroid_ptr",
    "weight_ptr", "shared_ptr", "grad_centroid_ptr",
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
def largest(logits, in_centroid):
    """Largest logit over axis 0 and its lowest index, NaN above all numbers as torch has it."""
    ranked = tl.where(logits == logits, logits, float("inf"))
    return tl.max(tl.where(in_centroid[:, None], ranked, float("-inf")), 0, return_indices=True)


def exponent(kappa: float) -> tuple[float, float]:
    """Split kappa log2(e) into 12 bits and the rest."""
    fraction, scale = math.frexp(kappa * math.log2(math.e))
    power = math.ldexp(round(fraction * 4096), scale - 12)
    return power, kappa * math.log2(math.e) - power


def fits_whole(dtype: torch.dtype, N: int, K: int, row: int) -> bool:
    """Whether one program can keep an image's assignment in registers and address its aligned rows in 32 bits."""
    return dtype != torch.float32 and N <= LARGEST_N and K <= LARGEST_K and row % 8 == 0 and LARGEST_N * row < 2**31


def case(kernel: triton.JITFunction, dtype: torch.dtype, constants: dict, options: dict, name: str) -> Case:
    """One specialisation; the arguments' types follow from their names."""
    own = {"centroids_ptr": "*i64", "parents_ptr": "*i64", "kappa": "fp32", "power": "fp32", "rest": "fp32"}
    own |= dict.fromkeys(FLOAT32_BUFFERS, "*fp32")
    given = [argument for argument in kernel.arg_names if argument not in constants]
    signature = {n: own.get(n, f"*{TRITON[dtype]}" if n.endswith("_ptr") else "i32") for n in given}
    return Case(kernel, signature, constants, options, name)
