"""What a path computes is checked before its time is believed."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cast.models import Cast

# Distance from the reference, as a share of its norm, that rounding explains: TF32 convolutions, and in 16 bits the
# few tokens that are sampled otherwise. Gradients pass through everything twice.
TOLERANCE = {"fp32": 2e-3, "bf16": 4e-2, "fp16": 1e-2}
GRADIENT_SLACK = 8
FLOOR = 1e-3  # of the norm of all gradients: what a smaller one is measured by, as some vanish but for rounding


class Refused(Exception):
    """A path computes something else than the reference; the message says how far off it is."""


@dataclass(frozen=True)
class Outcome:
    """What a path computes.

    Attributes:
        logits: Of the images that are checked.
        gradients: Of `loss` of these logits, by parameter; empty for a path without a backward pass.
    """

    logits: Tensor
    gradients: Mapping[str, Tensor] = field(default_factory=dict)


def checked_images(batch: int) -> list[int]:
    """Return which images of a batch the gate looks at: the first and the last, where a wrong size would show."""
    return sorted({0, batch - 1})


def reference(model: nn.Module, inputs: tuple[Tensor, ...], *, gradients: bool = False) -> Outcome:
    """Run a float64 copy of a model on the CPU, eagerly, in eval mode.

    Args:
        model: The model in float32.
        inputs: Normalised images and, for models that take them, superpixels.
        gradients: Whether to run backward, too.
    """
    exact = copy.deepcopy(model).cpu().double().eval()
    with torch.set_grad_enabled(gradients):
        logits = exact(inputs[0].double(), *inputs[1:])
    if gradients:
        loss(logits).backward()
    return _outcome(logits, exact)


def loss(logits: Tensor) -> Tensor:
    """A scalar whose gradient reaches every parameter that the logits depend on."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).square().mean()


def observe(call: Callable[[], Tensor], model: nn.Module, images: Sequence[int]) -> Outcome:
    """Run a path.

    Args:
        call: Runs it and returns its logits; leaves gradients in ``model`` if it computes any.
        model: The model that runs.
        images: Rows of the logits to keep.
    """
    model.zero_grad()
    return _outcome(call()[list(images)], model)


def check(expected: Outcome, found: Outcome, dtype: str) -> float:
    """Compare what a path computes with what it should, and return how far off its logits are.

    Args:
        expected: What it should compute.
        found: What it computes.
        dtype: Its precision, see ``TOLERANCE``.

    Raises:
        Refused: Logits, or the gradient of any parameter, are farther from the reference than that allows.
    """
    error = _distance(expected.logits, found.logits, TOLERANCE[dtype], "logits")
    if odd := expected.gradients.keys() ^ found.gradients.keys():
        raise Refused(f"gradients of other parameters than the reference's: {', '.join(sorted(odd)[:3])}")
    floor = FLOOR * sum(float(gradient.norm()) ** 2 for gradient in expected.gradients.values()) ** 0.5
    for name, gradient in expected.gradients.items():
        _distance(gradient, found.gradients[name], GRADIENT_SLACK * TOLERANCE[dtype], f"gradients of {name}", floor)
    return error


def check_superpixels(model: Cast, images: Tensor, expected: Tensor) -> None:
    """Check that a model makes the same superpixels on its device as on the CPU.

    Raises:
        Refused: It does not.
    """
    if not torch.equal(model.superpixels(images).cpu(), expected):
        raise Refused("superpixels differ from those made on the CPU")


def _outcome(logits: Tensor, model: nn.Module) -> Outcome:
    parameters = model.named_parameters()
    gradients = {n: p.grad.to("cpu", torch.float32, copy=True) for n, p in parameters if p.grad is not None}
    return Outcome(logits.detach().cpu().double(), gradients)


def _distance(expected: Tensor, got: Tensor, tolerance: float, what: str, floor: float = 0.0) -> float:
    if got.shape != expected.shape:
        raise Refused(f"{what} of shape {tuple(got.shape)}, the reference has {tuple(expected.shape)}")
    error = ((got.double() - expected.double()).norm() / (expected.double().norm() + floor)).item()
    if not error <= tolerance:  # not a number is refused, too
        raise Refused(f"{what} are off by {error:.1e} of their norm, more than {tolerance:.0e}")
    return error
