"""Gradient of assignment and pooling for float32, many tokens or many clusters: Triton kernels and their launcher.

The formulas of `assign_pool_backward`, with every matrix over tokens and clusters in memory, [B, K, N] in float32, and
tokens, clusters and columns split over programs. With M = P / w:
    A = G z^T,  s = sum over tokens of M A;  F = M (A - s),  the flow through the mean
    T = kappa (L + F - P (sum over clusters of F)),  0 where a token is its own centroid
    R = T unit tokens,  for the centroids;  grad_u = (T^T unit centroids + R at the centroids - along the token) / norm
M is at most 1, where P / w² has no bound. Rows go to centroids by a one-hot product, and a small batch cuts A's sum
over columns into parts that are added in order: no atomics. Float32 has products in full float32, as in the forward.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cast_kernels.kernels._aot import Case
from cast_kernels.kernels._assign_pool import FUSION, case, dot, exponent, inside, load_tile
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
from cast_kernels.kernels.assign_pool_split import cosine_pass, shares

OPTIONS = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": FUSION}


# 1. What the kernels share
@triton.jit
def _narrow(x, dtype: tl.constexpr):
    """``x`` as a factor of a product, and what the product is to be multiplied by: float16 has too few exponents."""
    scale = 1.0
    if dtype == tl.float16:
        scale = tl.max(tl.max(tl.abs(x), 1), 0)
        scale = tl.where(scale > 2.0**-100, scale, 1.0)
        x = x * (1.0 / scale)
    return x.to(dtype), scale


@triton.jit
def _add_product(total, a, b, scale, UPCAST: tl.constexpr):
    """Return total + scale a b; the scale is 1 but in float16."""
    if a.dtype == tl.float16:
        return total + dot(a, b, tl.zeros(total.shape, tl.float32), UPCAST) * scale
    else:
        return dot(a, b, total, UPCAST)


@triton.jit
def _load(x_ptr, k, n, N, K: tl.constexpr):
    """A tile [BLOCK_K, BLOCK_N] of one image's matrix [K, N]; 0 outside."""
    valid = (k < K)[:, None] & (n < N)[None, :]
    return tl.load(x_ptr + k[:, None].to(tl.int64) * N + n[None, :], mask=valid, other=0.0)


@triton.jit
def _load_parts(parts_ptr, k, n, N, parts, K: tl.constexpr):
    """A tile of A: its parts added in order."""
    valid = (k < K)[:, None] & (n < N)[None, :]
    row = k[:, None].to(tl.int64)
    total = tl.load(parts_ptr + row * N + n[None, :], mask=valid, other=0.0)
    for part in range(1, parts):
        total += tl.load(parts_ptr + (row + part * K) * N + n[None, :], mask=valid, other=0.0)
    return total


@triton.jit
def _centroids(centroids_ptr, k, N, K: tl.constexpr):
    """Centroids of one image, -1 for none."""
    centroid = tl.load(centroids_ptr + k, mask=k < K, other=-1)
    return tl.where((centroid >= 0) & (centroid < N), centroid, -1)


