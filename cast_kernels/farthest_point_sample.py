"""Batched farthest point sampling of tokens in feature space.

    i_0 = argmax_i |x_i - s|²,   i_k = argmax_i min(|x_i - s|², |x_i - x_{i_0}|², ..., |x_i - x_{i_{k-1}}|²)

from the start s; ties go to the lowest index.

Source: PointNet++ (Qi et al., NeurIPS 2017, section 3.2); used as the centroids of graph pooling by Ke, Mo, Yu
(ICLR 2024, algorithm 1), which starts at the mean token.
"""

import torch
from torch import Tensor

from cast_kernels._checks import check_count, check_float, check_same_device, shown
from cast_kernels._vmap import folded

_MEAN = -1  # the start of the registered op: an index, or this


# 1. Public function
def farthest_point_sample(
    x: Tensor,
    num_samples: int,
    *,
    start: str | int = "mean",
    mask: Tensor | None = None,
    precision: str = "exact",
    duplicates: str = "distinct",
) -> Tensor:
    """Pick ``num_samples`` tokens, each the farthest from all picked before it.

    Args:
        x: Tokens [B, N, C]; float32, float16, bfloat16 or float64, any strides.
        num_samples: Number of picks K, at most N.
        start: "mean" measures the first distances from the mean of the valid tokens, which is not itself returned; an
            index returns that token as the first pick.
        mask: Valid tokens [B, N], bool, True where a token is valid; None = all. A masked token is neither picked while
            valid ones are left, nor part of the mean.
        precision: "exact" equals float64 arithmetic wherever the best and second-best distance differ by more than
            1e-5 of the best, and gives equal tokens in the order of their indices. "fast" on CUDA computes distances at
            the precision of bfloat16. The CPU, and float64 on any device, compute both in float64.
        duplicates: "distinct" returns no index twice: when no unpicked token is at a positive distance, the lowest
            unpicked valid index follows, then the lowest masked one. "repeat" is the plain greedy rule of the published
            sampler, which then repeats the lowest valid index (index 0 where none is valid).

    Returns:
        Indices [B, K], int64, in the order of the picks.

    Raises:
        TypeError: A dtype is not supported.
        ValueError: K > N, the start is out of range, or shapes, devices or options do not fit; more than 32768 tokens
            on CUDA, unless in float64.

    A token with a NaN counts as distance 0 from everything, and is left out of the mean. Deterministic; no gradient.
    """
    check_float("x", x)
    if x.dim() != 3:
        raise ValueError(f"expected x [B, N, C], got {shown(x)}")
    check_count("num_samples", num_samples)
    if num_samples > x.shape[1]:
        raise ValueError(f"expected num_samples <= {x.shape[1]} tokens, got {num_samples}")
    if start != "mean":
        if isinstance(start, bool) or not isinstance(start, int):
            raise ValueError(f'expected start "mean" or an index, got {start!r}')
        if not 0 <= start < x.shape[1]:
            raise ValueError(f"expected start in [0, {x.shape[1]}), got {start}")
    if mask is not None and not isinstance(mask, Tensor):
        raise TypeError(f"expected mask to be a torch.Tensor, got {type(mask).__name__}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape[:2]):
        raise ValueError(f"expected a bool mask {list(x.shape[:2])}, got {shown(mask)}")
    if precision not in ("exact", "fast"):
        raise ValueError(f'expected precision "exact" or "fast", got {precision!r}')
    if duplicates not in ("distinct", "repeat"):
        raise ValueError(f'expected duplicates "distinct" or "repeat", got {duplicates!r}')
    check_same_device(x=x, mask=mask)
    first = _MEAN if start == "mean" else start
    return torch.ops.cast_kernels.farthest_point_sample(x.detach(), num_samples, first, mask, precision, duplicates)


# 2. Reference: distances themselves, not a Gram matrix, so that equal tokens are at distance 0 exactly
def farthest_point_sample_ref(
    x: Tensor, num_samples: int, start: int, mask: Tensor | None, precision: str, duplicates: str
) -> Tensor:
    """The definition, in float64 for every input dtype and both precisions."""
    x = x.double()
    B, N, _ = x.shape
    batch = torch.arange(B, device=x.device)
    valid = torch.ones(B, N, dtype=torch.bool, device=x.device) if mask is None else mask
    if start == _MEAN:
        counted = (valid & ~x.isnan().any(-1))[..., None]
        mean = torch.where(counted, x, 0.0).sum(1) / counted.sum(1).clamp(min=1)
        distance = _squared_distance(x, mean)
    else:
        distance = torch.full((B, N), torch.inf, dtype=x.dtype, device=x.device)
    picked = torch.zeros(B, N, dtype=torch.bool, device=x.device)
    samples = torch.empty(B, num_samples, dtype=torch.int64, device=x.device)
    for k in range(num_samples):
        if k == 0 and start != _MEAN:
            pick = torch.full((B,), start, device=x.device)
        else:
            score = distance.masked_fill(~valid, -1.0)
            if duplicates == "distinct":
                score = score.masked_fill(picked, -2.0)
            pick = score.argmax(1)  # the first of equal maxima
        samples[:, k] = pick
        picked[batch, pick] = True
        distance = torch.minimum(distance, _squared_distance(x, x[batch, pick]))
    return samples


def _squared_distance(x: Tensor, point: Tensor) -> Tensor:
    """|x[b, n] - point[b]|² -> [B, N]; 0 where it is not a number."""
    return (x - point[:, None]).square_().sum(-1).nan_to_num_(nan=0.0, posinf=torch.inf)


# 3. Registration
_op = torch.library.custom_op("cast_kernels::farthest_point_sample", mutates_args=())(farthest_point_sample_ref)


@_op.register_kernel("cuda")
def _cuda(x: Tensor, num_samples: int, start: int, mask: Tensor | None, precision: str, duplicates: str) -> Tensor:
    if x.dtype == torch.float64:
        return farthest_point_sample_ref(x, num_samples, start, mask, precision, duplicates)
    from cast_kernels.kernels import farthest_point_sample as kernels

    with torch.cuda.device(x.device):
        return kernels.forward(x, num_samples, start, mask, precision, duplicates)


@_op.register_fake
def _(x, num_samples, start, mask, precision, duplicates):
    return x.new_empty(x.shape[0], num_samples, dtype=torch.int64)


_op.register_vmap(folded(_op))
