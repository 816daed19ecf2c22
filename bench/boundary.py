"""What crossing into an op costs on the CPU, for the ways of registering one: ``python -m bench.boundary``.

The same body, two empty tensors from two, registered in each way; rounds of all ways alternate, so that a ratio holds
on a busy machine. The body called plainly is what any way must cost at least.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

CALLS, ROUNDS = 300, 41


def body(u: Tensor, z: Tensor, kappa: float) -> tuple[Tensor, Tensor]:
    """Allocate, as a launcher does, and launch nothing."""
    return u.new_empty(u.shape), z.new_empty(z.shape)


def body_backward(grad_u: Tensor, grad_z: Tensor) -> tuple[Tensor, Tensor]:
    """Allocate the gradients."""
    return grad_u.new_empty(grad_u.shape), grad_z.new_empty(grad_z.shape)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], inputs[1])


def by_custom_op() -> Callable:
    """``torch.library.custom_op``, the gradient an op of its own."""
    forward = torch.library.custom_op("cast_boundary::custom", mutates_args=())(body)
    backward = torch.library.custom_op("cast_boundary::custom_backward", mutates_args=())(body_backward)
    forward.register_autograd(
        lambda ctx, *grads: (*torch.ops.cast_boundary.custom_backward(*grads), None), setup_context=_setup_context
    )
    backward.register_fake(body_backward)
    forward.register_fake(body)
    return torch.ops.cast_boundary.custom.default


def by_define() -> Callable:
    """``torch.library.define`` and ``impl``, with ``register_autograd``."""
    for name, function in (("defined", body), ("defined_backward", body_backward)):
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(f"cast_boundary::{name}", schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(f"cast_boundary::{name}", "default", function)
        torch.library.register_fake(f"cast_boundary::{name}", function)
    torch.library.register_autograd(
        "cast_boundary::defined",
        lambda ctx, *grads: (*torch.ops.cast_boundary.defined_backward(*grads), None),
        setup_context=_setup_context,
    )
    return torch.ops.cast_boundary.defined.default


def by_function() -> Callable:
    """``torch.autograd.Function`` without an op: compile and opcheck do not see it."""

    class Plain(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u, z, kappa):
            ctx.save_for_backward(u, z)
            return body(u, z, kappa)

        @staticmethod
        def backward(ctx, *grads):
            return (*body_backward(*grads), None)

    return Plain.apply


def microseconds(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median time of a call, for each way, in rounds that alternate."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            times[name].append(1e6 * (time.perf_counter() - start) / CALLS)
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    """Print a row for inference, and one for forward and backward."""
    ways = {"plain": body, "custom_op": by_custom_op(), "define": by_define(), "autograd.Function": by_function()}
    u, z = torch.zeros(4, 4), torch.zeros(4, 4)
    leaves = (u.clone().requires_grad_(), z.clone().requires_grad_())
    grads = (torch.ones(4, 4), torch.ones(4, 4))
    inference = {name: (lambda way=way: way(u, z, 5.0)) for name, way in ways.items()}
    with torch.no_grad():
        _show("inference", microseconds(inference))
    del ways["plain"]  # it has no gradient
    forward = {name: (lambda way=way: way(*leaves, 5.0)) for name, way in ways.items()}
    _show("forward with gradient", microseconds(forward))
    both = {name: (lambda way=way: torch.autograd.grad(way(*leaves, 5.0), leaves, grads)) for name, way in ways.items()}
    _show("forward and backward", microseconds(both))


def _show(title: str, found: dict[str, float]) -> None:
    print(f"{title:<22} " + "  ".join(f"{name} {time:6.1f} us" for name, time in found.items()), flush=True)


if __name__ == "__main__":
    main()
