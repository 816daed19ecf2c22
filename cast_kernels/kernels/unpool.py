"""Unpooling by chains of parents: Triton kernels and their launchers.

Forward: each program follows the parents of a few fine segments up all levels and copies their rows, so every output
byte is written once and every coarse row is read from memory once and then from the L2 cache.
Backward: the gradient of a level is a product with the one-hot matrix of its chain, made in registers, so the fine
gradient streams past once and sums have a fixed order without atomics. The products are exact: 16-bit gradients as they
are, float32 in three bfloat16 parts that start from zero for each tile of segments, since tensor cores truncate when
they add; below half a unit of 16 bits that does not show. (A gradient that is not finite, or beyond bfloat16's range,
spreads to all segments of its image and channel.)
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from cast_kernels.kernels._aot import SHARED_MEMORY, Case
from cast_kernels.kernels._launch import TRITON, padded, rows, split_options
from cast_kernels.kernels._tiles import OLDEST, architecture, tiles

TABLES = 3  # per launch; more levels take more launches, each from the chain that the last one left
FUSION = False  # no product is rounded here


@triton.jit
def find_parent(
    table_ptr,  # [B, size] int64
    size,
    size_above,
    image,
    segment,
    known,
):
    """One step up the chain, and whether it led somewhere."""
    parent = tl.load(table_ptr + image * size + segment, mask=known, other=-1)
    known = known & (parent >= 0) & (parent < size_above)
    return tl.where(known, parent, 0), known


@triton.jit
def _copy_rows(
    x_ptr,  # [B, ., C], rows ROW apart, images `images` rows apart
    out_ptr,  # [rows, TOTAL]
    row,
    in_row,
    image,
    segment,
    known,
    images,
    C: tl.constexpr,
    ROW: tl.constexpr,
    TOTAL: tl.constexpr,
    OFFSET: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out[row, OFFSET : OFFSET + C] = x[image, segment], or zeros."""
    for first in tl.static_range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        in_c = (c < C)[None, :]
        source = x_ptr + (image * images + segment)[:, None] * ROW + c[None, :]
        values = tl.load(source, mask=known[:, None] & in_c, other=0.0)
        tl.store(out_ptr + row[:, None] * TOTAL + (OFFSET + c)[None, :], values, mask=in_row[:, None] & in_c)


