"""Mixup, CutMix, label smoothing and random erasing of whole batches, and in which order with superpixels.

Sources: Zhang et al., "mixup" (arXiv 1710.09412); Yun et al., "CutMix" (arXiv 1905.04899); Szegedy et al. (arXiv
1512.00567) for smoothing; Zhong et al., "Random Erasing" (arXiv 1708.04896); their settings in DeiT (arXiv 2012.12877).
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cast.models.compat import published_bytes
from cast.models.config import CastConfig, ImageConfig
from cast.models.inputs import normalise
from cast.models.superpixels import superpixel_request
from cast_kernels import seeds

from .batch import Batch, send
from .config import SupervisedConfig
from .networks import GRID, MakeSuperpixels

ERASED_AREA = (0.02, 1 / 3)  # least and most share of the image
ERASED_ASPECT = (0.3, 1 / 0.3)  # least and most height over width
_ATTEMPTS = 10  # at a rectangle that fits into the image


class Mix(NamedTuple):
    """How a batch is mixed with itself in reverse order."""

    share: float  # of the image itself, in the target; with mixup also in each pixel
    box: tuple[int, int, int, int] | None = None  # CutMix: top, bottom, left, right of what is the other image's


@dataclass(frozen=True)
class MixAndErase:
    """What supervised training makes of a batch; may be pickled, as it holds no network.

    By default images are mixed, superpixels are those of the mixed image, and then parts are erased. With
    ``compat="published"`` parts are erased first, superpixels are those of the erased image, in bytes as DeiT's
    pipeline had them, and then images and targets are mixed, but not superpixels: they stay those of the first image.

    Attributes:
        config: The settings.
        network: Config of the network.
        num_classes: Width of the targets.
    """

    config: SupervisedConfig
    network: ImageConfig
    num_classes: int

    @torch.no_grad()
    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch mixed, with superpixels and erased.

        Args:
            batch: uint8 images ``[B, 1, 3, H, W]`` and classes ``[B]`` int64.
            generator: On the CPU; noise on another device is drawn there, from a seed that this one gives.

        Returns:
            Images, uint8, or float32 normalised where something may be erased; targets ``[B, num_classes]`` float32.
        """
        c, images = self.config, batch.images[:, 0]
        random = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator)))
        size = (images.shape[2], images.shape[3])
        mix = draw_mix(c, *size, random)
        boxes = draw_boxes(len(images), c.erasing, *size, random)
        seed = int(random.integers(2**63))
        targets = mix_targets(batch.targets, self.num_classes, c.smoothing, mix.share)
        if c.compat:
            images = erase(self._normalise(images), boxes, seed)
            labels = self._published_superpixels(images)
            return Batch(mix_images(images, mix)[:, None], targets, labels)
        batch = Batch(mix_images(images, mix)[:, None], targets)
        batch = MakeSuperpixels(self.network)(batch)
        if not c.erasing:
            return batch
        return batch._replace(images=erase(self._normalise(batch.images[:, 0]), boxes, seed)[:, None])

    def _normalise(self, images: Tensor) -> Tensor:
        mean, std = (_per_channel(values, images.device) for values in (self.network.mean, self.network.std))
        return normalise(images, mean, std, torch.float32)

    def _published_superpixels(self, images: Tensor) -> Tensor | None:
        """Return superpixels ``[B, 1, h, w]`` of normalised images."""
        c = self.network
        if not isinstance(c, CastConfig):
            return None
        request = superpixel_request(c, *images.shape[2:])
        raw = published_bytes(images, c.mean, c.std, "deit")
        return seeds(raw, request, **c.superpixels.options(), stride=GRID)[:, None]


