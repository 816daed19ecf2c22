"""Assignment by cosine and pooling for float32, many tokens or many clusters: forward kernels and launcher.

`_cosine_kernel` writes the cosines in float32 and `_pool_kernel` is a matrix product over them, both with the tokens,
clusters and columns split over programs.

Float32 has products in full float32: three TF32 products keep about 21 bits and tensor cores truncate what they add,
which errs more than plain float32 does.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cast_kernels.kernels._aot import Case
from cast_kernels.kernels._assign_pool import (
    FUSION,
    case,
    clamp,
    cosines,
    dot,
    exponent,
    exponential,
    inside,
    largest,
    load_tile,
)
from cast_kernels.kernels._launch import TRITON, interpreted_bfloat16, padded, processors, rows, split_options
from cast_kernels.kernels._tiles import OLDEST, architecture, tiles

OPTIONS = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": FUSION}


@triton.jit(do_not_specialize=["n_tiles"])  # it follows the batch: no compilation for each
def _cosine_kernel(
    u_ptr,  # [B, N, C], rows U_ROW apart, images u_rows rows apart
    centroids_ptr,  # [B, K] int64
    cosine_ptr,  # [B, K, N] float32, clamped
    logits_ptr,  # [B, N, K], or None
    inverse_ptr,  # [B, N] float32: 1 / sum over k of exp(logits)
    norm_ptr,  # [B, N] float32: 1 / norm, or None
    parents_ptr,  # [B, N] int64, or None
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
        found, norms, _centroid_inverse = cosines(
            u_ptr, first_row, N, centroid, in_centroid, C, U_ROW, 1, BLOCK_N, BLOCK_K, BLOCK_C,
            False, PRECISE, UPCAST,
        )  # fmt: skip
        cosine = clamp(found[0])
        logits = kappa * cosine
        valid = in_k[:, None] & in_n[None, :]
        tl.store(cosine_ptr + (image * K + k[:, None]) * N + n[None, :], cosine, mask=valid)
        if logits_ptr is not None:
            tl.store(logits_ptr + (image * N + n[None, :]) * K + k[:, None], logits, mask=valid)
        total += tl.sum(tl.where(in_k[:, None], exponential(cosine, power, rest, PRECISE), 0.0), 0)
        if parents_ptr is not None:
            top, index = largest(logits, in_k)
            parent = tl.where(top > best, first + index, parent)
            best = tl.maximum(best, top)
        if norm_ptr is not None:  # noqa: SIM102 - decided when compiled
            if first == 0:
                tl.store(norm_ptr + image * N + n, norms[0], mask=in_n)
    tl.store(inverse_ptr + image * N + n, tl.div_rn(1.0, total), mask=in_n)
    if parents_ptr is not None:
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
            share = shares(cosine_ptr, inverse_ptr, k, in_k, n, N, power, rest, PRECISE)
            top = tl.maximum(top, tl.max(share, 1))
        scale = 1.0 / tl.where(in_k, top, 1.0)
    weight = tl.zeros((BLOCK_K,), tl.float32)
    total = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for first in range(0, N, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        share = shares(cosine_ptr, inverse_ptr, k, in_k, n, N, power, rest, PRECISE)
        share = (share * scale[:, None]).to(z_ptr.dtype.element_ty)
        weight += tl.sum(share.to(tl.float32), 1)
        z = load_tile(z_ptr, n.to(tl.int64), n < N, d, D, Z_ROW, BLOCK_D)
        total = dot(share, z, total, UPCAST)
    pooled = total * tl.div_rn(1.0, tl.where(in_k, weight, 1.0))[:, None]
    tl.store(pooled_ptr + (image * K + k[:, None]) * D + d[None, :], pooled, mask=inside(in_k, d, D, BLOCK_D))


@triton.jit
def shares(cosine_ptr, inverse_ptr, k, in_k, n, N, power, rest, PRECISE: tl.constexpr):
    """P of one image [BLOCK_K, BLOCK_N] from its cosines [K, N]; 0 outside."""
    valid = in_k[:, None] & (n < N)[None, :]
    cosine = tl.load(cosine_ptr + k[:, None].to(tl.int64) * N + n[None, :], mask=valid, other=0.0)
    inverse = tl.load(inverse_ptr + n, mask=n < N, other=0.0)
    return tl.where(valid, exponential(cosine, power, rest, PRECISE) * inverse[None, :], 0.0)


def forward(
    u: Tensor, centroids: Tensor, z: Tensor, kappa: float, logits: Tensor, pooled: Tensor, parents: Tensor
) -> None:
    """Launch: ``u`` [B, N, C], ``centroids`` [B, K], ``z`` [B, N, D]; the last three are written."""
    (B, N, D), K = z.shape, centroids.shape[1]
    (u, u_row, u_rows), (z, z_row, z_rows) = rows(u), rows(z)
    cosine, inverse, _ = cosine_pass(u, u_row, u_rows, centroids, kappa, logits, parents)
    if D > 0:
        sizes, options = _pool_tiles(z.dtype, architecture(z.device), N, K, D)
        constants = {"K": K, "D": D, "Z_ROW": z_row, "PRECISE": z.dtype == torch.float32} | sizes
        grid = (B * triton.cdiv(K, sizes["BLOCK_K"]) * triton.cdiv(D, sizes["BLOCK_D"]),)
        _pool_kernel[grid](
            cosine, inverse, z, pooled, N, z_rows, *exponent(kappa),
            UPCAST=interpreted_bfloat16(z), **constants, **options,
        )  # fmt: skip


def cosine_pass(
    u: Tensor,
    u_row: int,
    u_rows: int,
    centroids: Tensor,
    kappa: float,
    logits: Tensor | None = None,
    parents: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fill ``logits`` and ``parents`` as far as given; return, in float32, what the products are made of.

    The cosines [B, K, N], 1 / sum over k of exp(logits) [B, N], and 1 / norm [B, N]. The last is empty in the forward.
    """
    (B, N, C), K = u.shape, centroids.shape[1]
    cosine = u.new_empty(B, K, N, dtype=torch.float32)
    inverse = cosine.new_empty(B, N)
    norm = None if logits is not None else cosine.new_empty(B, N)
    sizes, options = _cosine_tiles(u.dtype, architecture(u.device), B, N, K, C, processors(u.device))
    n_tiles = triton.cdiv(N, sizes["BLOCK_N"])
    constants = {"K": K, "C": C, "U_ROW": u_row} | sizes
    _cosine_kernel[(B * n_tiles,)](
        u, centroids, cosine, logits, inverse, norm, parents, N, u_rows, kappa, *exponent(kappa), n_tiles,
        PRECISE=u.dtype == torch.float32, UPCAST=interpreted_bfloat16(u), **constants, **options,
    )  # fmt: skip
    return cosine, inverse, norm


# Defaults, overridden by the table of tuned tiles
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
    """The first stage of CAST-S on ``arch``."""
    cases = []
    N, K, C, D = 196, 64, 384, 1536
    for dtype, name in TRITON.items():
        named = {"K": K, "UPCAST": False, "PRECISE": dtype == torch.float32}
        sizes, options = _cosine_tiles(dtype, arch, 256, N, K, C, 132)
        constants = named | {"C": C, "U_ROW": C, "norm_ptr": None} | sizes
        cases.append(case(_cosine_kernel, dtype, constants, options, f"assign_pool cosines {name} {N} -> {K}"))
        sizes, options = _pool_tiles(dtype, arch, N, K, D)
        constants = named | {"D": D, "Z_ROW": D} | sizes
        cases.append(case(_pool_kernel, dtype, constants, options, f"assign_pool product {name} {N} -> {K}"))
    return cases