# 2. A, and what of it each cluster needs as a whole
@triton.jit(do_not_specialize=["slices", "steps"])  # they follow the batch: no compilation for each
def _product_kernel(
    z_ptr,  # [B, N, D], rows Z_ROW apart, images z_rows rows apart
    grad_pooled_ptr,  # [B, K, D]
    parts_ptr,  # [B, slices, K, N] float32
    N,
    z_rows,
    slices,
    steps,  # tiles of columns per slice
    K: tl.constexpr,
    D: tl.constexpr,
    Z_ROW: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):
    k_tiles: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    n_tiles = tl.cdiv(N, BLOCK_N)
    tile = tl.program_id(0) // slices
    part = tl.program_id(0) % slices
    image = (tile // (k_tiles * n_tiles)).to(tl.int64)
    k = tile % k_tiles * BLOCK_K + tl.arange(0, BLOCK_K)
    n = tile // k_tiles % n_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    z_ptr += image * z_rows * Z_ROW
    grad_pooled_ptr += image * K * D
    total = tl.zeros((BLOCK_K, BLOCK_N), tl.float32)
    for step in range(part * steps, tl.minimum((part + 1) * steps, tl.cdiv(D, BLOCK_D))):
        d = step * BLOCK_D + tl.arange(0, BLOCK_D)
        grad = load_tile(grad_pooled_ptr, k.to(tl.int64), k < K, d, D, D, BLOCK_D)
        z = load_tile(z_ptr, n.to(tl.int64), n < N, d, D, Z_ROW, BLOCK_D)
        total = dot(grad, tl.trans(z), total, UPCAST)
    here = parts_ptr + (image * slices + part) * K * N + k[:, None].to(tl.int64) * N + n[None, :]
    tl.store(here, total, mask=(k < K)[:, None] & (n < N)[None, :])


@triton.jit(do_not_specialize=["parts"])
def _sums_kernel(
    cosine_ptr,  # [B, K, N] float32, clamped
    inverse_ptr,  # [B, N] float32: 1 / sum over k of exp(logits)
    parts_ptr,  # [B, parts, K, N] float32
    weight_ptr,  # [B, K] float32: 1 / w
    shared_ptr,  # [B, K] float32: s
    N,
    power,
    rest,
    parts,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISE: tl.constexpr,
):
    k_tiles: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    image = (tl.program_id(0) // k_tiles).to(tl.int64)
    k = tl.program_id(0) % k_tiles * BLOCK_K + tl.arange(0, BLOCK_K)
    weight = tl.where(k < K, 0.0, 1.0)
    shared = tl.zeros((BLOCK_K,), tl.float32)
    for first in range(0, N, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        share = shares(cosine_ptr + image * K * N, inverse_ptr + image * N, k, k < K, n, N, power, rest, PRECISE)
        weight += tl.sum(share, 1)
        shared += tl.sum(share * _load_parts(parts_ptr + image * parts * K * N, k, n, N, parts, K), 1)
    tl.store(weight_ptr + image * K + k, tl.div_rn(1.0, weight), mask=k < K)
    tl.store(shared_ptr + image * K + k, shared / weight, mask=k < K)


# 3. T
@triton.jit(do_not_specialize=["parts"])
def _change_kernel(
    centroids_ptr,  # [B, K] int64
    cosine_ptr,  # [B, K, N] float32, clamped
    inverse_ptr,  # [B, N] float32
    parts_ptr,  # [B, parts, K, N] float32
    weight_ptr,  # [B, K] float32
    shared_ptr,  # [B, K] float32
    grad_logits_ptr,  # [B, N, K]
    change_ptr,  # [B, K, N] float32: T
    along_ptr,  # [B, N] float32: sum over k of T cosine
    N,
    kappa,
    power,
    rest,
    parts,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISE: tl.constexpr,
):
    n_tiles = tl.cdiv(N, BLOCK_N)
    image = (tl.program_id(0) // n_tiles).to(tl.int64)
    n = tl.program_id(0) % n_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    cosine_ptr += image * K * N
    inverse_ptr += image * N
    parts_ptr += image * parts * K * N
    weight_ptr += image * K
    shared_ptr += image * K
    flow = tl.zeros((BLOCK_N,), tl.float32)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        share = shares(cosine_ptr, inverse_ptr, k, k < K, n, N, power, rest, PRECISE)
        flow += tl.sum(_flow(share, parts_ptr, weight_ptr, shared_ptr, k, n, N, parts, K), 0)
    along = tl.zeros((BLOCK_N,), tl.float32)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        valid = (k < K)[:, None] & (n < N)[None, :]
        share = shares(cosine_ptr, inverse_ptr, k, k < K, n, N, power, rest, PRECISE)
        through = _flow(share, parts_ptr, weight_ptr, shared_ptr, k, n, N, parts, K)
        here = grad_logits_ptr + (image * N + n[None, :]) * K + k[:, None]
        grad_logits = tl.load(here, mask=valid, other=0.0).to(tl.float32)
        change = kappa * (grad_logits + (through - share * flow[None, :]))
        # a token's cosine with itself is 1 whatever the token: nothing flows, where rounding would let a little
        own = _centroids(centroids_ptr + image * K, k, N, K)[:, None] == n[None, :]
        change = tl.where(valid & (own == 0), change, 0.0)
        tl.store(change_ptr + (image * K + k[:, None]) * N + n[None, :], change, mask=valid)
        along += tl.sum(change * _load(cosine_ptr, k, n, N, K), 0)
    tl.store(along_ptr + image * N + n, along, mask=n < N)


@triton.jit
def _flow(share, parts_ptr, weight_ptr, shared_ptr, k, n, N, parts, K: tl.constexpr):
    """F [BLOCK_K, BLOCK_N]."""
    weight = tl.load(weight_ptr + k, mask=k < K, other=0.0)
    shared = tl.load(shared_ptr + k, mask=k < K, other=0.0)
    return share * weight[:, None] * (_load_parts(parts_ptr, k, n, N, parts, K) - shared[:, None])


# 4. The gradients
@triton.jit
def _grad_centroid_kernel(
    u_ptr,  # [B, N, C], rows U_ROW apart, images u_rows rows apart
    norm_ptr,  # [B, N] float32: 1 / norm
    cosine_ptr,  # [B, K, N] float32, clamped
    change_ptr,  # [B, K, N] float32
    grad_centroid_ptr,  # [B, K, C] float32: R
    along_centroid_ptr,  # [B, K] float32: sum over n of T cosine
    N,
    u_rows,
    K: tl.constexpr,
    C: tl.constexpr,
    U_ROW: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    UPCAST: tl.constexpr,
):
    k_tiles: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    c_tiles: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    image = (tl.program_id(0) // (k_tiles * c_tiles)).to(tl.int64)
    k = tl.program_id(0) // c_tiles % k_tiles * BLOCK_K + tl.arange(0, BLOCK_K)
    c = tl.program_id(0) % c_tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    u_ptr += image * u_rows * U_ROW
    along = tl.zeros((BLOCK_K,), tl.float32)
    total = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    for first in range(0, N, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        change = _load(change_ptr + image * K * N, k, n, N, K)
        if tl.program_id(0) % c_tiles == 0:
            along += tl.sum(change * _load(cosine_ptr + image * K * N, k, n, N, K), 1)
        norm = tl.load(norm_ptr + image * N + n, mask=n < N, other=0.0)
        u = load_tile(u_ptr, n.to(tl.int64), n < N, c, C, U_ROW, BLOCK_C)
        if u.dtype == tl.float16:  # products of unit rows stay in range
            u = (u.to(tl.float32) * norm[:, None]).to(tl.float16)
        else:
            change = change * norm[None, :]
        change, scale = _narrow(change, u.dtype)
        total = _add_product(total, change, u, scale, UPCAST)
    here = grad_centroid_ptr + (image * K + k[:, None]) * C + c[None, :]
    tl.store(here, total, mask=inside(k < K, c, C, BLOCK_C))
    if tl.program_id(0) % c_tiles == 0:
        tl.store(along_centroid_ptr + image * K + k, along, mask=k < K)


@triton.jit
def _grad_token_kernel(
    u_ptr,  # [B, N, C], rows U_ROW apart, images u_rows rows apart
    centroids_ptr,  # [B, K] int64
    norm_ptr,  # [B, N] float32: 1 / norm
    change_ptr,  # [B, K, N] float32
    along_ptr,  # [B, N] float32
    grad_centroid_ptr,  # [B, K, C] float32
    along_centroid_ptr,  # [B, K] float32
    grad_u_ptr,  # [B, N, C]
    N,
    u_rows,
    K: tl.constexpr,
    C: tl.constexpr,
    U_ROW: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    UPCAST: tl.constexpr,
):
    dtype: tl.constexpr = u_ptr.dtype.element_ty
    c_tiles: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    n_tiles = tl.cdiv(N, BLOCK_N)
    image = (tl.program_id(0) // (c_tiles * n_tiles)).to(tl.int64)
    n = tl.program_id(0) // c_tiles % n_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.program_id(0) % c_tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    u_ptr += image * u_rows * U_ROW
    norm_ptr += image * N
    along = tl.load(along_ptr + image * N + n, mask=n < N, other=0.0)
    total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        centroid = _centroids(centroids_ptr + image * K, k, N, K)
        row = tl.where(centroid >= 0, centroid, 0)
        norm = tl.load(norm_ptr + row, mask=centroid >= 0, other=0.0)
        v = load_tile(u_ptr, row, centroid >= 0, c, C, U_ROW, BLOCK_C)
        change = _load(change_ptr + image * K * N, k, n, N, K)
        if dtype == tl.float16:
            v = (v.to(tl.float32) * norm[:, None]).to(tl.float16)
        else:
            change = change * norm[:, None]
        change, scale = _narrow(change, dtype)
        total = _add_product(total, tl.trans(change), v, scale, UPCAST)
        member = n[:, None] == centroid[None, :]
        if tl.max(tl.max(member.to(tl.int32), 1), 0) > 0:
            here = grad_centroid_ptr + (image * K + k[:, None]) * C + c[None, :]
            grad = tl.load(here, mask=inside(k < K, c, C, BLOCK_C), other=0.0)
            grad, scale = _narrow(grad, dtype)
            total = _add_product(total, member.to(tl.float32).to(dtype), grad, scale, UPCAST)
            along_centroid = tl.load(along_centroid_ptr + image * K + k, mask=k < K, other=0.0)
            along += tl.sum(tl.where(member, along_centroid[None, :], 0.0), 1)
    norm = tl.load(norm_ptr + n, mask=n < N, other=0.0)
    u = load_tile(u_ptr, n.to(tl.int64), n < N, c, C, U_ROW, BLOCK_C).to(tl.float32)
    grad = (total - u * (along * norm)[:, None]) * norm[:, None]
    tl.store(grad_u_ptr + (image * N + n[:, None]) * C + c[None, :], grad, mask=inside(n < N, c, C, BLOCK_C))


@triton.jit
def _grad_z_kernel(
    cosine_ptr,  # [B, K, N] float32, clamped
    inverse_ptr,  # [B, N] float32
    weight_ptr,  # [B, K] float32: 1 / w
    grad_pooled_ptr,  # [B, K, D]
    grad_z_ptr,  # [B, N, D]
    N,
    power,
    rest,
    K: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    d_tiles: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    n_tiles = tl.cdiv(N, BLOCK_N)
    image = (tl.program_id(0) // (d_tiles * n_tiles)).to(tl.int64)
    n = tl.program_id(0) // d_tiles % n_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.program_id(0) % d_tiles * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        mean = shares(cosine_ptr + image * K * N, inverse_ptr + image * N, k, k < K, n, N, power, rest, PRECISE)
        mean = mean * tl.load(weight_ptr + image * K + k, mask=k < K, other=0.0)[:, None]
        grad = load_tile(grad_pooled_ptr + image * K * D, k.to(tl.int64), k < K, d, D, D, BLOCK_D)
        mean, scale = _narrow(mean, grad.dtype)
        total = _add_product(total, tl.trans(mean), grad, scale, UPCAST)
    tl.store(grad_z_ptr + (image * N + n[:, None]) * D + d[None, :], total, mask=inside(n < N, d, D, BLOCK_D))


# 5. Launcher
def backward(
    u: Tensor, centroids: Tensor, z: Tensor, kappa: float, grad_logits: Tensor, grad_pooled: Tensor
) -> tuple[Tensor, Tensor]:
    """Launch: the inputs of the forward, ``grad_logits`` [B, N, K], ``grad_pooled`` [B, K, D] -> grad_u, grad_z."""
    (B, N, C), D, K = u.shape, z.shape[2], centroids.shape[1]
    grad_u, grad_z = u.new_empty(B, N, C), z.new_empty(B, N, D)
    (u, u_row, u_rows), (z, z_row, z_rows), centroids = rows(u), rows(z), centroids.contiguous()
    grad_logits, grad_pooled = grad_logits.contiguous(), grad_pooled.contiguous()
    arch, count, dtype = architecture(u.device), processors(u.device), u.dtype
    upcast, precise = interpreted_bfloat16(u), dtype == torch.float32
    cosine, inverse, norm = cosine_pass(u, u_row, u_rows, centroids, kappa)

    sizes, options = _product_tiles("product", dtype, arch, (K, "K"), (N, "N"), D, "D", B, count)
    programs = B * triton.cdiv(K, sizes["BLOCK_K"]) * triton.cdiv(N, sizes["BLOCK_N"])
    slices, steps = share_out(D, sizes["BLOCK_D"], 2 * count // programs)
    parts = cosine.new_empty(B, slices, K, N)
    _product_kernel[(programs * slices,)](
        z, grad_pooled, parts, N, z_rows, slices, steps, K=K, D=D, Z_ROW=z_row, UPCAST=upcast, **sizes, **options
    )
    weight, shared = cosine.new_empty(B, K), cosine.new_empty(B, K)
    sizes, options = _elementwise_tiles("sums", arch, N, K)
    _sums_kernel[(B * triton.cdiv(K, sizes["BLOCK_K"]),)](
        cosine, inverse, parts, weight, shared, N, *exponent(kappa), slices, K=K, PRECISE=precise, **sizes, **options
    )
    change, along = torch.empty_like(cosine), torch.empty_like(norm)
    sizes, options = _elementwise_tiles("change", arch, N, K)
    _change_kernel[(B * triton.cdiv(N, sizes["BLOCK_N"]),)](
        centroids, cosine, inverse, parts, weight, shared, grad_logits, change, along, N, kappa, *exponent(kappa),
        slices, K=K, PRECISE=precise, **sizes, **options,
    )  # fmt: skip
    if C > 0:
        grad_centroid, along_centroid = cosine.new_empty(B, K, C), torch.empty_like(weight)
        named = {"K": K, "C": C, "U_ROW": u_row, "UPCAST": upcast}
        sizes, options = _product_tiles("grad_centroid", dtype, arch, (K, "K"), (C, "C"), N, "N", B, count)
        _grad_centroid_kernel[(B * triton.cdiv(K, sizes["BLOCK_K"]) * triton.cdiv(C, sizes["BLOCK_C"]),)](
            u, norm, cosine, change, grad_centroid, along_centroid, N, u_rows, **named, **sizes, **options
        )
        sizes, options = _product_tiles("grad_token", dtype, arch, (N, "N"), (C, "C"), K, "K", B, count)
        _grad_token_kernel[(B * triton.cdiv(N, sizes["BLOCK_N"]) * triton.cdiv(C, sizes["BLOCK_C"]),)](
            u, centroids, norm, change, along, grad_centroid, along_centroid, grad_u, N, u_rows,
            **named, **sizes, **options,
        )  # fmt: skip
    if D > 0:
        sizes, options = _product_tiles("grad_z", dtype, arch, (N, "N"), (D, "D"), K, "K", B, count)
        _grad_z_kernel[(B * triton.cdiv(N, sizes["BLOCK_N"]) * triton.cdiv(D, sizes["BLOCK_D"]),)](
            cosine, inverse, weight, grad_pooled, grad_z, N, *exponent(kappa),
            K=K, D=D, PRECISE=precise, UPCAST=upcast, **sizes, **options,
        )  # fmt: skip
    return grad_u, grad_z


# Defaults, overridden by the table of tuned tiles
def _product_tiles(
    name: str,
    dtype: torch.dtype,
    arch: int,
    height: tuple[int, str],
    width: tuple[int, str],
    depth: int,
    over: str,
    B: int,
    count: int,
) -> tuple[dict, dict]:
    """Constants and options of a product [height, width], each a size and its letter, summed over ``depth``."""
    (M, m), (W, w) = height, width
    block_m, block_w = min(64, padded(M)), min(64, padded(W))
    if B * triton.cdiv(M, block_m) * triton.cdiv(W, block_w) < count:
        block_m, block_w = min(32, block_m), min(32, block_w)
    default = {f"BLOCK_{m}": block_m, f"BLOCK_{w}": block_w, f"BLOCK_{over}": 16 if dtype == torch.float32 else 32}
    options = dict(OPTIONS)
    if (arch >= 120 and name == "grad_token") or (arch >= 100 and name == "grad_centroid"):  # with 4 warps some spill
        options["num_warps"] = 8
    sizes = {m: M, w: W, over: depth}
    return split_options(tiles(f"assign_pool_split_{name}", arch, default | options, **sizes))


def _elementwise_tiles(name: str, arch: int, N: int, K: int) -> tuple[dict, dict]:
    """Constants and options of `_sums_kernel`, which goes over the tokens, and `_change_kernel`, over the clusters."""
    default = {"BLOCK_K": 16, "BLOCK_N": min(64, padded(N))} | OPTIONS
    return split_options(tiles(f"assign_pool_split_{name}", arch, default, N=N, K=K))


def aot_cases(arch: int = OLDEST) -> list[Case]:
    """The first stage of CAST-S in float32, and of a dense model of 1024 tokens and 320 clusters in 16 bits."""
    shapes = ((torch.float32, 196, 64, 384), (torch.float16, 1024, 320, 768), (torch.bfloat16, 1024, 320, 768))
    return [one for dtype, N, K, C in shapes for one in _cases(dtype, N, K, C, 4 * C, arch)]


def _cases(dtype: torch.dtype, N: int, K: int, C: int, D: int, arch: int) -> list[Case]:
    named = {"K": K, "C": C, "D": D, "U_ROW": C, "Z_ROW": D, "UPCAST": False, "PRECISE": dtype == torch.float32}
    cases = []
    for kernel, (sizes, options) in (
        (_product_kernel, _product_tiles("product", dtype, arch, (K, "K"), (N, "N"), D, "D", 64, 132)),
        (_sums_kernel, _elementwise_tiles("sums", arch, N, K)),
        (_change_kernel, _elementwise_tiles("change", arch, N, K)),
        (_grad_centroid_kernel, _product_tiles("grad_centroid", dtype, arch, (K, "K"), (C, "C"), N, "N", 64, 132)),
        (_grad_token_kernel, _product_tiles("grad_token", dtype, arch, (N, "N"), (C, "C"), K, "K", 64, 132)),
        (_grad_z_kernel, _product_tiles("grad_z", dtype, arch, (N, "N"), (D, "D"), K, "K", 64, 132)),
    ):
        constants = {name: value for name, value in (named | sizes).items() if name in kernel.arg_names}
        label = f"assign_pool backward split {kernel.__name__} {TRITON[dtype]} {N} -> {K}"
        cases.append(case(kernel, dtype, constants, options, label))
    return cases
