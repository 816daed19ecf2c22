"""Mean of a feature map over each segment of a label map (superpixel pooling).

    mean[b, s] = mean of x[b, p] over the pixels p with labels[b, p] == s,   0 where segment s is empty

Source: Ke, Mo, Yu, ICLR 2024, section 3.1 (segment tokens = mean feature + mean position encoding of a superpixel).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cast_kernels._checks import check_count, check_float, check_labels, check_same_device, shown
from cast_kernels._cuda import has_kernels
from cast_kernels._rows import accumulator, full_precision, gather_rows, sum_rows
from cast_kernels._segment_weights import interpolated_mean, interpolated_mean_transpose, interpolation_matrix
from cast_kernels._vmap import fold, unfold

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
MAX_SEGMENTS = 16_383  # above, the reference runs: a program holds a counter per segment, and one more, on chip
LEAST_CHANNELS = 128  # below these, the CPU interpolates a map, which is then as fast as weighing its cells
LEAST_VALUES = 2**22  # of the interpolated map of one image


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

    Differentiable in ``x`` and ``add``, twice. Deterministic, forward and backward: bitwise equal from run to run. On
    CUDA, float64 and more than 16383 segments run the plain PyTorch definition, all else kernels that never wait for
    the host.
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
    count = _count(labels, num_segments)
    maps = [(x, interpolation)] if add is None else [(x, interpolation), (add.expand(B, -1, -1, -1), add_interpolation)]
    mean = 0.0
    for m, mode in maps:
        fine = _resize(m.to(accumulator(dtype)), grid, mode)  # [B, H', W', C]
        mean = mean + sum_rows(fine.flatten(1, 2), labels.flatten(1), num_segments) / count.clamp(min=1)[..., None]
    return mean.to(dtype), count


def _count(labels: Tensor, num_segments: int) -> Tensor:
    labels = labels.flatten(1)
    ones = torch.ones(*labels.shape, 1, dtype=torch.float32, device=labels.device)
    return sum_rows(ones, labels, num_segments)[..., 0].contiguous()  # [B, S]


def _resize(x: Tensor, grid: tuple[int, int], interpolation: str | None) -> Tensor:
    """[B, h, w, C] -> [B, H, W, C]."""
    if interpolation is None:
        return x
    if x.shape[0] == 0:  # interpolate refuses an empty batch
        return x.new_empty(0, *grid, x.shape[3])
    options = {} if interpolation == "nearest" else {"align_corners": False}
    return F.interpolate(x.permute(0, 3, 1, 2), tuple(grid), mode=interpolation, **options).permute(0, 2, 3, 1)


def _resize_adjoint(grad: Tensor, grid: tuple[int, int], interpolation: str | None) -> Tensor:
    """[B, H, W, C] -> [B, h, w, C], the transpose of ``_resize``, which is linear and separable.

    Products with matrices add in the same order on every run; PyTorch's own backward adds atomically on a GPU.
    """
    if interpolation is None:
        return grad
    wide = grad.double() if grad.is_cuda else grad  # a user may have allowed products of float32 in TF32
    rows = interpolation_matrix(grid[0], grad.shape[1], interpolation, wide)
    columns = interpolation_matrix(grid[1], grad.shape[2], interpolation, wide)
    return torch.einsum("Yy,bYXc,Xx->byxc", rows, wide, columns).to(grad.dtype)


# 3. Registration
_op = torch.library.custom_op("cast_kernels::segment_mean", mutates_args=())(segment_mean_ref)


@_op.register_fake
def _(x, labels, num_segments, add=None, interpolation=None, add_interpolation=None):
    dtype = x.dtype if add is None else torch.promote_types(x.dtype, add.dtype)
    B, C = x.shape[0], x.shape[3]
    return x.new_empty(B, num_segments, C, dtype=dtype), x.new_empty(B, num_segments, dtype=torch.float32)


@_op.register_kernel("cpu")
@full_precision
def _cpu(x, labels, num_segments, add=None, interpolation=None, add_interpolation=None):
    maps = [(x, interpolation)] if add is None else [(x, interpolation), (add, add_interpolation)]
    if not any(_is_weighed(m.shape, labels, mode) for m, mode in maps):
        return segment_mean_ref(x, labels, num_segments, add, interpolation, add_interpolation)
    dtype = x.dtype if add is None else torch.promote_types(x.dtype, add.dtype)
    count, mean = _count(labels, num_segments), 0.0
    for m, mode in maps:
        if _is_weighed(m.shape, labels, mode):
            mean = mean + interpolated_mean(m, labels, count, mode, accumulator(dtype))
        else:
            wide = m.to(accumulator(dtype)).expand(labels.shape[0], -1, -1, -1)
            mean = mean + segment_mean_ref(wide, labels, num_segments, None, mode)[0]
    return mean.to(dtype), count


def _is_weighed(shape: list[int], labels: Tensor, interpolation: str | None) -> bool:
    """Whether a map of ``shape`` [B, h, w, C] is averaged on the CPU by weights of its cells, without interpolating it.

    Below, the reference is as fast; and the matrices of interpolation must not outgrow the label map.
    """
    (_, h, w, C), (_, H, W) = shape, labels.shape
    return interpolation is not None and h * H + w * W <= H * W and C >= LEAST_CHANNELS and H * W * C >= LEAST_VALUES


@_op.register_kernel("cuda")
def _cuda(x, labels, num_segments, add=None, interpolation=None, add_interpolation=None):
    if not _has_kernel(x, num_segments) or (add is not None and add.dtype == torch.float64):
        return segment_mean_ref(x, labels, num_segments, add, interpolation, add_interpolation)
    from cast_kernels.kernels import segment_mean as kernels

    with torch.cuda.device(x.device):
        return kernels.forward(x, labels, num_segments, add, interpolation, add_interpolation)


def _has_kernel(x: Tensor, num_segments: int) -> bool:
    """float64, very many segments and old GPUs take the reference."""
    return x.dtype != torch.float64 and num_segments <= MAX_SEGMENTS and has_kernels(x.device)


# 4. Gradient: each pixel gets the gradient of its segment's mean over the count, a gather
@full_precision
def segment_mean_backward_ref(
    grad_mean: Tensor,
    labels: Tensor,
    count: Tensor,
    shape: list[int],
    interpolation: str | None,
    dtype: torch.dtype,
    channels_first: bool,
) -> Tensor:
    """Gradient of a map of ``shape`` [B, h, w, C]; where its batch is 1 and that of the labels is not, their sum."""
    grad_mean = grad_mean.to(accumulator(grad_mean.dtype)) / count.clamp(min=1)[..., None]
    fine = gather_rows(grad_mean, labels.flatten(1)).unflatten(1, labels.shape[1:])  # [B, H', W', C]
    if shape[0] != fine.shape[0]:
        fine = fine.sum(0, keepdim=True)
    grad = empty_map(grad_mean, shape, dtype, channels_first)
    return grad.copy_(_resize_adjoint(fine, shape[1:3], interpolation))


def empty_map(like: Tensor, shape: list[int], dtype: torch.dtype, channels_first: bool) -> Tensor:
    """[B, h, w, C] in the memory order of the map whose gradient it will be."""
    B, h, w, C = shape
    if channels_first:
        return like.new_empty(B, C, h, w, dtype=dtype).permute(0, 2, 3, 1)
    return like.new_empty(B, h, w, C, dtype=dtype)


def is_channels_first(x: Tensor) -> bool:
    """Whether a map [B, H, W, C] lies in memory with its pixels closer together than its channels."""
    return x.stride(3) > x.stride(2) and x.shape[3] > 1


_op_backward = torch.library.custom_op("cast_kernels::segment_mean_backward", mutates_args=())(
    segment_mean_backward_ref
)


@_op_backward.register_fake
def _(grad_mean, labels, count, shape, interpolation, dtype, channels_first):
    return empty_map(grad_mean, shape, dtype, channels_first)


@_op_backward.register_kernel("cpu")
@full_precision
def _backward_cpu(grad_mean, labels, count, shape, interpolation, dtype, channels_first):
    if not _is_weighed(shape, labels, interpolation):
        return segment_mean_backward_ref(grad_mean, labels, count, shape, interpolation, dtype, channels_first)
    wide = grad_mean.to(accumulator(grad_mean.dtype))
    grad = interpolated_mean_transpose(wide, labels, count, shape, interpolation)
    return empty_map(wide, shape, dtype, channels_first).copy_(grad)


@_op_backward.register_kernel("cuda")
def _backward_cuda(grad_mean, labels, count, shape, interpolation, dtype, channels_first):
    if not _has_kernel(grad_mean, grad_mean.shape[1]) or dtype == torch.float64:
        return segment_mean_backward_ref(grad_mean, labels, count, shape, interpolation, dtype, channels_first)
    from cast_kernels.kernels import segment_mean as kernels

    with torch.cuda.device(grad_mean.device):
        return kernels.backward(grad_mean, labels, count, shape, interpolation, dtype, channels_first)


def _setup_context(ctx, inputs, output):
    x, labels, _, add, interpolation, add_interpolation = inputs
    ctx.maps = [None if m is None else (m.shape, m.dtype, is_channels_first(m)) for m in (x, add)]
    ctx.interpolations = (interpolation, add_interpolation)
    ctx.save_for_backward(labels, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad_mean, _grad_count):
    labels, count = ctx.saved_tensors
    grads = [None, None]
    for k, argument in enumerate((0, 3)):
        if ctx.maps[k] is not None and ctx.needs_input_grad[argument]:
            shape, dtype, channels_first = ctx.maps[k]
            grads[k] = torch.ops.cast_kernels.segment_mean_backward(
                grad_mean, labels, count, shape, ctx.interpolations[k], dtype, channels_first
            )
    return grads[0], None, None, grads[1], None, None


_op.register_autograd(_backward, setup_context=_setup_context)


# 5. Gradient of the gradient: it is linear in grad_mean, and its transpose is the mean itself
def _setup_context_backward(ctx, inputs, output):
    grad_mean, labels, _, _, ctx.interpolation, _, _ = inputs
    ctx.dtype = grad_mean.dtype
    ctx.num_segments = grad_mean.shape[1]
    ctx.save_for_backward(labels)


def _double_backward(ctx, grad):
    (labels,) = ctx.saved_tensors
    grad = grad.expand(labels.shape[0], -1, -1, -1)
    mean, _ = torch.ops.cast_kernels.segment_mean(grad, labels, ctx.num_segments, None, ctx.interpolation, None)
    return mean.to(ctx.dtype), None, None, None, None, None, None


_op_backward.register_autograd(_double_backward, setup_context=_setup_context_backward)


# 6. torch.vmap: as the ops fold it, but for maps that images share
@_op.register_vmap
def _(info, in_dims, x, labels, num_segments, add=None, interpolation=None, add_interpolation=None):
    size, B = info.batch_size, labels.shape[0] if in_dims[1] is None else labels.movedim(in_dims[1], 0).shape[1]
    if add is not None and in_dims[3] is not None:
        add = add.movedim(in_dims[3], 0)
        add = add.expand(size, B, *add.shape[2:]).flatten(0, 1)
    elif add is not None and add.shape[0] != 1:
        add = fold(add, None, size)
    x, labels = fold(x, in_dims[0], size), fold(labels, in_dims[1], size)
    return unfold(_op(x, labels, num_segments, add, interpolation, add_interpolation), size)


@_op_backward.register_vmap
def _(info, in_dims, grad_mean, labels, count, shape, *options):
    size = info.batch_size
    grad_mean, labels, count = (
        fold(x, dim, size) for x, dim in zip((grad_mean, labels, count), in_dims[:3], strict=True)
    )
    grad, dim = unfold(_op_backward(grad_mean, labels, count, [labels.shape[0], *shape[1:]], *options), size)
    return (grad if grad.shape[1] == shape[0] else grad.sum(1, keepdim=True)), dim
