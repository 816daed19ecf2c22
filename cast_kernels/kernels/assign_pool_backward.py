"""Gradient of assignment by cosine and pooling: Triton kernels and their launcher.

With P the shares, w their sums over tokens, G the gradient of the pooled values and L that of the logits:
    grad_z = (P / w) G
    A = z G^T,  s = sum over tokens of P A;  gradient of P = (A - s / w) / w
    T = kappa (L + P (gradient of P - its mean under P)), the gradient of the cosines, [N, K]
    grad_u = (T centres + T's product with the tokens, at the centroids - its part along the token) / norm

Three kernels. `_grad_z_kernel` streams z, G and grad_z past P and leaves the cosines and A, which needs all of D, in
one float32 part for each program of an image; `_change_kernel` adds the parts in order and makes T; `_grad_u_kernel`
streams u past T. Rows go to centroids by a one-hot product, so a repeated centroid is summed in a fixed order without
atomics. They take what `assign_pool` keeps whole; all else goes the way of `assign_pool_backward_split`.
"""

# ruff: noqa: RUF005  triton's language has no starred tuples

import torch
import triton
import triton.language as tl
from torch import Tensor

from cast_kernels.kernels import assign_pool_backward_split
from cast_kernels.kernels._aot import SHARED_MEMORY, Case
from cast_kernels.kernels._assign_pool import (
    FUSION,
    case,
    clamp,
    cosines,
    dot,
    exponent,
    exponential,
    fits_whole,
    inside,
    load_tile,
)
from cast_kernels.kernels._launch import (
    TRITON,
    interpreted_bfloat16,
    padded,
    processors,
    row_length,
    rows,
    share_out,
    split_options,
)
from cast_kernels.kernels._tiles import OLDEST, architecture, tiles


@triton.jit
def _softmax(cosine, in_n, in_k, power, rest):
    """P [BLOCK_N, BLOCK_K] of clamped cosines; 0 outside."""
    share = tl.where(in_n[:, None] & in_k[None, :], exponential(cosine, power, rest, False), 0.0)
    return share * (1.0 / tl.where(in_n, tl.sum(share, 1), 1.0))[:, None]


@triton.jit
def _centroid(centroids_ptr, k, in_k, N):
    """Centroids of an image as int32, -1 for none."""
    centroid = tl.load(centroids_ptr + k, mask=in_k, other=-1)
    return tl.where((centroid >= 0) & (centroid < N), centroid, -1).to(tl.int32)


