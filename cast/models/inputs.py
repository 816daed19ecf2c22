"""Checks and conversions of what goes into a model."""

import torch
from torch import Tensor


def channels_first(image: Tensor, channels: int, multiple: int = 8) -> Tensor:
    """Check an image and return it as ``[B, C, H, W]``; uint8 may come as ``[B, H, W, C]`` as well.

    Raises:
        TypeError: The image is not a tensor, or neither uint8 nor floating point.
        ValueError: The shape does not fit, or H or W is not a positive multiple of ``multiple``, or below 8.
    """
    _check_tensor("image", image)
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise TypeError(f"expected a uint8 or floating point image, got {image.dtype}")
    planes = image
    if image.ndim == 4 and image.dtype == torch.uint8 and image.shape[1] != channels:
        planes = image.permute(0, 3, 1, 2)
    if planes.ndim != 4 or planes.shape[1] != channels or any(n < 8 or n % multiple for n in planes.shape[2:]):
        sizes = f"positive multiples of {multiple}" if multiple > 1 else "of at least 8"
        raise ValueError(
            f"expected an image [B, {channels}, H, W], or in uint8 also [B, H, W, {channels}], with H and W {sizes}, "
            f"got {image.dtype} of shape {tuple(image.shape)}"
        )
    return planes


def normalise(image: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """Bring uint8 ``[B, C, H, W]`` to ``(image / 255 - mean) / std``; floating point is taken as normalised.

    Computed in float32, or in float64 for that ``dtype``, and rounded to ``dtype`` once.
    """
    if image.dtype != torch.uint8:
        return image.to(dtype)
    return ((image.to(torch.promote_types(dtype, torch.float32)) / 255 - mean) / std).to(dtype)


def to_uint8(image: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Undo `normalise`: the nearest uint8 of a normalised image, whatever lies outside [0, 255] clamped."""
    if image.dtype == torch.uint8:
        return image
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    return ((image * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def check_labels(labels: Tensor, image: Tensor) -> None:
    """Check that ``labels`` is one integer map per image, on the image's device.

    Raises:
        TypeError: The labels are not a tensor of uint8, int32 or int64.
        ValueError: Shape or device do not fit.
    """
    _check_tensor("labels", labels)
    if labels.dtype not in (torch.uint8, torch.int32, torch.int64):
        raise TypeError(f"expected uint8, int32 or int64 labels, got {labels.dtype}")
    if labels.ndim != 3 or labels.shape[0] != image.shape[0] or labels.device != image.device:
        raise ValueError(
            f"expected labels [{image.shape[0]}, H, W] on {image.device}, got {tuple(labels.shape)} on {labels.device}"
        )


def check_count_covers(labels: Tensor, count: int) -> None:
    """Check that labels that come without a number of segments stay below the default one.

    Only where looking does not wait for a device or break a graph: plain tensors on the CPU, outside compilation.

    Raises:
        ValueError: A label is ``count`` or larger.
    """
    readable = type(labels) is Tensor and labels.device.type == "cpu"  # a fake tensor, a subclass, has no values
    if not readable or torch.compiler.is_compiling() or not labels.numel():
        return
    largest = int(labels.max())
    if largest >= count:
        raise ValueError(
            f"expected labels below {count}, the number of superpixels that the model makes of such an image, got "
            f"{largest}; pass num_segments={largest + 1} to use them all, or num_segments={count} to ignore the rest"
        )


def _check_tensor(name: str, x: object) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"expected {name} to be a torch.Tensor, got {type(x).__module__}.{type(x).__qualname__}")
