"""What ``compat="published"`` reproduces of the published pipelines, where they are not what one would want.

- The number of superpixels is the largest label of the batch plus one, as the tokens see it: labels beyond take part in
  nothing, so that results depend on what else is in the batch. It is known on the device alone, so tokens are masked
  where the published code has a shorter tensor.
- SEEDS gets other bytes than the image's in two pipelines: those of DeiT, which truncates on the way back from a
  normalised image, and Segmenter's negative.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .config import CastConfig, CastSegConfig


def present_superpixels(mask: Tensor) -> Tensor:
    """Find the superpixels that exist for the published code.

    Args:
        mask: ``[B, S]`` bool, which superpixels hold a cell of the grid that tokens are averaged over.

    Returns:
        ``[S]`` bool: True up to the largest label that any image of the batch holds, and always for label 0.
    """
    labels = torch.arange(mask.shape[1], device=mask.device)
    if not mask.shape[0]:
        return labels >= 0
    return labels <= (labels * mask.any(dim=0)).amax()


def present_labels(labels: Tensor, count: int) -> Tensor:
    """Do the same for labels ``[B, H, W]`` of the grid itself, of which ``count`` exist: ``[count]`` bool."""
    index = torch.arange(count, device=labels.device)
    if not labels.numel():
        return index >= 0
    return index <= torch.where((labels >= 0) & (labels < count), labels, 0).amax()


def superpixel_recipe(config: CastConfig) -> str:
    """Return what the published pipeline of a model hands to SEEDS: "image", "deit" or "negative"."""
    if isinstance(config, CastSegConfig) and config.stage == "encoder":
        return "negative"
    return "deit" if config.init == "deit" else "image"


def published_bytes(image: Tensor, mean: Sequence[float], std: Sequence[float], recipe: str) -> Tensor:
    """Turn an image into the bytes that a published pipeline makes superpixels of.

    Args:
        image: ``[B, 3, H, W]``, uint8, or float32 normalised with ``mean`` and ``std``.
        mean: Of the channels of images in [0, 1].
        std: The same.
        recipe: "deit": normalised in float32, then back in float64 and truncated, so that many levels come out one
            lower, and what lies outside [0, 255] wraps around; "negative" (of uint8): each byte times 255 modulo 256,
            which is 256 minus it.

    Returns:
        uint8 ``[B, 3, H, W]``.
    """
    if recipe == "negative":
        return image * 255  # wraps
    planes = []
    for channel, (m, s) in enumerate(zip(mean, std, strict=True)):
        x = image[:, channel]
        if x.dtype == torch.uint8:
            # one float32 operation per step, as on tensors of means and deviations
            x = (x.float() / 255 - torch.full_like(x, m, dtype=torch.float32)) / torch.full_like(
                x, s, dtype=torch.float32
            )
        planes.append(((x.double() * s + m) * 255).to(torch.int64).to(torch.uint8))
    return torch.stack(planes, dim=1)
