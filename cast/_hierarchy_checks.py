"""What a hierarchy asks of its tensors and numbers."""

import operator
from typing import Any

import torch
from torch import Tensor

_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def integer(name: str, value: Any) -> int:
    """The value as an int; TypeError unless it is a whole number by type."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"expected {name} to be an integer, got {type(value).__name__} {value!r}") from None


def check_labels(name: str, labels: Tensor, dims: int, like: Tensor | None = None) -> None:
    """Raise unless ``labels`` is an integer tensor of ``dims`` dimensions with the batch and device of ``like``."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"expected {name} to be an integer tensor, got {type(labels).__name__}")
    if labels.dtype not in _INTEGERS:
        raise TypeError(f"expected {name} to be an integer tensor (uint8, int8 .. int64), got {labels.dtype}")
    if labels.dim() != dims:
        raise ValueError(f"expected {name} {['[B, N]', '[B, H, W]'][dims - 2]}, got {tuple(labels.shape)}")
    if like is not None:
        _check_batch(name, labels, like)


def check_range(name: str, table: Tensor, count: int) -> None:
    """Raise unless the values lie in ``[0, count)``.

    Only of plain tensors on the CPU, outside compilation: elsewhere looking would wait for a device or break a graph.
    """
    readable = type(table) is Tensor and table.device.type == "cpu"  # a fake tensor, a subclass, has no values
    if not readable or torch.compiler.is_compiling() or not table.numel():
        return
    if not 0 <= table.min() <= table.max() < count:
        raise ValueError(f"{name} must lie in [0, {count}), got {int(table.min())} .. {int(table.max())}")


def check_logits(name: str, table: Tensor, superpixels: Tensor, rows: int | None) -> None:
    """Raise unless ``table`` is a floating point ``[B, N, K]`` with ``rows`` segments (None: any)."""
    if not isinstance(table, Tensor) or not table.is_floating_point():
        raise TypeError(f"expected {name} to be a floating point tensor, got {getattr(table, 'dtype', type(table))}")
    if table.dim() != 3 or (rows is not None and table.shape[1] != rows):
        raise ValueError(f"expected {name} [B, {'N' if rows is None else rows}, K], got {tuple(table.shape)}")
    _check_batch(name, table, superpixels)


def _check_batch(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.shape[0] != like.shape[0] or tensor.device != like.device:
        raise ValueError(
            f"{name} holds {tensor.shape[0]} images on {tensor.device}, "
            f"the superpixels {like.shape[0]} on {like.device}"
        )
