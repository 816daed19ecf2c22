"""Mean of a feature map over each segment of a label map (superpixel pooling).

    mean[b, s] = mean of x[b, p] over the pixels p with labels[b, p] == s,   0 where segment s is empty

Source: Ke, Mo, Yu, ICLR 2024, section 3.1 (segment tokens = mean feature + mean position encoding of a superpixel).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cast_kernels._checks import check_count, check_float, check_labels, check_same_device, shown
from cast_kernels._rows import accumulator, full_precision, gather_rows, sum_rows

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")


# 1. Public function
def segment_mean(
    x: Tensor,
    labels: Tensor,
    num_segments: int,
    *,
    add: Tensor | None = None,
    interpolation: str | None = None,
    add_interpolation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Average ``x``, and a map ``add`` with it, over the segments of ``labels``: ``mean(x) + mean(add)``.

    Where ``x`` is coarser than the labels, ``interpolation`` averages the map that ``torch.nn.functional.interpolate``
    (``align_corners=False``) would bring to the grid of the labels; ``add_interpolation`` does the same for ``add``.

    Args:
        x: Features [B, H, W, C] or [B, N, C]; float32, float16, bfloat16 or float64, any strides.
        labels: Segment of each pixel, [B, H', W'] (or [B, N]); int32, int64 or uint8. Labels outside
            [0, num_segments) are ignored.
        num_segments: Number of segments S. An argument, so that no shape depends on data.
        add: Map averaged over the same segments, [B, H, W, C], [1, H, W, C] or [H, W, C] (or the forms with N); a map
            without a batch is shared by all images.
        interpolation: None (the grids of ``x`` and ``labels`` agree), "nearest", "bilinear" or "bicubic".
        add_interpolation: The same for ``add``.

    Returns:
        ``mean`` [B, S, C] in the dtype promoted from ``x`` and ``add`` (sums are float32, float64 for float64), zero
        for empty segments; ``count`` [B, S] float32, the number of pixels of each segment.

    Raises:
        TypeError: A dtype is not supported.
        ValueError: Shapes, grids or devices do not fit, or an interpolation is unknown.

    Differentiable in ``x`` and ``add``. Deterministic, forward and backward.
    """
    check_float("x", x)
    check_labels("labels", labels)
    check_count("num_segments", num_segments)
    if x.dim() not in (3, 4) or labels.dim() != x.dim() - 1 or labels.shape[0] != x.shape[0]:
        raise ValueError(
            f"expected x [B, H, W, C] and labels [B, H, W], or x [B, N, C] and labels [B, N], "
            f"got {shown(x)} and {shown(labels)}"
        )
    if add is not None:
        check_float("add", add)
        add = _check_add(add, x)
    check_same_device(x=x, labels=labels, add=add)
    if x.dim() == 3:  # a row of tokens is a map of height 1
        x, labels = x[:, None], labels[:, None]
        add = None if add is None else add[:, None]
    _check_grid("x", x, labels, "interpolation", interpolation)
    if add is not None:
        _check_grid("add", add, labels, "add_interpolation", add_interpolation)
    elif add_interpolation is not None:
        raise ValueError("add_interpolation was given without add")
    return torch.ops.cast_kernels.segment_mean(x, labels, num_segments, add, interpolation, add_interpolation)


def _check_add(add: Tensor, x: Tensor) -> Tensor:
    if add.dim() == x.dim() - 1:
        add = add[None]
    if add.dim() != x.dim() or add.shape[0] not in (1, x.shape[0]) or add.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"expected add with or without a batch of 1 or {x.shape[0]}, and {x.shape[-1]} channels, "
            f"to go with x {shown(x)}, got {shown(add)}"
        )
    return add


def _check_grid(name: str, x: Tensor, labels: Tensor, option: str, interpolation: str | None) -> None:
    if interpolation is not None and interpolation not in INTERPOLATIONS:
        raise ValueError(f"expected {option} None, {', '.join(map(repr, INTERPOLATIONS))}, got {interpolation!r}")
    if interpolation is None and x.shape[1:3] != labels.shape[1:]:
        raise ValueError(
            f"expected {name} and labels on one grid when {option} is None, "
            f"got {list(x.shape[1:3])} and {list(labels.shape[1:])}"
        )
    if 0 in x.shape[1:] or 0 in labels.shape[1:]:
        raise ValueError(f"expected {name} and labels with at least one pixel and channel, got {shown(x)}")


