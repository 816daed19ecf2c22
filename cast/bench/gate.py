"""What a path computes is checked before its time is believed."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cast.models import Cast

IMAGES = 2  # that the reference sees: enough to notice a wrong path, few enough not to wait for
# Distance from the reference, as a share of its norm, that rounding explains: TF32 convolutions, and in 16 bits the
# few tokens that are sampled otherwise. Gradients pass through everything twice.
TOLERANCE = {"fp32": 2e-3, "bf16": 8e-2, "fp16": 2e-2}
GRADIENT_SLACK = 4


class Refused(Exception):
    """A path computes something else than the reference; the message says how far off it is."""


@dataclass(frozen=True)
class Reference:
    """What a model computes in float64.

    Attributes:
        logits: Of the first images.
        gradient: Of `loss` of these logits, with respect to the model's first parameter, before all its blocks.
    """

    logits: Tensor
    gradient: Tensor


def reference(model: nn.Module, inputs: tuple[Tensor, ...]) -> Reference:
    """Run a float64 copy of a model on the CPU, eagerly, in eval mode.

    Args:
        model: The model in float32.
        inputs: Normalised images and, for models that take them, superpixels.
    """
    exact = copy.deepcopy(model).cpu().double().eval().requires_grad_(False)
    probe = next(exact.parameters()).requires_grad_()
    logits = exact(inputs[0].double(), *inputs[1:])
    (gradient,) = torch.autograd.grad(loss(logits), probe)
    return Reference(logits.detach(), gradient)


def loss(logits: Tensor) -> Tensor:
    """A scalar whose gradient reaches every parameter that the logits depend on."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).square().mean()


def check(expected: Reference, call: Callable[[], Tensor], model: nn.Module, dtype: str) -> float:
    """Run a path whose batch begins with the images of the reference, and return how far off its logits are.

    Args:
        expected: What it should compute.
        call: Runs the path and returns its logits; leaves gradients in ``model`` if it computes any.
        model: The model that runs.
        dtype: Its precision, see ``TOLERANCE``.

    Raises:
        Refused: Logits or gradient are farther from the reference than that allows.
    """
    error = _distance(expected.logits, call()[: len(expected.logits)], TOLERANCE[dtype], "logits")
    gradient = next(model.parameters()).grad
    if gradient is not None:
        _distance(expected.gradient, gradient, GRADIENT_SLACK * TOLERANCE[dtype], "gradients")
    return error


def check_superpixels(model: Cast, images: Tensor, expected: Tensor) -> None:
    """Check that a model makes the same superpixels on its device as on the CPU.

    Raises:
        Refused: It does not.
    """
    if not torch.equal(model.superpixels(images).cpu(), expected):
        raise Refused("superpixels differ from those made on the CPU")


def _distance(expected: Tensor, got: Tensor, tolerance: float, what: str) -> float:
    if got.shape != expected.shape:
        raise Refused(f"{what} of shape {tuple(got.shape)}, the reference has {tuple(expected.shape)}")
    error = ((got.detach().cpu().double() - expected).norm() / expected.norm()).item()
    if not error <= tolerance:  # not a number is refused, too
        raise Refused(f"{what} are off by {error:.1e} of their norm, more than {tolerance:.0e}")
    return error
