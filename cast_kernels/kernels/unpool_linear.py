"""Levels brought back to the finest one and added: the Triton kernel behind ``unpool_linear``, and its launchers.

Forward: each program follows the parents of a few fine segments up all levels and adds their rows in float32, so every
output byte is written once. Backward: the sums of ``unpool``, which take the same gradient for every level.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cast_kernels.kernels._aot import Case
from cast_kernels.kernels._launch import TRITON, padded, rows, split_options
from cast_kernels.kernels._tiles import OLDEST, architecture, tiles
from cast_kernels.kernels.unpool import FUSION, TABLES, find_parent, sum_children, tables_to_levels


@triton.jit
def _row_tile(x_ptr, image, segment, known, images, c, C: tl.constexpr, ROW: tl.constexpr):
    """Rows x[image, segment] in float32, zeros for those not known."""
    source = x_ptr + (image * images + segment)[:, None] * ROW + c[None, :]
    return tl.load(source, mask=known[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["count"])  # it follows the batch: no compilation for each
def _add_kernel(
    x0_ptr,  # levels [B, N_l, C], rows ROW_l apart, images images_l rows apart
    x1_ptr,
    x2_ptr,
    x3_ptr,
    table0_ptr,  # parents [B, N_l] int64
    table1_ptr,
    table2_ptr,
    out_ptr,  # [B, N_0, C]
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
    C: tl.constexpr,
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
    first = row % size0
    second, in_second = find_parent(table0_ptr, size0, size1, image, first, in_row)
    third, in_third, fourth, in_fourth = second, in_second, second, in_second
    if DEPTH > 1:
        third, in_third = find_parent(table1_ptr, size1, size2, image, second, in_second)
    if DEPTH > 2:
        fourth, in_fourth = find_parent(table2_ptr, size2, size3, image, third, in_third)
    for start in tl.static_range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        total = _row_tile(x0_ptr, image, first, in_row, images0, c, C, ROW0)
        total += _row_tile(x1_ptr, image, second, in_second, images1, c, C, ROW1)
        if DEPTH > 1:
            total += _row_tile(x2_ptr, image, third, in_third, images2, c, C, ROW2)
        if DEPTH > 2:
            total += _row_tile(x3_ptr, image, fourth, in_fourth, images3, c, C, ROW3)
        tl.store(out_ptr + row[:, None] * C + c[None, :], total, mask=in_row[:, None] & (c < C)[None, :])


def forward(levels: list[Tensor], parents: list[Tensor]) -> Tensor:
    """Launch: ``levels`` [B, N_l, C] from fine to coarse, ``parents`` [B, N_l] int64 -> [B, N_0, C]."""
    levels, parents, dtype = list(levels), list(parents), levels[0].dtype
    while len(parents) > TABLES:  # the coarsest first, in float32: they are the small ones
        coarse = _add(levels[-TABLES - 1 :], parents[-TABLES:], torch.float32)
        levels, parents = [*levels[: -TABLES - 1], coarse], parents[:-TABLES]
    return _add(levels, parents, dtype) if parents else levels[0].to(dtype, copy=True)


def _add(levels: list[Tensor], tables: list[Tensor], dtype: torch.dtype) -> Tensor:
    B, N, C = levels[0].shape
    out = levels[0].new_empty(B, N, C, dtype=dtype)
    if out.numel() == 0:
        return out
    views = [rows(level) for level in levels] + [(levels[0], 1, 0)] * (TABLES + 1 - len(levels))
    heights = [level.shape[1] for level in levels] + [0] * (TABLES + 1 - len(levels))
    tables = [table.contiguous() for table in tables]
    pointers = [x for x, _, _ in views] + tables + [tables[0]] * (TABLES - len(tables))  # those not given are not read
    constants, options = _add_tiles(architecture(out.device), C)
    constants |= {"DEPTH": len(tables), "C": C} | {f"ROW{i}": row for i, (_, row, _) in enumerate(views)}
    _add_kernel[(triton.cdiv(B * N, constants["BLOCK_N"]),)](
        *pointers, out, B * N, *heights, *(images for _, _, images in views), **constants, **options
    )
    return out


def backward(grad: Tensor, parents: list[Tensor], sizes: list[int]) -> list[Tensor]:
    """Launch: ``grad`` [B, N_0, C] -> the gradient of each level after the finest [B, sizes[l], C]."""
    _, N, C = grad.shape
    routes = tables_to_levels(parents, [N, *sizes])
    return [sum_children(grad, tables, size, C, 0) for tables, size in zip(routes, sizes, strict=True)]


# Defaults, overridden by the table of tuned tiles
def _add_tiles(arch: int, C: int) -> tuple[dict, dict]:
    """Whole rows where they are short; 16 bytes a thread, two or four times, of each level."""
    block_c = min(512, padded(C))
    default = {"BLOCK_N": max(1, 2048 // block_c), "BLOCK_C": block_c, "num_warps": 4, "enable_fp_fusion": FUSION}
    return split_options(tiles("unpool_linear", arch, default, C=C))


def aot_cases(arch: int = OLDEST) -> list[Case]:
    """All levels of CAST, after a layer of 384 channels."""
    cases = []
    for dtype, name in TRITON.items():
        constants, options = _add_tiles(arch, 384)
        constants |= {"DEPTH": TABLES, "C": 384} | {f"ROW{i}": 384 for i in range(TABLES + 1)}
        signature = {argument: "i32" for argument in _add_kernel.arg_names if argument not in constants}
        signature |= {name: "*i64" for name in signature if name.startswith("table")}
        signature |= {name: f"*{TRITON[dtype]}" for name in signature if name.startswith(("x", "out"))}
        cases.append(Case(_add_kernel, signature, constants, options, f"unpool_linear {name} {TABLES + 1} levels"))
    return cases
