"""Run plain PyTorch in place of this package's ops: what is traced then needs nothing of this package to run."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from cast_kernels.assign_pool import assign_pool_ref
from cast_kernels.farthest_point_sample import farthest_point_sample_ref
from cast_kernels.rgb_to_lab import rgb_to_lab_ref
from cast_kernels.segment_mean import segment_mean_ref
from cast_kernels.unpool import unpool_concat_ref
from cast_kernels.unpool_linear import unpool_sum_ref

REFERENCES: dict[str, Callable] = {
    "assign_pool": assign_pool_ref,
    "farthest_point_sample": farthest_point_sample_ref,
    "rgb_to_lab": rgb_to_lab_ref,
    "segment_mean": segment_mean_ref,
    "unpool_concat": unpool_concat_ref,
    "unpool_sum": unpool_sum_ref,
}


@contextmanager
def references(*, keep: Collection[str] = ()) -> Iterator[None]:
    """Within this context every op runs its plain PyTorch definition, on any device, instead of the registered kernel.

    What `torch.export.export` traces within (``strict=False``, its default) is made of PyTorch's own ops, so that it
    runs where this package is not installed. Gradients are PyTorch's, through the definition.

    Args:
        keep: Names of ops that stay as they are. ``seeds`` always does: it is defined in C++.

    Raises:
        ValueError: A name in ``keep`` is not that of an op with a definition in PyTorch.

    Only calls of the thread that entered are routed. Not for use inside ``torch.compile``.
    """
    if unknown := sorted(set(keep) - set(REFERENCES)):
        raise ValueError(f"expected keep to name some of {', '.join(REFERENCES)}, got {', '.join(unknown)}")
    with _Routing({name: reference for name, reference in REFERENCES.items() if name not in keep}):
        yield


def onnx_translations() -> dict[Callable, Callable]:
    """Return what ``torch.onnx.export(..., custom_translation_table=)`` needs for an ONNX model of these ops.

    Tracing farthest point sampling unrolls its loop; the table has it as one ``Loop`` of ONNX, in float64 and with ties
    to the lowest index like its definition. So trace within ``references(keep=["farthest_point_sample"])``. Sums of
    rows by label (``aten.index_add``) become ``ScatterElements``, which adds in order: onnxruntime's ``ScatterND``,
    PyTorch's choice, adds from several threads at once and loses terms.

    Raises:
        ImportError: onnxscript is not installed (extra ``export``).
    """
    try:
        from cast_kernels import onnx_ops
    except ImportError as error:
        raise ImportError(f"ONNX needs onnx and onnxscript: pip install 'cast-kernels[export]' ({error})") from error
    return {
        torch.ops.cast_kernels.farthest_point_sample.default: onnx_ops.farthest_point_sample,
        torch.ops.aten.index_add.default: onnx_ops.index_add,
    }


class _Routing(TorchFunctionMode):
    def __init__(self, table: dict[str, Callable]) -> None:
        super().__init__()
        ops = {name: getattr(torch.ops.cast_kernels, name) for name in table}
        self._table = {op: table[name] for name, packet in ops.items() for op in (packet, packet.default)}

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return self._table.get(func, func)(*args, **(kwargs or {}))