@triton.jit(do_not_specialize=["count"])  # it follows the batch: no compilation for each
def _gather_kernel(
    x0_ptr,  # levels [B, N_l, C_l], rows ROW_l apart, images images_l rows apart; C_l = 0 for none
    x1_ptr,
    x2_ptr,
    x3_ptr,
    table0_ptr,  # parents [B, N_l] int64
    table1_ptr,
    table2_ptr,
    out_ptr,  # [B, N_0, TOTAL]
    chain_ptr,  # [B, N_0] int64: the segment of the last level, -1 for none
    count,  # B N_0
    size0,
    size1,
    size2,
    size3,
    images0,
    images1,
    images2,
    images3,
    DEPTH: tl.constexpr,  # tables given
    KEEP_CHAIN: tl.constexpr,
    TOTAL: tl.constexpr,
    OFFSET: tl.constexpr,
    C0: tl.constexpr,
    C1: tl.constexpr,
    C2: tl.constexpr,
    C3: tl.constexpr,
    ROW0: tl.constexpr,
    ROW1: tl.constexpr,
    ROW2: tl.constexpr,
    ROW3: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_row = row < count
    image = row // size0
    segment = row % size0
    known = in_row
    _copy_rows(x0_ptr, out_ptr, row, in_row, image, segment, known, images0, C0, ROW0, TOTAL, OFFSET, BLOCK_C)
    if DEPTH > 0:
        segment, known = find_parent(table0_ptr, size0, size1, image, segment, known)
        _copy_rows(x1_ptr, out_ptr, row, in_row, image, segment, known, images1, C1, ROW1, TOTAL, OFFSET + C0, BLOCK_C)
    if DEPTH > 1:
        segment, known = find_parent(table1_ptr, size1, size2, image, segment, known)
        _copy_rows(
            x2_ptr, out_ptr, row, in_row, image, segment, known, images2, C2, ROW2, TOTAL, OFFSET + C0 + C1, BLOCK_C
        )
    if DEPTH > 2:
        segment, known = find_parent(table2_ptr, size2, size3, image, segment, known)
        offset: tl.constexpr = OFFSET + C0 + C1 + C2
        _copy_rows(x3_ptr, out_ptr, row, in_row, image, segment, known, images3, C3, ROW3, TOTAL, offset, BLOCK_C)
    if KEEP_CHAIN:
        tl.store(chain_ptr + row, tl.where(known, segment, -1), mask=in_row)


@triton.jit
def _sum_kernel(
    grad_ptr,  # [B, N_0, .], rows GRAD_ROW apart, images `images` rows apart; the level's channels start at OFFSET
    table0_ptr,  # parents [B, N_l] int64
    table1_ptr,
    table2_ptr,
    out_ptr,  # [B, K, C]
    size0,
    size1,
    size2,
    K,
    images,
    DEPTH: tl.constexpr,  # tables to the level
    C: tl.constexpr,
    GRAD_ROW: tl.constexpr,
    OFFSET: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    UPCAST: tl.constexpr,
):
    c_tiles: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    k_tiles = tl.cdiv(K, BLOCK_K)
    image = (tl.program_id(0) // (c_tiles * k_tiles)).to(tl.int64)
    k = tl.program_id(0) // c_tiles % k_tiles * BLOCK_K + tl.arange(0, BLOCK_K)
    c = tl.program_id(0) % c_tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = (c < C)[None, :]
    grad_ptr += image * images * GRAD_ROW + OFFSET
    total = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    for first in range(0, size0, BLOCK_N):
        row = first + tl.arange(0, BLOCK_N)
        known = row < size0
        segment = row.to(tl.int64)
        grad = tl.load(grad_ptr + segment[:, None] * GRAD_ROW + c[None, :], mask=known[:, None] & in_c, other=0.0)
        segment, known = find_parent(table0_ptr, size0, size1 if DEPTH > 1 else K, image, segment, known)
        if DEPTH > 1:
            segment, known = find_parent(table1_ptr, size1, size2 if DEPTH > 2 else K, image, segment, known)
        if DEPTH > 2:
            segment, known = find_parent(table2_ptr, size2, K, image, segment, known)
        segment = tl.where(known, segment, -1).to(tl.int32)
        member = k[:, None] == segment[None, :]
        if grad_ptr.dtype.element_ty == tl.float32:
            high = grad.to(tl.bfloat16)
            rest = grad - high.to(tl.float32)
            middle = rest.to(tl.bfloat16)
            low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
            total += (_count(member, low, UPCAST) + _count(member, middle, UPCAST)) + _count(member, high, UPCAST)
        else:
            total += _count(member, grad, UPCAST)
    tl.store(out_ptr + (image * K + k)[:, None] * C + c[None, :], total, mask=(k < K)[:, None] & in_c)


@triton.jit
def _count(member, values, UPCAST: tl.constexpr):
    """One-hot times values; the interpreter's product of bfloat16 is wrong, so it is given float32."""
    if UPCAST:
        return tl.dot(member.to(tl.float32), values.to(tl.float32), input_precision="ieee")
    else:
        return tl.dot(member.to(values.dtype), values)


def forward(levels: list[Tensor], parents: list[Tensor]) -> Tensor:
    """Launch: ``levels`` [B, N_l, C_l] from fine to coarse, ``parents`` [B, N_l] int64 -> [B, N_0, sum of C_l]."""
    B, N, _ = levels[0].shape
    out = levels[0].new_empty(B, N, sum(level.shape[2] for level in levels))
    if out.numel() == 0:
        return out
    base, chain, offset = 0, [], 0  # a chain leads from the finest level to the base; those two are written
    while True:
        last = min(len(levels) - 1, base + TABLES - len(chain))
        group = levels[: last + 1] if base == 0 else [levels[0][..., :0], levels[base][..., :0]]
        group += levels[base + 1 : last + 1] if base else []
        end = last == len(levels) - 1
        tables = [*chain, *parents[base:last]]
        chain = [] if end else [out.new_empty(B, N, dtype=torch.int64)]
        _gather(group, tables, out, offset, *chain)
        if end:
            return out
        base, offset = last, sum(level.shape[2] for level in levels[: last + 1])


def backward(grad: Tensor, parents: list[Tensor], sizes: list[int], channels: list[int]) -> list[Tensor]:
    """Launch: ``grad`` [B, N_0, sum of C_l] -> the gradient of each level [B, N_l, C_l]."""
    grads = [grad[..., : channels[0]].clone(memory_format=torch.contiguous_format)]
    offset = channels[0]
    for tables, K, C in zip(tables_to_levels(parents, sizes), sizes[1:], channels[1:], strict=True):
        grads.append(sum_children(grad, tables, K, C, offset))
        offset += C
    return grads


def tables_to_levels(parents: list[Tensor], sizes: list[int]) -> Iterator[list[Tensor]]:
    """For each level after the finest, as many tables as a launch takes, or fewer, that lead to it from the finest."""
    base, chain = 0, []  # the chain leads from the finest level to the base
    for level in range(1, len(sizes)):
        tables = [*chain, *parents[base:level]]
        if len(tables) > TABLES:
            base, chain = level - 1, [_follow(tables[:-1], sizes[max(base, 1) : level])]
            tables = [*chain, parents[base]]
        yield tables


def _follow(tables: list[Tensor], sizes: list[int]) -> Tensor:
    """The chain of ``tables`` as one table, -1 for none; ``sizes`` of the levels that they lead to."""
    chain = torch.empty_like(tables[0], memory_format=torch.contiguous_format)
    levels = [chain.new_empty(chain.shape[0], size, 0) for size in (chain.shape[1], *sizes)]
    _gather(levels, tables, chain.new_empty(*chain.shape, 0), 0, chain)
    return chain


def _gather(levels: list[Tensor], tables: list[Tensor], out: Tensor, offset: int, chain: Tensor | None = None) -> None:
    """Write ``levels`` into ``out`` from channel ``offset`` on, and the last level's chain."""
    B, N, total = out.shape
    if B * N == 0:
        return
    views = [rows(level) for level in levels] + [(levels[0], 1, 0)] * (TABLES + 1 - len(levels))
    channels = [x.shape[2] for x in levels] + [0] * (TABLES + 1 - len(levels))
    heights = [x.shape[1] for x in levels] + [0] * (TABLES + 1 - len(levels))
    tables = [table.contiguous() for table in tables]
    constants, options = _gather_tiles(out.dtype, architecture(out.device), channels)
    constants |= {"DEPTH": len(tables), "KEEP_CHAIN": chain is not None, "TOTAL": total, "OFFSET": offset}
    constants |= {f"C{i}": C for i, C in enumerate(channels)} | {f"ROW{i}": row for i, (_, row, _) in enumerate(views)}
    pointers = [x for x, _, _ in views] + tables + [out] * (TABLES - len(tables))  # those not given are not read
    _gather_kernel[(triton.cdiv(B * N, constants["BLOCK_N"]),)](
        *pointers, out, out if chain is None else chain, B * N, *heights, *(images for _, _, images in views),
        **constants, **options,
    )  # fmt: skip


def sum_children(grad: Tensor, tables: list[Tensor], K: int, C: int, offset: int) -> Tensor:
    """Sums [B, K, C] of channels offset ... offset + C of ``grad`` over the segments that ``tables`` lead to each."""
    B = grad.shape[0]
    out = grad.new_empty(B, K, C)
    if out.numel() == 0:
        return out
    grad, row, images = rows(grad)
    tables = [table.contiguous() for table in tables]
    heights = [table.shape[1] for table in tables] + [0] * (TABLES - len(tables))
    constants, options = _sum_tiles(grad.dtype, architecture(grad.device), grad.shape[1], K, C)
    constants |= {"DEPTH": len(tables), "C": C, "GRAD_ROW": row, "OFFSET": offset}
    upcast = grad.device.type == "cpu" and grad.dtype != torch.float16
    pointers = tables + [tables[0]] * (TABLES - len(tables))  # those not given are not read
    grid = (B * triton.cdiv(K, constants["BLOCK_K"]) * triton.cdiv(C, constants["BLOCK_C"]),)
    _sum_kernel[grid](grad, *pointers, out, *heights, K, images, UPCAST=upcast, **constants, **options)
    return out


# Defaults, overridden by the table of tuned tiles
def _gather_tiles(dtype: torch.dtype, arch: int, channels: list[int]) -> tuple[dict, dict]:
    """Whole rows where they are short; 16 bytes a thread, four or eight times."""
    block_c = min(1024, padded(max(channels)))
    default = {"BLOCK_N": max(1, 4096 // block_c), "BLOCK_C": block_c, "num_warps": 4, "enable_fp_fusion": FUSION}
    return split_options(tiles("unpool", arch, default, C=max(channels)))


def _sum_tiles(dtype: torch.dtype, arch: int, N: int, K: int, C: int) -> tuple[dict, dict]:
    """128 bytes of each row a program, so that programs are many; a few tiles in flight."""
    default = {"BLOCK_N": 32, "BLOCK_K": min(64, padded(K)), "BLOCK_C": 32 if dtype == torch.float32 else 64}
    default |= {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": FUSION}
    small = SHARED_MEMORY.get(arch, 0) < 128 * 1024
    if dtype == torch.float32 and (small or arch >= 100):  # three would spill
        default["num_stages"] = 2
    return split_options(tiles("unpool_backward", arch, default, N=N, K=K, C=C))


def aot_cases(arch: int = OLDEST) -> list[Case]:
    """CAST's unpooling of 64 segments to 196, and the concatenation of all its levels."""
    cases = []
    for dtype, name in TRITON.items():
        for channels in ([0, 384, 0, 0], [384, 384, 384, 384]):
            depth, total = sum(C > 0 for C in channels[1:]), sum(channels)
            constants, options = _gather_tiles(dtype, arch, channels)
            constants |= {"DEPTH": depth, "KEEP_CHAIN": False, "TOTAL": total, "OFFSET": 0}
            constants |= {f"C{i}": C for i, C in enumerate(channels)} | {f"ROW{i}": 384 for i in range(TABLES + 1)}
            cases.append(_case(_gather_kernel, dtype, constants, options, f"unpool {name} {depth + 1} levels"))
            constants, options = _sum_tiles(dtype, arch, 196, 64, 384)
            constants |= {"DEPTH": depth, "C": 384, "GRAD_ROW": total, "OFFSET": total - 384, "UPCAST": False}
            cases.append(_case(_sum_kernel, dtype, constants, options, f"unpool backward {name} {depth + 1} levels"))
    return cases


def _case(kernel: triton.JITFunction, dtype: torch.dtype, constants: dict, options: dict, name: str) -> Case:
    """One specialisation; the arguments' types follow from their names."""
    signature = {}
    for argument in kernel.arg_names:
        if argument.startswith(("table", "chain")):
            signature[argument] = "*i64"
        elif argument not in constants:
            signature[argument] = f"*{TRITON[dtype]}" if argument.endswith("_ptr") else "i32"
    return Case(kernel, signature, constants, options, name)
