"""Optimizers with the published parameter groups, and moving averages of weights."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from cast.models.base import ImageModel


def trainable_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that take part in training, in the order of the module."""
    return [p for p in module.parameters() if p.requires_grad]


def decay_groups(model: ImageModel, weight_decay: float) -> list[dict[str, Any]]:
    """Divide the parameters that are trained into those without and those with weight decay, as DeiT does.

    Biases and everything of one dimension, and what ``model.no_weight_decay()`` names (the class token, learned
    positions), are not decayed.

    Args:
        model: The model.
        weight_decay: Of the second group.

    Returns:
        Two groups for an optimizer, the one without decay first.
    """
    exempt = model.no_weight_decay()
    plain, decayed = [], []
    for name, p in model.named_parameters():
        if p.requires_grad:
            without = p.ndim < 2 or name.endswith(".bias") or name in exempt
            (plain if without else decayed).append(p)
    return [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]


def make_adamw(
    parameters: Sequence[nn.Parameter] | Sequence[dict[str, Any]], learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """Return AdamW; on CUDA the fused one, which looks on the device whether scaled gradients are finite.

    Args:
        parameters: What is optimized, or groups of it.
        learning_rate: The rate.
        weight_decay: Of what no group says.
    """
    everything = [p for x in parameters for p in (x["params"] if isinstance(x, dict) else [x])]
    fused = True if all(p.device.type == "cuda" for p in everything) else None
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=fused)
    optimizer.register_load_state_dict_pre_hook(_stay_fused_or_not)
    return optimizer


def _stay_fused_or_not(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Keep the way to compute of this device where a run goes on that was saved on another."""
    fused = optimizer.defaults["fused"]
    return state | {"param_groups": [group | {"fused": fused} for group in state["param_groups"]]}


@torch.no_grad()
def average_parameters(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the parameters of an average towards those of a model: ``average * decay + model * (1 - decay)``.

    All parameters take part, also those that are not trained; buffers do not.

    Args:
        average: A copy of the model, changed in place.
        model: The model.
        decay: In [0, 1].
    """
    kept = list(average.parameters())
    torch._foreach_mul_(kept, decay)
    torch._foreach_add_(kept, list(model.parameters()), alpha=1.0 - decay)


class WeightAverage(nn.Module):
    """The exponential moving average of a model's weights and, as DeiT's, of its batch statistics.

    Args:
        model: The model, copied with what it holds now; the copy is in eval mode and is not trained.
        decay: What the average keeps of itself in each update, in [0, 1].

    Attributes:
        model: The averaged model. What it counts is that of the model at the last update.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model, after an optimizer step."""
        average_parameters(self.model, model, self.decay)
        for own, other in zip(self.model.buffers(), model.buffers(), strict=True):
            if own.is_floating_point():
                own.lerp_(other, 1.0 - self.decay)  # constants stay, to the last bit
            else:
                own.copy_(other)

    def train(self, mode: bool = True) -> "WeightAverage":
        """Stay in eval mode: nothing is ever trained here."""
        self.training = mode
        return self
