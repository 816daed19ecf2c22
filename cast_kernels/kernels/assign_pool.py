"""Assignment by cosine and pooling: the forward kernel of whole images, and the launcher.

Where the whole assignment of an image fits the registers of one program (16-bit features, N <= 256, K <= 64),
`_whole_kernel` does everything: it computes the assignment of one image, keeps it, and streams columns of z past it, so
u and z are read once and nothing but the results is written. A small batch divides z's columns among more programs;
each repeats the assignment, whose inputs then come from the L2 cache. All else goes the way of `assign_pool_split`.
"""

# ruff: noqa: RUF005  triton's language has no starred tuples

import triton
import triton.language as tl
from torch import Tensor

from cast_kernels.kernels import assign_pool_split
from cast_kernels.kernels._aot import Case
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
    largest,
    load_tile,
)
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
            _top, parent = largest(logits, in_k)
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


def forward(u: Tensor, centroids: Tensor, z: Tensor, kappa: float) -> tuple[Tensor, Tensor, Tensor]:
    """Launch: ``u`` [B, N, C], ``centroids`` [B, K], ``z`` [B, N, D] -> logits [B, N, K], pooled [B, K, D], parents."""
    (B, N, C), D, K = u.shape, z.shape[2], centroids.shape[1]
    logits = u.new_empty(B, N, K)
    pooled = z.new_empty(B, K, D)
    parents = centroids.new_empty(B, N)
    if B == 0:
        return logits, pooled, parents
    (u, u_row, u_rows), (z, z_row, z_rows), centroids = rows(u), rows(z), centroids.contiguous()
    if not (fits_whole(u.dtype, N, K, u_row) and fits_whole(u.dtype, N, K, z_row)):
        assign_pool_split.forward(u, centroids, z, kappa, logits, pooled, parents)
        return logits, pooled, parents
    sizes, options = _whole_tiles(architecture(u.device), N, K, C, D)
    wanted = options.pop("per_processor") * processors(u.device) // B
    slices, steps = share_out(D, sizes["BLOCK_D"], wanted)
    constants = {"K": K, "C": C, "D": D, "U_ROW": u_row, "Z_ROW": z_row, "UPCAST": interpreted_bfloat16(u)} | sizes
    _whole_kernel[(B * slices,)](
        u, centroids, z, logits, pooled, parents, N, u_rows, z_rows, kappa, *exponent(kappa), slices, steps,
        **constants, **options,
    )  # fmt: skip
    return logits, pooled, parents


# Defaults, overridden by the table of tuned tiles
def _whole_tiles(arch: int, N: int, K: int, C: int, D: int) -> tuple[dict, dict]:
    """Constants and options of `_whole_kernel`."""
    block_n = min(64, padded(N))
    count = triton.cdiv(N, block_n)
    block_d = 128 // triton.next_power_of_2(count)  # stages hold z of all tiles: at most 58 KB, which all GPUs have
    default = {"AT_ONCE": 1, "BLOCK_C": 64, "BLOCK_D": block_d, "num_warps": 4, "num_stages": 4, "per_processor": 4}
    default["enable_fp_fusion"] = FUSION
    if N * K > 64 * 32:  # registers are what limits here
        default |= {"BLOCK_C": 32, "BLOCK_D": 32, "num_warps": 8, "num_stages": 3, "per_processor": 1}
        if arch == 90:  # its products take the shares from the registers of four warps; two programs fill a processor
            default |= {"BLOCK_D": 64, "num_warps": 4, "per_processor": 2}
    sizes, options = split_options(tiles("assign_pool", arch, default, N=N, K=K, C=C, D=D))
    sizes |= {"TILES": count, "BLOCK_N": block_n, "BLOCK_K": padded(K)}
    if sizes["TILES"] % sizes["AT_ONCE"]:
        sizes["AT_ONCE"] = 1
    return sizes, options


def aot_cases(arch: int = OLDEST) -> list[Case]:
    """What CAST-S launches on ``arch`` in its stages, and the most tokens for the tiles of few clusters."""
    cases = []
    for dtype, name in TRITON.items():
        for N, K in ((196, 64), (64, 32), (32, 16), (256, 8)):
            C, D = 384, 1536
            if fits_whole(dtype, N, K, D):
                sizes, options = _whole_tiles(arch, N, K, C, D)
                del options["per_processor"]
                constants = {"K": K, "UPCAST": False, "C": C, "D": D, "U_ROW": C, "Z_ROW": D} | sizes
                cases.append(case(_whole_kernel, dtype, constants, options, f"assign_pool {name} {N} -> {K}"))
    return cases
