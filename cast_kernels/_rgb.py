"""The one rule for images: uint8 RGB, batched, channels last or first."""

import torch
from torch import Tensor

from cast_kernels._checks import shown


def channel_dim(image: Tensor) -> int:
    """Return where the colours of a uint8 batch [B, H, W, 3] or [B, 3, H, W] lie, 3 or 1; last wins where both fit.

    Raises:
        TypeError: ``image`` is not a uint8 tensor.
        ValueError: It has another shape.
    """
    if not isinstance(image, Tensor):
        raise TypeError(f"expected image to be a torch.Tensor, got {type(image).__name__}")
    if image.dtype != torch.uint8:
        raise TypeError(f"expected image in uint8, got {shown(image)}")
    if image.dim() == 3 and 3 in (image.shape[0], image.shape[2]):
        raise ValueError(f"expected a batch of images, got one image {shown(image)}: add a dimension with image[None]")
    if image.dim() == 4 and image.shape[3] == 3:
        return 3
    if image.dim() == 4 and image.shape[1] == 3:
        return 1
    raise ValueError(f"expected image [B, H, W, 3] or [B, 3, H, W], got {shown(image)}")
