"""Soft assignment of tokens to centroids by cosine, and the pooled average under it.

    logits = kappa cos(u_n, u_centroid(k)),  P = softmax over k of logits,  pooled_k = sum_n P_nk z_n / sum_n P_nk

Source: Ke, Mo, Yu, ICLR 2024, algorithm 1 (graph pooling).
"""

import torch
from torch import Tensor

from cast_kernels._checks import check_float, check_index, check_same_device, shown
from cast_kernels._cuda import has_kernels
from cast_kernels._rows import accumulator, full_precision, gather_rows, sum_rows
from cast_kernels._vmap import folded

MAX_KAPPA = 40.0  # exp(kappa cos) and its sums stay well inside float32 without subtracting a maximum


# 1. Public function
def assign_pool(u: Tensor, centroids: Tensor, z: Tensor, *, kappa: float = 5.0) -> tuple[Tensor, Tensor, Tensor]:
    """Assign each token to the centroids by cosine similarity and average ``z`` under the assignment.

    Args:
        u: Grouping features [B, N, C]; float32, float16, bfloat16 or float64, any strides.
        centroids: Index of the token that is each cluster's centroid [B, K], int64. A token may be the centroid of more
            than one cluster; an index outside [0, N) is a centroid with cosine 0 to every token.
        z: Features to average [B, N, D], same dtype as ``u``.
        kappa: Sharpness of the softmax (1 / temperature), in (0, 40].

    Returns:
        ``logits`` [B, N, K] in the dtype of ``u``; ``pooled`` [B, K, D] in the dtype of ``z``; ``parents`` [B, N]
        int64, the argmax over K before the logits are rounded to their dtype, the lowest on ties.

    Raises:
        TypeError: A dtype is not supported.
        ValueError: Shapes, dtypes or devices do not fit, or kappa is outside (0, 40].

    Cosines are clamped to [-1, 1]. A token of norm 0 has cosine 0, and so has one whose squared norm leaves float32
    (norms below about 1e-22 or above 1e19). Differentiable in ``u`` (the centroids' rows included) and ``z``.
    Deterministic, forward and backward; statistics are float32 (float64 for float64). Second derivatives are PyTorch's
    own: in TF32 where it is allowed, and added atomically on CUDA where centroids repeat. On CUDA, float32 and more
    than 256 tokens or 64 clusters take workspace as large as logits in float32: once forward, about three times
    backward.
    """
    check_float("u", u)
    check_float("z", z)
    check_index("centroids", centroids)
    if u.dim() != 3 or z.dim() != 3 or z.shape[:2] != u.shape[:2]:
        raise ValueError(f"expected u [B, N, C] and z [B, N, D], got {shown(u)} and {shown(z)}")
    if u.dtype != z.dtype:
        raise ValueError(f"expected u and z of one dtype, got {shown(u)} and {shown(z)}")
    if centroids.dim() != 2 or centroids.shape[0] != u.shape[0]:
        raise ValueError(f"expected centroids [{u.shape[0]}, K], got {shown(centroids)}")
    if u.shape[1] == 0 or centroids.shape[1] == 0:
        raise ValueError(f"expected at least one token and one centroid, got {shown(u)} and {shown(centroids)}")
    if not isinstance(kappa, int | float):
        raise TypeError(f"expected kappa to be a number, got {type(kappa).__name__}")
    if not 0.0 < kappa <= MAX_KAPPA:
        raise ValueError(f"expected kappa in (0, {MAX_KAPPA:g}], got {kappa}")
    check_same_device(u=u, centroids=centroids, z=z)
    return torch.ops.cast_kernels.assign_pool(u, centroids, z, float(kappa))


# 2. Reference
@full_precision
def assign_pool_ref(u: Tensor, centroids: Tensor, z: Tensor, kappa: float) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, with statistics in the accumulator's dtype."""
    unit, _ = _normalise(u)
    logits = kappa * (unit @ gather_rows(unit, centroids).mT).clamp(-1.0, 1.0)  # [B, N, K]
    share, weight = _shares(logits)
    pooled = share.mT @ z.to(share.dtype) / weight  # [B, K, D]
    return logits.to(u.dtype), pooled.to(z.dtype), logits.argmax(-1)