@lru_cache(maxsize=32)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return ``[1, C, 1, 1]`` float32; kept, as each new copy to a device would make a step wait."""
    return send(torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1), device)


def draw_mix(config: SupervisedConfig, height: int, width: int, random: np.random.Generator) -> Mix:
    """Draw how a batch is mixed: with mixup, CutMix, or not at all, which is a share of 1.

    The share is from ``Beta(a, a)``, with ``a`` of the kind of mixing. A CutMix box has an area of ``1 - share`` of the
    image, around a centre that is anywhere in it, and is cut off at its edges; the share then is what is left.

    Args:
        config: The settings: ``mixup``, ``cutmix``, ``mix_prob`` and ``mix_switch_prob``.
        height: Of the images.
        width: Of the images.
        random: Where random numbers come from.
    """
    if not (config.mixup or config.cutmix) or random.random() >= config.mix_prob:
        return Mix(1.0)
    both = config.mixup > 0 and config.cutmix > 0
    cut = random.random() < config.mix_switch_prob if both else config.cutmix > 0
    parameter = config.cutmix if cut else config.mixup
    share = float(random.beta(parameter, parameter))
    if not cut:
        return Mix(share)
    rows, columns = (int(n * math.sqrt(1.0 - share)) for n in (height, width))
    top = int(random.integers(height)) - rows // 2
    left = int(random.integers(width)) - columns // 2
    box = (max(0, top), min(height, top + 2 * (rows // 2)), max(0, left), min(width, left + 2 * (columns // 2)))
    return Mix(1.0 - (box[1] - box[0]) * (box[3] - box[2]) / (height * width), box)


def mix_images(images: Tensor, mix: Mix) -> Tensor:
    """Mix a batch ``[B, C, H, W]`` with itself in reverse order, in float32; uint8 is rounded to the nearest."""
    if mix.share == 1.0:
        return images
    other = images.flip(0)
    if mix.box is not None:
        top, bottom, left, right = mix.box
        images = images.clone()
        images[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
        return images
    mixed = images.float() * mix.share + other.float() * (1.0 - mix.share)
    return mixed.round().to(torch.uint8) if images.dtype == torch.uint8 else mixed


def mix_targets(targets: Tensor, num_classes: int, smoothing: float, share: float) -> Tensor:
    """Return targets ``[B, num_classes]`` float32 of mixed images.

    Args:
        targets: Classes ``[B]`` int64.
        num_classes: How many there are.
        smoothing: What is spread over all classes alike.
        share: Of the image itself; the rest is that of the image in the same place from the end.
    """
    soft = F.one_hot(targets, num_classes).float() * (1.0 - smoothing) + smoothing / num_classes
    return soft * share + soft.flip(0) * (1.0 - share)


def draw_boxes(count: int, probability: float, height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """Draw the rectangle of each image that is erased.

    Its area and the logarithm of its aspect are uniform within `ERASED_AREA` and `ERASED_ASPECT`; of ten such, it is
    the first that is smaller than the image, anywhere in it.

    Args:
        count: Number of images.
        probability: That a rectangle is erased.
        height: Of the images.
        width: Of the images.
        random: Where random numbers come from.

    Returns:
        ``[count, 4]`` int64: top, bottom, left, right; zeros where nothing is erased.
    """
    chosen = random.random(count) < probability
    area = random.uniform(*ERASED_AREA, (count, _ATTEMPTS)) * height * width
    aspect = np.exp(random.uniform(*np.log(ERASED_ASPECT), (count, _ATTEMPTS)))
    place = random.random((2, count))
    rows, columns = (np.round(np.sqrt(x)).astype(np.int64) for x in (area * aspect, area / aspect))
    fits = (rows < height) & (columns < width)
    first = (np.arange(count), fits.argmax(axis=1))
    rows, columns = rows[first], columns[first]
    top, left = (place[0] * (height - rows + 1)).astype(np.int64), (place[1] * (width - columns + 1)).astype(np.int64)
    boxes = np.stack([top, top + rows, left, left + columns], axis=1)
    return np.where((chosen & fits.any(axis=1))[:, None], boxes, 0)


def erase(images: Tensor, boxes: np.ndarray, seed: int) -> Tensor:
    """Fill rectangles with noise of mean 0 and deviation 1, a number for each pixel and channel.

    Args:
        images: ``[B, C, H, W]`` float32, normalised.
        boxes: As `draw_boxes` returns them.
        seed: Of the noise, which depends on it and the kind of device.

    Returns:
        Images like the given ones, which stay as they are.
    """
    some = np.flatnonzero(boxes[:, 1])
    if not len(some):
        return images
    index = send(torch.from_numpy(some), images.device)
    top, bottom, left, right = send(torch.from_numpy(boxes[some]), images.device).T[:, :, None]
    row, column = (torch.arange(n, device=images.device) for n in images.shape[2:])
    inside = ((row >= top) & (row < bottom))[:, None, :, None] & ((column >= left) & (column < right))[:, None, None]
    generator = torch.Generator(images.device).manual_seed(seed)
    noise = torch.randn(len(some), *images.shape[1:], generator=generator, device=images.device)
    return images.index_copy(0, index, torch.where(inside, noise, images[index]))