@triton.jit(do_not_specialize=["slices", "steps"])  # it follows the batch: no compilation for each
def _grad_z_kernel(
    u_ptr,  # [B, N, C], rows U_ROW apart, images u_rows rows apart
    centroids_ptr,  # [B, K] int64
    z_ptr,  # [B, N, D], rows Z_ROW apart, images z_rows rows apart
    grad_pooled_ptr,  # [B, K, D]
    grad_z_ptr,  # [B, N, D]
    cosine_ptr,  # [B, N, K] float32, clamped
    norm_ptr,  # [B, N] float32: 1 / norm
    parts_ptr,  # [B, slices, N, K] float32: each program's part of A
    N,
    u_rows,
    z_rows,
    power,
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
    image = (tl.program_id(0) // slices).to(tl.int64)
    part = tl.program_id(0) % slices
    k = tl.arange(0, BLOCK_K)
    in_k = k < K
    u_ptr += image * u_rows * U_ROW
    centroid = _centroid(centroids_ptr + image * K, k, in_k, N)
    found = ()
    inverses = ()
    shares = ()
    products = ()
    weight = tl.where(in_k, 0.0, 1.0)
    for tile in tl.static_range(TILES):
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        in_n = n < N
        if tile % AT_ONCE == 0:
            found, inverses, _centroid_inverse = cosines(
                u_ptr, tile * BLOCK_N, N, tl.where(centroid >= 0, centroid, 0), centroid >= 0, C, U_ROW,
                AT_ONCE, BLOCK_N, BLOCK_K, BLOCK_C, True, False, UPCAST,
            )  # fmt: skip
        cosine = clamp(found[tile % AT_ONCE])
        if part == 0:
            valid = in_n[:, None] & in_k[None, :]
            tl.store(cosine_ptr + image * N * K + n[:, None] * K + k[None, :], cosine, mask=valid)
            tl.store(norm_ptr + image * N + n, inverses[tile % AT_ONCE], mask=in_n)
        share = _softmax(cosine, in_n, in_k, power, rest)
        weight += tl.sum(share, 0)
        shares = shares + (share,)
        products = products + (tl.zeros((BLOCK_N, BLOCK_K), tl.float32),)
    means = ()
    for tile in tl.static_range(TILES):
        means = means + ((shares[tile] * (1.0 / weight)[None, :]).to(z_ptr.dtype.element_ty),)
    z_ptr += image * z_rows * Z_ROW
    grad_z_ptr += image * N * D
    grad_pooled_ptr += image * K * D
    for step in range(part * steps, tl.minimum((part + 1) * steps, tl.cdiv(D, BLOCK_D))):
        d = step * BLOCK_D + tl.arange(0, BLOCK_D)
        grad = load_tile(grad_pooled_ptr, k, in_k, d, D, D, BLOCK_D)
        new_products = ()
        for tile in tl.static_range(TILES):
            n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
            z = load_tile(z_ptr, n, n < N, d, D, Z_ROW, BLOCK_D)
            new_products = new_products + (dot(z, tl.trans(grad), products[tile], UPCAST),)
            grad_z = dot(means[tile], grad, tl.zeros((BLOCK_N, BLOCK_D), tl.float32), UPCAST)
            tl.store(grad_z_ptr + n[:, None] * D + d[None, :], grad_z, mask=inside(n < N, d, D, BLOCK_D))
        products = new_products
    parts_ptr += (image * slices + part) * N * K
    for tile in tl.static_range(TILES):
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        tl.store(parts_ptr + n[:, None] * K + k[None, :], products[tile], mask=(n < N)[:, None] & in_k[None, :])


@triton.jit(do_not_specialize=["parts"])  # it follows the batch: no compilation for each
def _change_kernel(
    centroids_ptr,  # [B, K] int64
    cosine_ptr,  # [B, N, K] float32
    parts_ptr,  # [B, parts, N, K] float32
    grad_logits_ptr,  # [B, N, K]
    change_ptr,  # [B, N, K] float32: T
    along_ptr,  # [B, N] float32: sum over k of T cosine
    along_centroid_ptr,  # [B, K] float32: sum over n of T cosine
    N,
    kappa,
    power,
    rest,
    parts,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    in_k = k < K
    centroid = _centroid(centroids_ptr + image * K, k, in_k, N)
    weight = tl.where(in_k, 0.0, 1.0)
    shared = tl.zeros((BLOCK_K,), tl.float32)
    for first in range(0, N, BLOCK_N):
        share, _cosine, product = _shares_and_products(
            cosine_ptr, parts_ptr, image, first, N, power, rest, parts, K, BLOCK_N, BLOCK_K
        )
        weight += tl.sum(share, 0)
        shared += tl.sum(share * product, 0)
    inverse = 1.0 / weight
    along_centroid = tl.zeros((BLOCK_K,), tl.float32)
    for first in range(0, N, BLOCK_N):
        share, cosine, product = _shares_and_products(
            cosine_ptr, parts_ptr, image, first, N, power, rest, parts, K, BLOCK_N, BLOCK_K
        )
        n = first + tl.arange(0, BLOCK_N)
        valid = (n < N)[:, None] & in_k[None, :]
        tile = image * N * K + n[:, None] * K + k[None, :]
        grad_logits = tl.load(grad_logits_ptr + tile, mask=valid, other=0.0).to(tl.float32)
        grad_share = (product - (shared * inverse)[None, :]) * inverse[None, :]
        change = kappa * (grad_logits + share * (grad_share - tl.sum(share * grad_share, 1)[:, None]))
        # a token's cosine with itself is 1 whatever the token: nothing flows, where rounding would let a little
        change = tl.where(valid & (n[:, None] != centroid[None, :]), change, 0.0)
        tl.store(change_ptr + tile, change, mask=valid)
        tl.store(along_ptr + image * N + n, tl.sum(change * cosine, 1), mask=n < N)
        along_centroid += tl.sum(change * cosine, 0)
    tl.store(along_centroid_ptr + image * K + k, along_centroid, mask=in_k)


@triton.jit
def _shares_and_products(
    cosine_ptr,
    parts_ptr,
    image,
    first,
    N,
    power,
    rest,
    parts,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """P, cosines and A [BLOCK_N, BLOCK_K] of one tile of tokens."""
    n = first + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    valid = (n < N)[:, None] & (k < K)[None, :]
    tile = n[:, None] * K + k[None, :]
    cosine = tl.load(cosine_ptr + image * N * K + tile, mask=valid, other=0.0)
    product = tl.load(parts_ptr + image * parts * N * K + tile, mask=valid, other=0.0)
    for part in range(1, parts):
        product += tl.load(parts_ptr + (image * parts + part) * N * K + tile, mask=valid, other=0.0)
    return _softmax(cosine, n < N, k < K, power, rest), cosine, product


@triton.jit(do_not_specialize=["slices", "steps"])  # it follows the batch: no compilation for each
def _grad_u_kernel(
    u_ptr,  # [B, N, C], rows U_ROW apart, images u_rows rows apart
    centroids_ptr,  # [B, K] int64
    norm_ptr,  # [B, N] float32: 1 / norm
    change_ptr,  # [B, N, K] float32: T
    along_ptr,  # [B, N] float32
    along_centroid_ptr,  # [B, K] float32
    grad_u_ptr,  # [B, N, C]
    N,
    u_rows,
    slices,  # programs per image
    steps,  # tiles of u's columns per program
    K: tl.constexpr,
    C: tl.constexpr,
    U_ROW: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    KEEP: tl.constexpr,  # whether both copies of T stay in the program; where shared memory is small one is read again
    UPCAST: tl.constexpr,
):
    dtype: tl.constexpr = u_ptr.dtype.element_ty
    UNIT: tl.constexpr = dtype == tl.float16  # products of unit rows and of T scaled to 1, to stay in range
    image = (tl.program_id(0) // slices).to(tl.int64)
    part = tl.program_id(0) % slices
    k = tl.arange(0, BLOCK_K)
    in_k = k < K
    u_ptr += image * u_rows * U_ROW
    norm_ptr += image * N
    change_ptr += image * N * K
    grad_u_ptr += image * N * C
    centroid = _centroid(centroids_ptr + image * K, k, in_k, N)
    in_centroid = centroid >= 0
    row = tl.where(in_centroid, centroid, 0)
    centroid_norm = tl.load(norm_ptr + row, mask=in_centroid, other=0.0)
    along_centroid = tl.load(along_centroid_ptr + image * K + k, mask=in_k, other=0.0)
    scale = 1.0
    if UNIT:
        scale = 0.0
        for tile in tl.static_range(TILES):
            n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
            valid = (n < N)[:, None] & in_k[None, :]
            change = tl.load(change_ptr + n[:, None] * K + k[None, :], mask=valid, other=0.0)
            scale = tl.maximum(scale, tl.max(tl.abs(change)))
        scale = tl.where(scale > 0.0, scale, 1.0)

    to_tokens = ()  # times the centroids' rows
    to_centroids = ()  # times the tokens' rows
    along = ()  # the gradient's part along each unit token
    norms = ()
    for tile in tl.static_range(TILES):
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        change = tl.load(change_ptr + n[:, None] * K + k[None, :], mask=(n < N)[:, None] & in_k[None, :], other=0.0)
        norm = tl.load(norm_ptr + n, mask=n < N, other=0.0)
        own = tl.sum(tl.where(n[:, None] == centroid[None, :], along_centroid[None, :], 0.0), 1)
        along = along + (tl.load(along_ptr + image * N + n, mask=n < N, other=0.0) + own,)
        norms = norms + (norm,)
        if KEEP:
            to_tokens = to_tokens + (_to_tokens(change, centroid_norm, scale, UNIT).to(dtype),)
        if UNIT:
            to_centroids = to_centroids + (tl.trans((change * (1.0 / scale)).to(dtype)),)
        else:
            to_centroids = to_centroids + (tl.trans((change * norm[:, None]).to(dtype)),)

    for step in range(part * steps, tl.minimum((part + 1) * steps, tl.cdiv(C, BLOCK_C))):
        c = step * BLOCK_C + tl.arange(0, BLOCK_C)
        v = load_tile(u_ptr, row, in_centroid, c, C, U_ROW, BLOCK_C)
        if UNIT:
            v = (v.to(tl.float32) * centroid_norm[:, None]).to(dtype)
        total = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
        tokens = ()
        for tile in tl.static_range(TILES):
            n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
            u = load_tile(u_ptr, n, n < N, c, C, U_ROW, BLOCK_C)
            tokens = tokens + (u,)
            if UNIT:
                u = (u.to(tl.float32) * norms[tile][:, None]).to(dtype)
            total = dot(to_centroids[tile], u, total, UPCAST)
        total = total.to(dtype)
        for tile in tl.static_range(TILES):
            n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
            member = (n[:, None] == centroid[None, :]).to(tl.float32).to(dtype)
            if KEEP:
                to_token = to_tokens[tile]
            else:
                valid = (n < N)[:, None] & in_k[None, :]
                change = tl.load(change_ptr + n[:, None] * K + k[None, :], mask=valid, other=0.0)
                to_token = _to_tokens(change, centroid_norm, scale, UNIT).to(dtype)
            grad = dot(to_token, v, tl.zeros((BLOCK_N, BLOCK_C), tl.float32), UPCAST)
            grad = dot(member, total, grad, UPCAST) * scale
            grad = (grad - tokens[tile].to(tl.float32) * (along[tile] * norms[tile])[:, None]) * norms[tile][:, None]
            tl.store(grad_u_ptr + n[:, None] * C + c[None, :], grad, mask=inside(n < N, c, C, BLOCK_C))


@triton.jit
def _to_tokens(change, centroid_norm, scale, UNIT: tl.constexpr):
    """T as the factor of the centroids' rows, of unit length or not."""
    if UNIT:
        return change * (1.0 / scale)
    else:
        return change * centroid_norm[None, :]


def takes(u: Tensor, centroids: Tensor, z: Tensor) -> bool:
    """Whether one program can do an image's gradient."""
    sizes = (u.dtype, u.shape[1], centroids.shape[1])
    return all(fits_whole(*sizes, row) for row in (row_length(u), row_length(z), u.shape[2], z.shape[2]))


def backward(
    u: Tensor, centroids: Tensor, z: Tensor, kappa: float, grad_logits: Tensor, grad_pooled: Tensor
) -> tuple[Tensor, Tensor]:
    """Launch: the inputs of the forward, ``grad_logits`` [B, N, K], ``grad_pooled`` [B, K, D] -> grad_u, grad_z."""
    (B, N, C), D, K = u.shape, z.shape[2], centroids.shape[1]
    grad_u, grad_z = u.new_empty(B, N, C), z.new_empty(B, N, D)
    if B == 0:
        return grad_u, grad_z
    if not takes(u, centroids, z):
        return assign_pool_backward_split.backward(u, centroids, z, kappa, grad_logits, grad_pooled)
    (u, u_row, u_rows), (z, z_row, z_rows), centroids = rows(u), rows(z), centroids.contiguous()
    grad_logits, grad_pooled = grad_logits.contiguous(), grad_pooled.contiguous()
    arch, count = architecture(u.device), processors(u.device)
    named = {"K": K, "C": C, "U_ROW": u_row, "UPCAST": interpreted_bfloat16(u)}
    sizes, options = _grad_z_tiles(arch, N, K, C, D)
    slices, steps = share_out(D, sizes["BLOCK_D"], options.pop("per_processor") * count // B)
    parts = u.new_empty(B, slices, N, K, dtype=torch.float32)
    cosine, change = torch.empty_like(parts[:, 0]), torch.empty_like(parts[:, 0])
    norm, along = parts.new_empty(B, N), parts.new_empty(B, N)
    along_centroid = parts.new_empty(B, K)
    _grad_z_kernel[(B * slices,)](
        u, centroids, z, grad_pooled, grad_z, cosine, norm, parts, N, u_rows, z_rows, *exponent(kappa), slices, steps,
        D=D, Z_ROW=z_row, **named, **sizes, **options,
    )  # fmt: skip
    sizes, options = _change_tiles(arch, N, K)
    _change_kernel[(B,)](
        centroids, cosine, parts, grad_logits, change, along, along_centroid, N, kappa, *exponent(kappa), slices,
        K=K, **sizes, **options,
    )  # fmt: skip
    sizes, options = _grad_u_tiles(arch, N, K, C)
    slices, steps = share_out(C, sizes["BLOCK_C"], options.pop("per_processor") * count // B)
    _grad_u_kernel[(B * slices,)](
        u, centroids, norm, change, along, along_centroid, grad_u, N, u_rows, slices, steps,
        **named, **sizes, **options,
    )  # fmt: skip
    return grad_u, grad_z


# Defaults, overridden by the table of tuned tiles
def _grad_z_tiles(arch: int, N: int, K: int, C: int, D: int) -> tuple[dict, dict]:
    """Constants and options of `_grad_z_kernel`."""
    default = {"AT_ONCE": 1, "BLOCK_C": 32, "BLOCK_D": 32, "num_stages": 3, "enable_fp_fusion": FUSION}
    default |= {"num_warps": 4, "per_processor": 4}
    if N * K > 64 * 32:  # registers are what limits here
        default |= {"num_warps": 8, "per_processor": 1, "BLOCK_D": 16}
        if 90 <= arch < 120:
            default |= {"AT_ONCE": 4, "BLOCK_D": 64 if arch == 90 else 32}
    sizes, options = split_options(tiles("assign_pool_grad_z", arch, default, N=N, K=K, C=C, D=D))
    sizes |= _blocks(N, K)
    if sizes["TILES"] % sizes["AT_ONCE"]:
        sizes["AT_ONCE"] = 1
    return sizes, options


def _grad_u_tiles(arch: int, N: int, K: int, C: int) -> tuple[dict, dict]:
    """Constants and options of `_grad_u_kernel`."""
    large = N * K > 64 * 32
    default = {"BLOCK_C": 32, "num_warps": 8 if large else 4, "num_stages": 2, "per_processor": 1 if large else 4}
    default |= {"KEEP": True, "enable_fp_fusion": FUSION}
    if large and SHARED_MEMORY.get(arch, 0) < 128 * 1024:
        default |= {"KEEP": False, "BLOCK_C": 16, "num_stages": 1}
    elif arch == 90:
        default["BLOCK_C"] = 64
    sizes, options = split_options(tiles("assign_pool_grad_u", arch, default, N=N, K=K, C=C))
    return sizes | _blocks(N, K), options


def _change_tiles(arch: int, N: int, K: int) -> tuple[dict, dict]:
    """Constants and options of `_change_kernel`."""
    block_k = padded(K)
    default = {"BLOCK_N": min(padded(N), 2048 // block_k), "num_stages": 3, "enable_fp_fusion": FUSION}
    default["num_warps"] = 8 if N * K > 64 * 32 else 4
    sizes, options = split_options(tiles("assign_pool_change", arch, default, N=N, K=K))
    return sizes | {"BLOCK_K": block_k}, options


def _blocks(N: int, K: int) -> dict[str, int]:
    block_n = min(64, padded(N))
    return {"TILES": triton.cdiv(N, block_n), "BLOCK_N": block_n, "BLOCK_K": padded(K)}


def aot_cases(arch: int = OLDEST) -> list[Case]:
    """What CAST-S launches on ``arch`` in its three stages."""
    cases = []
    for dtype, name in TRITON.items():
        for N, K in ((196, 64), (64, 32), (32, 16)):
            C, D = 384, 1536
            if not fits_whole(dtype, N, K, D):
                continue
            for kernel, (sizes, options), more in (
                (_grad_z_kernel, _grad_z_tiles(arch, N, K, C, D), {"D": D, "Z_ROW": D}),
                (_change_kernel, _change_tiles(arch, N, K), {}),
                (_grad_u_kernel, _grad_u_tiles(arch, N, K, C), {}),
            ):
                options.pop("per_processor", None)
                constants = {"K": K, "C": C, "U_ROW": C, "UPCAST": False} | more | sizes
                constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
                label = f"assign_pool backward {kernel.__name__} {name} {N} -> {K}"
                cases.append(case(kernel, dtype, constants, options, label))
    return cases
