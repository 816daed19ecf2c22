"""A linear layer over all levels brought back to the finest one, without the concatenation.

    unpool_concat(x, parents) W^T + b = sum over levels l of (x_l W_l^T)[chain_l(n)] + b,   W = [W_0 W_1 ...]

A row of a coarse level is multiplied once instead of once for each fine segment that it reaches: for 196, 64, 32 and 16
segments of equal width 2.5 times fewer operations. Equal up to rounding to the layer after ``unpool_concat``.

Source: linearity, for the dense heads of Ke, Mo, Yu, ICLR 2024 (algorithm 2, a hypercolumn and 1x1 convolutions).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cast_kernels._checks import check_float, check_same_device, shown
from cast_kernels._rows import accumulator, full_precision, gather_rows, sum_rows
from cast_kernels._vmap import folded
from cast_kernels.unpool import check_levels, parent_chains


# 1. Public function
def unpool_linear(
    levels: Sequence[Tensor], parents: Sequence[Tensor], weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Bring all levels back to the finest one, concatenate their channels and apply a linear layer, in another order.

    Args:
        levels: Features from fine to coarse, [B, N_l, C_l] each, of one dtype (float32, float16, bfloat16 or float64).
        parents: One table fewer than levels, as for ``unpool_concat``: parents[l] [B, N_l], int64. A parent outside
            [0, N_{l+1}) counts as zeros at that level and all coarser ones.
        weight: Of the layer, [M, sum of C_l], in the dtype of the levels; channels of the finest level first.
        bias: Of the layer, [M], in that dtype; None for none.

    Returns:
        [B, N_0, M] in the dtype of the levels; under autocast in autocast's, as a linear layer's result.

    Raises:
        TypeError: A dtype is not supported.
        ValueError: Numbers of levels and tables, shapes, dtypes or devices do not fit.

    Differentiable in all levels, weight and bias. Each level's product is rounded to its dtype, then they are added in
    float32: in 16 bits that is a rounding a level, where the layer after the concatenation has one. What is added here
    is deterministic, forward and backward; the products are PyTorch's.
    """
    levels, parents = list(levels), list(parents)
    check_levels(levels, parents)
    check_float("weight", weight)
    channels = [level.shape[2] for level in levels]
    if weight.dim() != 2 or weight.shape[1] != sum(channels):
        raise ValueError(f"expected weight [M, {sum(channels)}], got {shown(weight)}")
    if bias is not None:
        check_float("bias", bias)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"expected bias [{weight.shape[0]}], got {shown(bias)}")
    dtypes = {x.dtype for x in (levels[0], weight, bias) if x is not None}
    if len(dtypes) > 1 and not torch.is_autocast_enabled(weight.device.type):
        raise ValueError(f"expected levels, weight and bias of one dtype, got {', '.join(map(str, dtypes))}")
    check_same_device(**{"levels[0]": levels[0], "weight": weight, "bias": bias})
    parts, biases = weight.split(channels, dim=1), [bias] + [None] * len(parents)
    products = [F.linear(x, part, b) for x, part, b in zip(levels, parts, biases, strict=True)]
    return torch.ops.cast_kernels.unpool_sum(products, parents) if parents else products[0]


# 2. Reference
@full_precision
def unpool_sum_ref(levels: Sequence[Tensor], parents: Sequence[Tensor]) -> Tensor:
    """All levels, of equal width, brought back to the finest one and added, from fine to coarse."""
    total = levels[0].to(accumulator(levels[0].dtype))
    for x, chain in zip(levels[1:], parent_chains(levels, parents), strict=True):
        total = total + gather_rows(x, chain)
    return total.to(levels[0].dtype).contiguous()


# 3. Registration
_op = torch.library.custom_op("cast_kernels::unpool_sum", mutates_args=())(unpool_sum_ref)


@_op.register_kernel("cuda")
def _cuda(levels: Sequence[Tensor], parents: Sequence[Tensor]) -> Tensor:
    if levels[0].dtype == torch.float64:
        return unpool_sum_ref(levels, parents)
    from cast_kernels.kernels import unpool_linear as kernels

    with torch.cuda.device(levels[0].device):
        return kernels.forward(levels, parents)


@_op.register_fake
def _(levels, parents):
    return levels[0].new_empty(levels[0].shape)


# 4. Gradient: that of the finest level is the result's; of the others, the children's gradients summed by parent
@full_precision
def unpool_sum_backward_ref(grad: Tensor, parents: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """The gradients of the levels after the finest, [B, sizes[l], C]."""
    B, N, _ = grad.shape
    like = [grad.new_empty(B, size, 0) for size in (N, *sizes)]
    wide = grad.to(accumulator(grad.dtype))
    sums = (sum_rows(wide, chain, size) for chain, size in zip(parent_chains(like, parents), sizes, strict=True))
    return [x.to(grad.dtype).contiguous() for x in sums]


_op_backward = torch.library.custom_op("cast_kernels::unpool_sum_backward", mutates_args=())(unpool_sum_backward_ref)


@_op_backward.register_kernel("cuda")
def _backward_cuda(grad: Tensor, parents: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    if grad.dtype == torch.float64:
        return unpool_sum_backward_ref(grad, parents, sizes)
    from cast_kernels.kernels import unpool_linear as kernels

    with torch.cuda.device(grad.device):
        return kernels.backward(grad, parents, sizes)


@_op_backward.register_fake
def _(grad, parents, sizes):
    return [grad.new_empty(grad.shape[0], size, grad.shape[2]) for size in sizes]


def _setup_context(ctx, inputs, output):
    levels, parents = inputs
    ctx.sizes = [level.shape[1] for level in levels[1:]]
    ctx.save_for_backward(*parents)


def _backward(ctx, grad):
    parents = list(ctx.saved_tensors)
    coarse = torch.ops.cast_kernels.unpool_sum_backward(grad, parents, ctx.sizes)
    return [grad, *coarse], [None] * len(parents)


def _setup_backward_context(ctx, inputs, output):
    grad, parents, _ = inputs
    ctx.shape = grad.shape
    ctx.save_for_backward(*parents)


def _backward_of_backward(ctx, grads):
    parents = list(ctx.saved_tensors)
    levels = [grads[0].new_zeros(ctx.shape), *grads]
    return torch.ops.cast_kernels.unpool_sum(levels, parents), [None] * len(parents), None


_op.register_autograd(_backward, setup_context=_setup_context)
_op_backward.register_autograd(_backward_of_backward, setup_context=_setup_backward_context)
_op.register_vmap(folded(_op))
_op_backward.register_vmap(folded(_op_backward))
