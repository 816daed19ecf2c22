"""The transforms of `cast.data.augment` for whole batches of bytes on a device: no wait for it, no loop over images.

For sets that are kept on the device. Random numbers are drawn on the CPU and sent along; what follows has fixed shapes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import augment
from .augment import check_crop
from .device_image_ops import blur_boxes, color_jitter, gaussian_blur, per_image, resize_boxes, to_gray

if TYPE_CHECKING:
    from cast.train.config import TrainConfig

DeviceTransform = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class DeviceMocoViews:
    """`MocoViews` of a batch; arguments as there."""

    img_size: int
    crop_scale: tuple[float, float] = (0.08, 1.0)

    def __post_init__(self) -> None:
        check_crop(self.img_size, self.crop_scale)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the views, uint8 ``[B, 2, 3, S, S]``.

        Args:
            images: uint8 ``[B, 3, R, R]``.
            generator: On the CPU: where every random number comes from.

        Raises:
            ValueError: Images that are not as above, or a generator of a device.
        """
        _check(images, generator)
        views = [self._view(images, generator, *probabilities) for probabilities in augment.MOCO_VIEWS]
        return torch.stack(views, dim=1)

    def _view(self, images: Tensor, generator: torch.Generator, blur: float, solarize: float) -> Tensor:
        count, side = len(images), images.shape[-1]
        boxes = draw_boxes(count, side, self.crop_scale, generator)
        flips = _happens(count, augment.FLIP_PROB, generator)
        factors, order = draw_jitter(count, generator)
        gray = _happens(count, augment.GRAY_PROB, generator)
        low, high = augment.BLUR_SIGMA
        sigma = low + (high - low) * _uniform(generator, count)
        blurs = blur_boxes(torch.where(_happens(count, blur, generator), sigma, 0.0))
        solarized = _happens(count, solarize, generator)

        boxes, flips, factors, order, gray, blurs, solarized = _send(
            images.device, boxes, flips, factors, order, gray, blurs, solarized
        )
        view = resize_boxes(images, boxes, flips, self.img_size, "bilinear")
        view = color_jitter(view, factors, order)
        view = torch.where(per_image(gray), to_gray(view), view)
        view = gaussian_blur(view, blurs)
        view = torch.where(per_image(solarized) & (view >= augment.SOLARIZE_THRESHOLD), 255 - view, view)
        return view.to(torch.uint8)


@dataclass(frozen=True)
class DeviceCropAndFlip:
    """`CropAndFlip` of a batch; arguments as there."""

    img_size: int
    crop_scale: tuple[float, float] = (0.08, 1.0)
    resample: str = "bilinear"

    def __post_init__(self) -> None:
        check_crop(self.img_size, self.crop_scale, self.resample)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the views, uint8 ``[B, 1, 3, S, S]``; arguments as of `DeviceMocoViews`."""
        _check(images, generator)
        boxes = draw_boxes(len(images), images.shape[-1], self.crop_scale, generator)
        flips = _happens(len(images), augment.FLIP_PROB, generator)
        view = resize_boxes(images, *_send(images.device, boxes, flips), self.img_size, self.resample)
        return view.to(torch.uint8)[:, None]


class DeviceDeit(DeviceCropAndFlip):
    """`DeitAugment` of a batch, without RandAugment: bicubic crop and flip.

    Raises:
        ValueError: A ``magnitude`` above 0, besides what `DeitAugment` refuses.
    """

    def __init__(self, img_size: int, crop_scale: tuple[float, float] = (0.08, 1.0), magnitude: float = 0.0) -> None:
        if magnitude:
            raise ValueError(
                'expected rand_augment = 0 with cache="device", where RandAugment is not available, '
                f'got {magnitude}; cache="none" has it'
            )
        super().__init__(img_size, crop_scale, "bicubic")


@dataclass(frozen=True)
class DeviceCenterCrop:
    """What evaluation sees of a batch of squares: all of each, resized.

    Args:
        img_size: Side of the result in pixels.
        resample: ``"bilinear"`` or ``"bicubic"``.

    Raises:
        ValueError: A size below 1, or another name of a filter.
    """

    img_size: int
    resample: str = "bilinear"

    def __post_init__(self) -> None:
        check_crop(self.img_size, resample=self.resample)

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the squares, uint8 ``[B, 1, 3, S, S]``; nothing is drawn, other arguments as of `DeviceMocoViews`."""
        _check(images, generator)
        side = images.shape[-1]
        if side != self.img_size:
            box = torch.tensor([0, 0, side, side], dtype=torch.float32).expand(len(images), 4)
            flips = torch.zeros(len(images), dtype=torch.bool)
            images = resize_boxes(images, *_send(images.device, box, flips), self.img_size, self.resample)
        return images.to(torch.uint8)[:, None]


