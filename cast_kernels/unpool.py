"""Bring coarse segments' features back to fine segments by the table of parents.

    fine[b, n] = coarse[b, parents[b, n]]

and, for several levels, the concatenation of each level brought back to the finest one by the chain of parents.

Source: Ke, Mo, Yu, ICLR 2024, algorithm 2 (dense output: all levels unpooled and concatenated, a hypercolumn).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cast_kernels._checks import check_float, check_index, check_same_device, shown
from cast_kernels._rows import accumulator, full_precision, gather_rows, sum_rows
from cast_kernels._vmap import folded


# 1. Public functions
def unpool(coarse: Tensor, parents: Tensor) -> Tensor:
    """Give each fine segment the feature of its parent.

    Args:
        coarse: Features of the coarse segments [B, K, C]; float32, float16, bfloat16 or float64, any strides.
        parents: Parent of each fine segment [B, N], int64. A parent outside [0, K) gives zeros.

    Returns:
        Features of the fine segments [B, N, C] in the dtype of ``coarse``.

    Raises:
        TypeError: A dtype is not supported.
        ValueError: Shapes or devices do not fit.

    Differentiable in ``coarse``; deterministic, forward and backward (the gradient is summed in float32). On CUDA a
    gradient that is not finite spreads to all parents of its image and channel.
    """
    check_float("coarse", coarse)
    _check_parents(coarse, parents)
    # one op serves both functions: here the finest level has no channels of its own
    return torch.ops.cast_kernels.unpool_concat(
        [coarse.new_empty(coarse.shape[0], parents.shape[1], 0), coarse], [parents]
    )


def unpool_concat(levels: Sequence[Tensor], parents: Sequence[Tensor]) -> Tensor:
    """Bring all levels back to the finest one and concatenate their channels.

    Args:
        levels: Features from fine to coarse, [B, N_l, C_l] each, of one dtype (float32, float16, bfloat16 or float64).
        parents: One table fewer than levels: parents[l] [B, N_l], int64, is the segment of level l + 1 that each
            segment of level l belongs to. A parent outside [0, N_{l+1}) gives zeros at that level and all coarser ones.

    Returns:
        [B, N_0, sum of C_l] in the dtype of the levels: channels of the finest level first.

    Raises:
        TypeError: A dtype is not supported.
        ValueError: Numbers of levels and tables, shapes, dtypes or devices do not fit.

    Differentiable in all levels; deterministic, forward and backward (gradients are summed in float32). On CUDA a
    gradient that is not finite spreads to all parents of its image and channel.
    """
    levels, parents = list(levels), list(parents)
    check_levels(levels, parents)
    return torch.ops.cast_kernels.unpool_concat(levels, parents)


def check_levels(levels: list[Tensor], parents: list[Tensor]) -> None:
    """Raise unless the tables lead from each level to the next."""
    if not levels or len(parents) != len(levels) - 1:
        raise ValueError(
            f"expected one table of parents fewer than levels, got {len(levels)} levels, {len(parents)} tables"
        )
    for i, level in enumerate(levels):
        check_float(f"levels[{i}]", level)
        if level.dim() != 3 or level.shape[0] != levels[0].shape[0] or level.dtype != levels[0].dtype:
            raise ValueError(f"expected levels [B, N, C] of one batch and dtype, got {', '.join(map(shown, levels))}")
    for i, table in enumerate(parents):
        _check_parents(levels[i + 1], table)
        if table.shape[1] != levels[i].shape[1]:
            raise ValueError(f"expected parents[{i}] for {levels[i].shape[1]} segments, got {shown(table)}")
    check_same_device(**{f"levels[{i}]": level for i, level in enumerate(levels)})


def _check_parents(coarse: Tensor, parents: Tensor) -> None:
    check_index("parents", parents)
    if coarse.dim() != 3:
        raise ValueError(f"expected coarse features [B, K, C], got {shown(coarse)}")
    if parents.dim() != 2 or parents.shape[0] != coarse.shape[0]:
        raise ValueError(f"expected parents [{coarse.shape[0]}, N], got {shown(parents)}")
    check_same_device(coarse=coarse, parents=parents)


# 2. Reference
@full_precision
def unpool_concat_ref(levels: Sequence[Tensor], parents: Sequence[Tensor]) -> Tensor:
    """The definition: chain the parents, gather each level by its chain."""
    chains = parent_chains(levels, parents)
    return torch.cat([levels[0], *(gather_rows(x, chain) for x, chain in zip(levels[1:], chains, strict=True))], dim=-1)


def parent_chains(levels: Sequence[Tensor], parents: Sequence[Tensor]) -> list[Tensor]:
    """For each coarser level, the segment that each finest segment belongs to [B, N_0]; -1 for none."""
    chains = []
    for coarse, table in zip(levels[1:], parents, strict=True):
        parent = torch.where((table >= 0) & (table < coarse.shape[1]), table, -1)
        if chains:
            parent = gather_rows((parent + 1)[..., None], chains[-1])[..., 0] - 1  # a missing parent stays missing
        chains.append(parent)
    return chains


# 3. Registration
@torch.library.custom_op("cast_kernels::unpool_concat", mutates_args=())
def _op(levels: Sequence[Tensor], parents: Sequence[Tensor]) -> Tensor:
    return unpool_concat_ref(levels, parents).contiguous()


@_op.register_kernel("cuda")
def _cuda(levels: Sequence[Tensor], parents: Sequence[Tensor]) -> Tensor:
    if levels[0].dtype == torch.float64:
        return unpool_concat_ref(levels, parents).contiguous()
    from cast_kernels.kernels import unpool as kernels

    with torch.cuda.device(levels[0].device):
        return kernels.forward(levels, parents)


@_op.register_fake
def _(levels, parents):
    B, N, _ = levels[0].shape
    return levels[0].new_empty(B, N, sum(level.shape[2] for level in levels))


# 4. Gradient: the children's gradients summed by parent
@full_precision
def unpool_concat_backward_ref(
    grad: Tensor, parents: Sequence[Tensor], sizes: Sequence[int], channels: Sequence[int]
) -> list[Tensor]:
    """The gradients of the levels [B, sizes[l], channels[l]]."""
    like = [grad.new_empty(grad.shape[0], *shape) for shape in zip(sizes, channels, strict=True)]
    parts = grad.split(list(channels), dim=-1)
    grads = [parts[0].clone(memory_format=torch.contiguous_format)]
    for coarse, chain, part in zip(like[1:], parent_chains(like, parents), parts[1:], strict=True):
        grads.append(sum_rows(part.to(accumulator(part.dtype)), chain, coarse.shape[1]).to(grad.dtype).contiguous())
    return grads


_op_backward = torch.library.custom_op("cast_kernels::unpool_concat_backward", mutates_args=())(
    unpool_concat_backward_ref
)


@_op_backward.register_kernel("cuda")
def _backward_cuda(
    grad: Tensor, parents: Sequence[Tensor], sizes: Sequence[int], channels: Sequence[int]
) -> list[Tensor]:
    if grad.dtype == torch.float64:
        return unpool_concat_backward_ref(grad, parents, sizes, channels)
    from cast_kernels.kernels import unpool as kernels

    with torch.cuda.device(grad.device):
        return kernels.backward(grad, parents, sizes, channels)


@_op_backward.register_fake
def _(grad, parents, sizes, channels):
    return [grad.new_empty(grad.shape[0], *shape) for shape in zip(sizes, channels, strict=True)]


def _setup_context(ctx, inputs, output):
    levels, parents = inputs
    ctx.sizes, ctx.channels = [level.shape[1] for level in levels], [level.shape[2] for level in levels]
    ctx.save_for_backward(*parents)


def _backward(ctx, grad):
    parents = list(ctx.saved_tensors)
    grads = torch.ops.cast_kernels.unpool_concat_backward(grad, parents, ctx.sizes, ctx.channels)
    return grads, [None] * len(parents)


def _setup_backward_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[1])


def _backward_of_backward(ctx, grads):
    parents = list(ctx.saved_tensors)
    return torch.ops.cast_kernels.unpool_concat(grads, parents), [None] * len(parents), None, None


_op.register_autograd(_backward, setup_context=_setup_context)
_op_backward.register_autograd(_backward_of_backward, setup_context=_setup_backward_context)
_op.register_vmap(folded(_op))
_op_backward.register_vmap(folded(_op_backward))
