"""What the references share: their precision, and deterministic sums and gathers of rows by label."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def full_precision(function: Callable) -> Callable:
    """Run ``function`` with autocast off, which would otherwise take its products to half precision."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        flat = (y for x in args for y in (x if isinstance(x, Iterable) and not isinstance(x, Tensor | str) else [x]))
        device = next(x.device.type for x in flat if isinstance(x, Tensor))
        with torch.autocast(device, enabled=False):
            return function(*args, **options)

    return run


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums and statistics of ``dtype`` are held in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def sum_rows(x: Tensor, labels: Tensor, num_rows: int) -> Tensor:
    """Sum the rows of ``x`` [B, N, C] that share a label [B, N] -> [B, num_rows, C], in the dtype of ``x``."""
    B, _, C = x.shape
    spare = _with_spare_row(labels, num_rows)  # labels out of range go to one row more, which is dropped
    index = (spare + torch.arange(B, device=x.device)[:, None] * (num_rows + 1)).flatten()
    total = x.new_zeros(B * (num_rows + 1), C)
    rows = x.flatten(0, 1)
    if x.device.type == "cpu":
        total.index_add_(0, index, rows)
    else:  # the accumulating index_put sorts, index_add adds atomically in any order
        total.index_put_((index,), rows, accumulate=True)
    return total.view(B, num_rows + 1, C)[:, :num_rows]


def gather_rows(x: Tensor, labels: Tensor) -> Tensor:
    """Row ``labels[b, n]`` of ``x`` [B, S, C] for each n -> [B, N, C]; zero where the label is out of range."""
    padded = torch.cat([x, x.new_zeros(x.shape[0], 1, x.shape[2])], dim=1)
    index = _with_spare_row(labels, x.shape[1])
    return padded.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def _with_spare_row(labels: Tensor, num_rows: int) -> Tensor:
    labels = labels.long()
    return torch.where((labels >= 0) & (labels < num_rows), labels, num_rows)