def make_device_transform(config: "TrainConfig", train: bool) -> DeviceTransform:
    """Return what a kind of training makes of a batch on the device; arguments as of `make_transform`.

    Raises:
        ValueError: Another task, or ``rand_augment`` above 0.
    """
    match config.task:
        case "moco":
            return DeviceMocoViews(config.img_size, config.crop_scale)
        case "supervised" if train:
            return DeviceDeit(config.img_size, config.crop_scale, config.rand_augment)
        case "supervised":
            return DeviceCenterCrop(config.img_size, "bicubic")
        case "probe" if train and config.augment:
            return DeviceCropAndFlip(config.img_size, config.crop_scale)
        case "probe":
            return DeviceCenterCrop(config.img_size)
    raise ValueError(f"expected a task that is moco, supervised or probe, got {config.task!r}")


def draw_boxes(count: int, side: int, scale: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Draw crops of squares as `crop_box` does: left, top, width, height, float32 ``[count, 4]``, whole numbers."""
    tries = (augment.CROP_TRIES, count)
    area = side * side * (scale[0] + (scale[1] - scale[0]) * _uniform(generator, *tries))
    low, high = map(math.log, augment.CROP_RATIO)
    ratio = torch.exp(low + (high - low) * _uniform(generator, *tries))
    sizes = torch.stack([torch.sqrt(area * ratio), torch.sqrt(area / ratio)]).round()
    fits = ((sizes > 0) & (sizes <= side)).all(dim=0)
    first = fits.to(torch.uint8).argmax(dim=0)  # the first of equal ones
    sizes = sizes[:, first, torch.arange(count)]
    sizes = torch.where(fits.any(dim=0), sizes, float(side))  # the fallback: a square has an allowed aspect
    corners = torch.floor(_uniform(generator, 2, count) * (side - sizes + 1))
    return torch.cat([corners, sizes]).T.float().contiguous()


def draw_jitter(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw what `color_jitter` takes; images that are not jittered get factors that change nothing."""
    ranges = torch.tensor([*augment.JITTER, augment.JITTER_HUE], dtype=torch.float64)
    offsets = ranges * (2 * _uniform(generator, count, 4) - 1)
    order = _uniform(generator, count, 4).argsort(dim=1)
    offsets = torch.where(_happens(count, augment.JITTER_PROB, generator)[:, None], offsets, 0.0)
    hue = torch.trunc(offsets[:, 3:] * 255)
    return torch.cat([1 + offsets[:, :3], hue], dim=1).float(), order


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def _happens(count: int, probability: float, generator: torch.Generator) -> Tensor:
    return _uniform(generator, count) < probability


def _send(device: torch.device, *tensors: Tensor) -> list[Tensor]:
    """Copies on the device; from pinned memory nothing waits."""
    if device.type == "cuda":
        tensors = tuple(x.pin_memory() for x in tensors)
    return [x.to(device, non_blocking=True) for x in tensors]


def _check(images: Tensor, generator: torch.Generator | None) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise ValueError(f"expected square images, uint8 [B, 3, R, R], got {images.dtype} {list(images.shape)}")
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(f"expected a generator on the CPU, got one on {generator.device}")
