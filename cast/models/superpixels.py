"""Superpixels as a model's config has them, without the model: training makes them of a batch before the network."""

import torch
from torch import Tensor

from cast_kernels import seeds

from .compat import published_bytes, superpixel_recipe
from .config import CastConfig


def superpixel_request(config: CastConfig, height: int, width: int, num_superpixels: int | None = None) -> int:
    """Return how many superpixels to ask for; None = those of ``img_size``, in proportion to the area."""
    if num_superpixels is not None:
        return num_superpixels
    return max(1, round(config.superpixels.num_superpixels * height * width / config.img_size**2))


def published_recipe(config: CastConfig) -> str:
    """Return what of an image a model hands to SEEDS: "image", or as published "deit" or "negative"."""
    return superpixel_recipe(config) if config.compat else "image"


@torch.no_grad()
def make_superpixels(
    image: Tensor, config: CastConfig, num_superpixels: int | None = None, *, stride: int = 1
) -> Tensor:
    """Make the superpixels that a model of this config makes of images, on their device.

    Args:
        image: ``[B, 3, H, W]``, uint8; for the recipe "deit" (see `published_recipe`) also normalised float32.
        config: Of the model.
        num_superpixels: How many to ask for; None as in `superpixel_request`.
        stride: Return only the labels ``[:, ::stride, ::stride]``.

    Returns:
        Labels ``[B, ceil(H / stride), ceil(W / stride)]`` int32.

    Raises:
        TypeError: The image has the wrong type or dtype.
        ValueError: The image is too small for so many superpixels, or has the wrong shape.
    """
    request = superpixel_request(config, *image.shape[2:], num_superpixels)
    recipe = published_recipe(config)
    if recipe != "image":
        image = published_bytes(image, config.mean, config.std, recipe)
    return seeds(image, request, **config.superpixels.options(), stride=stride)
