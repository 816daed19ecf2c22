"""Checks and conversions of what goes into a model."""

import torch
from torch import Tensor


def channels_first(image: Tensor, channels: int) -> Tensor:
    """Check an image and return it as ``[B, C, H, W]``; uint8 may come as ``[B, H, W, C]`` as well.

    Raises:
        TypeError: The image is neither uint8 nor floating point.
        ValueError: The shape does not fit, or H or W is not a positive multiple of 8.
    """
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise TypeError(f"expected a uint8 or floating point image, got {image.dtype}")
    planes = image
    if image.ndim == 4 and image.dtype == torch.uint8 and image.shape[1] != channels:
        planes = image.permute(0, 3, 1, 2)
    if planes.ndim != 4 or planes.shape[1] != channels or any(n < 8 or n % 8 for n in planes.shape[2:]):
        raise ValueError(
            f"expected an image [B, {channels}, H, W], or in uint8 also [B, H, W, {channels}], with H and W positive "
            f"multiples of 8, got {image.dtype} of shape {tuple(image.shape)}"
        )
    return planes


def normalise(image: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """Bring uint8 ``[B, C, H, W]`` to ``(image / 255 - mean) / std``; floating point is taken as normalised."""
    if image.dtype != torch.uint8:
        return image.to(dtype)
    return (image.to(dtype) / 255 - mean) / std


def to_uint8(image: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Undo `normalise`: the nearest uint8 of a normalised image, whatever lies outside [0, 255] clamped."""
    if image.dtype == torch.uint8:
        return image
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    return ((image * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def check_labels(labels: Tensor, image: Tensor) -> None:
    """Check that ``labels`` is one integer map per image, on the image's device.

    Raises:
        TypeError: The labels are not uint8, int32 or int64.
        ValueError: Shape or device do not fit.
    """
    if labels.dtype not in (torch.uint8, torch.int32, torch.int64):
        raise TypeError(f"expected uint8, int32 or int64 labels, got {labels.dtype}")
    if labels.ndim != 3 or labels.shape[0] != image.shape[0] or labels.device != image.device:
        raise ValueError(
            f"expected labels [{image.shape[0]}, H, W] on {image.device}, got {tuple(labels.shape)} on {labels.device}"
        )
