"""What the loop asks of a kind of training."""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from .batch import Batch
from .config import TrainConfig


class Task(nn.Module):
    """Everything that is trained and saved, as one module: `forward` computes the loss of a batch.

    The loop wraps it for several processes, calls `prepare` on each batch, sets learning rates, steps the optimizer,
    and saves its state dict.

    Args:
        config: The settings.
        num_classes: Classes of the training images; 0 where they have none.

    Attributes:
        best_metric: The figure of `evaluate` by which the best checkpoint is chosen.
        best_is_highest: Whether higher is better.
        views: Views that are made of each training image.
        modules_to_shard: What FSDP divides, innermost first.
    """

    best_metric: ClassVar[str]
    best_is_highest: ClassVar[bool]
    views: ClassVar[int] = 1

    def __init__(self, config: TrainConfig, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return what `forward` takes: mixed, erased, with superpixels, as the task has it. No gradients.

        Called in the training step with a batch on the device, or by ``superpixels_on="cpu"`` in a worker with a batch
        on the CPU; it may use nothing of the network but what its config says.

        Args:
            batch: uint8 views ``[B, V, 3, H, W]`` and classes ``[B]``.
            generator: On the CPU, seeded for this batch: every random number comes from it.
        """
        raise NotImplementedError

    def forward(self, batch: Batch, epoch: float, first_part: bool = True) -> Tensor:
        """Return the loss, a scalar.

        Args:
            batch: What `prepare` returned, on the device.
            epoch: Position in the run, in epochs, such as 3.25.
            first_part: Whether this is the first of the parts that are accumulated for an optimizer step.
        """
        raise NotImplementedError

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of the parameters that are trained."""
        raise NotImplementedError

    def learning_rate(self, epoch: float) -> float:
        """Return the learning rate at a position in the run, in epochs."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Do what follows each optimizer step, such as updating a moving average."""

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Return sums over held-out batches (views are single, uint8, not prepared) and their ``"count"``.

        The loop adds them over processes and divides by the count. In eval mode, without gradients. Nothing random but
        what depends on the batch's place alone, so that figures of different epochs can be compared.
        """
        raise NotImplementedError

    def modules_to_shard(self) -> list[nn.Module]:
        """Return the parts that FSDP divides one by one, such as the blocks."""
        raise NotImplementedError

    def save_model(self, folder: Path) -> None:
        """Write the model for users, by `save_pretrained`."""
        raise NotImplementedError