def _normalise(u: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows of ``u`` and 1 / norm [B, N, 1]; both 0 where the norm is 0."""
    u = u.to(accumulator(u.dtype))
    norm = u.norm(dim=-1, keepdim=True)
    inverse = torch.where(norm > 0, 1.0 / norm, 0.0)
    return u * inverse, inverse


def _shares(logits: Tensor) -> tuple[Tensor, Tensor]:
    """P [B, N, K] and its sum over the tokens [B, K, 1]."""
    share = logits.softmax(-1)
    return share, share.sum(1)[..., None]


# 3. Registration
_op = torch.library.custom_op("cast_kernels::assign_pool", mutates_args=())(assign_pool_ref)


@_op.register_kernel("cuda")
def _cuda(u: Tensor, centroids: Tensor, z: Tensor, kappa: float) -> tuple[Tensor, Tensor, Tensor]:
    if u.dtype == torch.float64 or not has_kernels(u.device):
        return assign_pool_ref(u, centroids, z, kappa)
    from cast_kernels.kernels import assign_pool as kernels

    with torch.cuda.device(u.device):
        return kernels.forward(u, centroids, z, kappa)


@_op.register_fake
def _(u, centroids, z, kappa):
    B, N, _ = u.shape
    K = centroids.shape[1]
    return u.new_empty(B, N, K), z.new_empty(B, K, z.shape[2]), u.new_empty(B, N, dtype=torch.int64)


# 4. Gradient: P is computed again instead of being kept
@full_precision
def assign_pool_backward_ref(
    u: Tensor, centroids: Tensor, z: Tensor, kappa: float, grad_logits: Tensor, grad_pooled: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of ``u`` and ``z``."""
    unit, inverse = _normalise(u)
    centres = gather_rows(unit, centroids)
    cosine = (unit @ centres.mT).clamp(-1.0, 1.0)
    share, weight = _shares(kappa * cosine)
    wide = z.to(share.dtype)
    grad_sum = grad_pooled.to(share.dtype) / weight  # gradient of P^T z, [B, K, D]
    pooled = share.mT @ wide / weight
    grad_share = wide @ grad_sum.mT - (pooled * grad_sum).sum(-1)[:, None]  # [B, N, K]; the second term is P^T 1's
    grad_z = share @ grad_sum
    grad_softmax = share * (grad_share - (share * grad_share).sum(-1, keepdim=True))
    grad_cosine = kappa * (grad_logits.to(share.dtype) + grad_softmax)
    grad_unit = grad_cosine @ centres + sum_rows(grad_cosine.mT @ unit, centroids, u.shape[1])
    grad_u = (grad_unit - unit * (unit * grad_unit).sum(-1, keepdim=True)) * inverse
    return grad_u.to(u.dtype).contiguous(), grad_z.to(z.dtype).contiguous()


_op_backward = torch.library.custom_op("cast_kernels::assign_pool_backward", mutates_args=())(assign_pool_backward_ref)


@_op_backward.register_kernel("cuda")
def _backward_cuda(
    u: Tensor, centroids: Tensor, z: Tensor, kappa: float, grad_logits: Tensor, grad_pooled: Tensor
) -> tuple[Tensor, Tensor]:
    if u.dtype == torch.float64 or not has_kernels(u.device):
        return assign_pool_backward_ref(u, centroids, z, kappa, grad_logits, grad_pooled)
    from cast_kernels.kernels import assign_pool_backward as kernels

    with torch.cuda.device(u.device):
        return kernels.backward(u, centroids, z, kappa, grad_logits, grad_pooled)


@_op_backward.register_fake
def _(u, centroids, z, kappa, grad_logits, grad_pooled):
    return u.new_empty(u.shape), z.new_empty(z.shape)


def _setup_context(ctx, inputs, output):
    u, centroids, z, ctx.kappa = inputs
    ctx.save_for_backward(u, centroids, z)
    ctx.mark_non_differentiable(output[2])


def _backward(ctx, grad_logits, grad_pooled, _grad_parents):
    u, centroids, z = ctx.saved_tensors
    grad_u, grad_z = torch.ops.cast_kernels.assign_pool_backward(u, centroids, z, ctx.kappa, grad_logits, grad_pooled)
    return grad_u, None, grad_z, None


def _setup_backward_context(ctx, inputs, output):
    u, centroids, z, ctx.kappa, grad_logits, grad_pooled = inputs
    ctx.save_for_backward(u, centroids, z, grad_logits, grad_pooled)


def _backward_of_backward(ctx, grad_grad_u, grad_grad_z):
    centroids = ctx.saved_tensors[1]
    with torch.enable_grad():
        u, z, *grads = [ctx.saved_tensors[i].detach().requires_grad_() for i in (0, 2, 3, 4)]
        outputs = assign_pool_backward_ref(u, centroids, z, ctx.kappa, *grads)
        found = torch.autograd.grad(outputs, (u, z, *grads), (grad_grad_u, grad_grad_z))
    return found[0], None, found[1], None, *found[2:]


_op.register_autograd(_backward, setup_context=_setup_context)
_op_backward.register_autograd(_backward_of_backward, setup_context=_setup_backward_context)
_op.register_vmap(folded(_op))
_op_backward.register_vmap(folded(_op_backward))
