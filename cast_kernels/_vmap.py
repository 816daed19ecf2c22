"""``torch.vmap`` for ops that take batches: the mapped dimension becomes part of the batch."""

from collections.abc import Callable
from typing import Any

from torch import Tensor


def fold(x: Any, dim: Any, size: int) -> Any:
    """[B, ...] with a mapped dimension ``dim`` (None: without, then repeated) -> [size B, ...]; also lists of such."""
    if isinstance(x, Tensor):
        mapped = x[None].expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        return mapped.flatten(0, 1)
    if isinstance(x, list | tuple) and any(isinstance(element, Tensor) for element in x):
        dims = [None] * len(x) if dim is None else dim
        return [fold(element, d, size) for element, d in zip(x, dims, strict=True)]
    return x


def unfold(x: Any, size: int) -> tuple[Any, Any]:
    """[size B, ...] -> [size, B, ...], and where the mapped dimension is; tuples and lists of such alike."""
    if isinstance(x, Tensor):
        return x.unflatten(0, (size, x.shape[0] // size)), 0
    pairs = [unfold(element, size) for element in x]
    return type(x)(pair[0] for pair in pairs), type(x)(pair[1] for pair in pairs)


def folded(op: Callable) -> Callable:
    """Batching rule of an op whose tensors, given and returned, all begin with the batch."""

    def rule(info: Any, in_dims: tuple, *arguments: Any) -> tuple[Any, Any]:
        size = info.batch_size
        return unfold(op(*(fold(x, dim, size) for x, dim in zip(arguments, in_dims, strict=True))), size)

    return rule