# 2. Reference
@full_precision
def segment_mean_ref(
    x: Tensor,
    labels: Tensor,
    num_segments: int,
    add: Tensor | None = None,
    interpolation: str | None = None,
    add_interpolation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition: bring the map to the grid of the labels, sum by label, divide by the count."""
    dtype = x.dtype if add is None else torch.promote_types(x.dtype, add.dtype)
    B, grid = x.shape[0], labels.shape[1:]
    labels = labels.flatten(1)
    ones = torch.ones(*labels.shape, 1, dtype=torch.float32, device=x.device)
    count = sum_rows(ones, labels, num_segments)  # [B, S, 1]
    maps = [(x, interpolation)] if add is None else [(x, interpolation), (add.expand(B, -1, -1, -1), add_interpolation)]
    mean = 0.0
    for m, mode in maps:
        fine = _resize(m.to(accumulator(dtype)), grid, mode)  # [B, H', W', C]
        mean = mean + sum_rows(fine.flatten(1, 2), labels, num_segments) / count.clamp(min=1)
    return mean.to(dtype), count[..., 0].contiguous()


def _resize(x: Tensor, grid: tuple[int, int], interpolation: str | None) -> Tensor:
    """[B, h, w, C] -> [B, H, W, C]."""
    if interpolation is None or x.numel() == 0:
        return x.new_empty(x.shape[0], *grid, x.shape[3]) if interpolation else x
    options = {} if interpolation == "nearest" else {"align_corners": False}
    return F.interpolate(x.permute(0, 3, 1, 2), tuple(grid), mode=interpolation, **options).permute(0, 2, 3, 1)


def _resize_adjoint(grad: Tensor, grid: tuple[int, int], interpolation: str | None) -> Tensor:
    """[B, H, W, C] -> [B, h, w, C], the transpose of ``_resize``, which is linear and separable.

    Products with matrices add in the same order on every run; PyTorch's own backward adds atomically on a GPU.
    """
    if interpolation is None:
        return grad
    rows = _interpolation_matrix(grid[0], grad.shape[1], interpolation, grad)
    columns = _interpolation_matrix(grid[1], grad.shape[2], interpolation, grad)
    return torch.einsum("Yy,bYXc,Xx->byxc", rows, grad, columns)


def _interpolation_matrix(size: int, new_size: int, interpolation: str, like: Tensor) -> Tensor:
    """[new_size, size], what ``interpolate`` does along one axis: the identity, interpolated."""
    basis = torch.eye(size, dtype=like.dtype, device=like.device)[None, :, :, None]  # channel i is the i-th unit vector
    options = {} if interpolation == "nearest" else {"align_corners": False}
    return F.interpolate(basis, size=(new_size, 1), mode=interpolation, **options)[0, :, :, 0].mT


# 3. Registration
_op = torch.library.custom_op("cast_kernels::segment_mean", mutates_args=())(segment_mean_ref)


@_op.register_fake
def _(x, labels, num_segments, add=None, interpolation=None, add_interpolation=None):
    dtype = x.dtype if add is None else torch.promote_types(x.dtype, add.dtype)
    B, C = x.shape[0], x.shape[3]
    return x.new_empty(B, num_segments, C, dtype=dtype), x.new_empty(B, num_segments, dtype=torch.float32)


# 4. Gradient: each pixel gets the gradient of its segment's mean over the count, a gather
def _setup_context(ctx, inputs, output):
    x, labels, _, add, ctx.interpolation, ctx.add_interpolation = inputs
    ctx.x_grid, ctx.x_dtype = x.shape[1:3], x.dtype
    ctx.add_shape, ctx.add_dtype = (None, None) if add is None else (add.shape, add.dtype)
    ctx.save_for_backward(labels, output[1])
    ctx.mark_non_differentiable(output[1])


@full_precision
def _backward(ctx, grad_mean, _grad_count):
    labels, count = ctx.saved_tensors
    grad_mean = grad_mean.to(accumulator(grad_mean.dtype)) / count.clamp(min=1)[..., None]
    fine = gather_rows(grad_mean, labels.flatten(1)).unflatten(1, labels.shape[1:])  # [B, H', W', C]
    grad_x = grad_add = None
    if ctx.needs_input_grad[0]:
        grad_x = _resize_adjoint(fine, ctx.x_grid, ctx.interpolation).to(ctx.x_dtype)
    if ctx.add_shape is not None and ctx.needs_input_grad[3]:
        grad_add = fine if ctx.add_shape[0] == fine.shape[0] else fine.sum(0, keepdim=True)
        grad_add = _resize_adjoint(grad_add, ctx.add_shape[1:3], ctx.add_interpolation).to(ctx.add_dtype)
    return grad_x, None, None, grad_add, None, None


_op.register_autograd(_backward, setup_context=_setup_context)
