"""From one feature per segment to a map of pixels."""

from torch import Tensor

from cast_kernels import unpool


def tokens_to_pixels(tokens: Tensor, labels: Tensor) -> Tensor:
    """Give each pixel the feature of its segment.

    Args:
        tokens: ``[B, N, C]``, floating point.
        labels: Label map ``[B, H, W]``, integer; pixels whose label is outside ``[0, N)`` get zeros.

    Returns:
        ``[B, C, H, W]``, channels last in memory. Differentiable and deterministic.

    Raises:
        ValueError: Shapes or devices do not fit.
    """
    if labels.ndim != 3:
        raise ValueError(f"expected labels [B, H, W], got {tuple(labels.shape)}")
    pixels = unpool(tokens, labels.flatten(1).long())
    return pixels.unflatten(1, labels.shape[1:]).permute(0, 3, 1, 2)
