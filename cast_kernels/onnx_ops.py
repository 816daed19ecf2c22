"""ONNX of what PyTorch's exporter would write badly; imports onnxscript.

Farthest point sampling is a loop, which tracing unrolls. Here it is one ``Loop``, in float64 as its definition. Sums of
rows by label would become ``ScatterND``, which onnxruntime's threads add to without waiting for each other, so that it
loses terms now and then; ``ScatterElements`` adds one after another.
"""

from typing import Any

from onnxscript import BOOL, DOUBLE, INT32, INT64, script
from onnxscript import opset18 as op  # in which PyTorch's translations are written, and converted from
from onnxscript.values import Opset

_DOMAIN = Opset("cast_kernels", 1)  # of the functions below, until the exporter inlines them

Tokens = DOUBLE["B", "N", "C"]
Point = DOUBLE["B", 1, "C"]
Distances = DOUBLE["B", "N"]
Flags = BOOL["B", "N"]
Samples = INT64["B", "K"]


@script(_DOMAIN)
def squared_distance(x: Tokens, point: Point) -> Distances:
    """From each of x [B, N, C] to point [B, 1, C]: [B, N]; 0 where it is not a number."""
    offset = x - point
    square = op.ReduceSum(offset * offset, op.Constant(value_ints=[2]), keepdims=0)
    return op.Where(op.IsNaN(square), op.CastLike(0.0, x), square)


@script(_DOMAIN)
def sample_farthest(
    x: Tokens,
    valid: Flags,
    distance: Distances,
    picked: Flags,
    distinct: BOOL,
    count: INT64,
) -> Samples:
    """Continue from the distances [B, N] and picks [B, N] so far: the next ``count`` samples [B, count]."""
    zero = op.Constant(value_int=0)
    one = op.Constant(value_int=1)
    token_index = op.Range(zero, op.Squeeze(op.Shape(x, start=1, end=2)), one)
    columns = op.Range(zero, count, one)
    samples = op.Expand(zero, op.Concat(op.Shape(x, start=0, end=1), op.Shape(columns), axis=0))
    for k in range(count):
        score = op.Where(picked, op.CastLike(-2.0, x), op.Where(valid, distance, op.CastLike(-1.0, x)))
        pick = op.ArgMax(score, axis=1, keepdims=1)  # the first of equal maxima
        samples = op.Where(op.Equal(columns, k), pick, samples)
        picked = op.Or(picked, op.And(distinct, op.Equal(token_index, pick)))
        point = op.Unsqueeze(op.GatherND(x, pick, batch_dims=1), op.Constant(value_ints=[1]))
        distance = op.Min(distance, squared_distance(x, point))
    return samples


def farthest_point_sample(x: Any, num_samples: int, start: int, mask: Any, precision: str, duplicates: str) -> Any:
    """The registered op of that name, on ONNX values."""
    x = op.Cast(x, to=DOUBLE.dtype)
    true = op.Cast(op.Expand(op.Constant(value_int=1), op.Shape(x, start=0, end=2)), to=BOOL.dtype)
    valid = true if mask is None else mask
    distinct = op.Cast(op.Constant(value_int=int(duplicates == "distinct")), to=BOOL.dtype)
    if start < 0:
        nothing = op.Not(true)
        return sample_farthest(x, valid, squared_distance(x, _mean(x, valid)), nothing, distinct, num_samples)
    point = op.Gather(x, op.Constant(value_ints=[start]), axis=1)
    first = op.Expand(op.Constant(value_int=start), op.Shape(point, start=0, end=2))  # [B, 1]
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    token_index = op.Range(zero, op.Squeeze(op.Shape(x, start=1, end=2)), one)
    picked = op.And(distinct, op.Equal(token_index, first))
    rest = sample_farthest(x, valid, squared_distance(x, point), picked, distinct, num_samples - 1)
    return op.Concat(first, rest, axis=1)


def index_add(x: Any, dim: int, index: Any, source: Any, alpha: float = 1.0) -> Any:
    """``aten.index_add`` on ONNX values: x with the slices of source added at index along dim, in order."""
    others = [axis for axis in range(len(x.shape)) if axis != dim % len(x.shape)]
    index = op.Cast(index, to=INT32.dtype)  # as it is repeated for every element: half the memory of int64
    everywhere = op.Expand(op.Unsqueeze(index, op.Constant(value_ints=others)), op.Shape(source))
    terms = source if alpha == 1.0 else op.Mul(source, op.CastLike(float(alpha), source))
    return op.ScatterElements(x, everywhere, terms, axis=dim, reduction="add")


def _mean(x: Any, valid: Any) -> Any:
    """The mean [B, 1, C] of the valid tokens without a NaN; zeros where there are none."""
    has_nan = op.ReduceMax(op.Cast(op.IsNaN(x), to=INT64.dtype), [2], keepdims=1)
    counted = op.And(op.Unsqueeze(valid, [2]), op.Equal(has_nan, 0))
    total = op.ReduceSum(op.Where(counted, x, op.CastLike(0.0, x)), [1], keepdims=1)
    count = op.ReduceSum(op.Cast(counted, to=DOUBLE.dtype), [1], keepdims=1)
    return op.Div(total, op.Max(count, op.CastLike(1.0, x)))
