"""What goes from the data to the network, and the random numbers that depend on nothing but the position."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# The first number of every key, so that no two uses draw the same.
SHUFFLE, AUGMENT, PREPARE, NETWORK, HELD_OUT = range(5)


class Batch(NamedTuple):
    """Some images, ``V`` views of each."""

    images: Tensor  # [B, V, 3, H, W] uint8, or float32 normalised once `Task.prepare` erased parts of them
    targets: Tensor  # [B] int64 classes, or [B, num_classes] float32 once they were mixed
    labels: Tensor | None = None  # [B, V, h, w] int32 superpixels on the grid of the stem; None where nobody made them

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device; from pinned memory nothing waits for the copy."""
        return Batch(*(None if x is None else x.to(device, non_blocking=True) for x in self))


def send(x: Tensor, device: torch.device) -> Tensor:
    """Copy a small tensor from the CPU to a device; to CUDA from pinned memory, so that nothing waits for the copy."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def numpy_generator(*key: int) -> np.random.Generator:
    """Return the random numbers of a position, such as ``(AUGMENT, seed, epoch, place)``: whole numbers >= 0.

    A run that is stopped and resumed draws what it would have drawn, whatever the number of workers.
    """
    return np.random.default_rng(np.random.SeedSequence(key))


def torch_seed(*key: int) -> int:
    """Return a seed for `torch.manual_seed` or `torch.Generator.manual_seed` that depends on the position alone."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
