"""Random views of an image for training, and the central square for evaluation: a Pillow image in, bytes out.

Published augmentations: MoCo v3's two views (CAST's pre-training), crop and flip (linear probe), DeiT's (supervised).
Each transform is called with an image and the random numbers of its position, its only source of randomness, and holds
nothing but settings, so that it can be sent to workers. `cast.data.device_augment` does the same to whole batches.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from .geometry import check_size, crop_geometry
from .images import to_rgb
from .rand_augment import RandAugment

if TYPE_CHECKING:
    from cast.train.config import TrainConfig

Transform = Callable[[Image.Image | np.ndarray, np.random.Generator], Tensor]

CROP_RATIO = (3 / 4, 4 / 3)  # width over height
CROP_TRIES = 10
JITTER = (0.4, 0.4, 0.2)  # brightness, contrast, saturation: factors in 1 +- this
JITTER_HUE = 0.1  # of the circle of hues, either way
JITTER_PROB, GRAY_PROB, FLIP_PROB = 0.8, 0.2, 0.5
BLUR_SIGMA = (0.1, 2.0)
SOLARIZE_THRESHOLD = 128
MOCO_VIEWS = ((1.0, 0.0), (0.1, 0.2))  # of each view: probability of blur, of solarization


@dataclass(frozen=True)
class MocoViews:
    """The two views of MoCo v3 (Chen, Xie, He, ICCV 2021), which differ in how often they are blurred and solarized.

    Crop, colour jitter, grayscale, Gaussian blur, solarization, flip, in this order.

    Args:
        img_size: Side of the views in pixels.
        crop_scale: Share of the image's area that a crop takes, least and most.

    Raises:
        ValueError: A size below 1, or a scale outside (0, 1].
    """

    img_size: int
    crop_scale: tuple[float, float] = (0.08, 1.0)

    def __post_init__(self) -> None:
        check_crop(self.img_size, self.crop_scale)

    def __call__(self, image: Image.Image | np.ndarray, generator: np.random.Generator) -> Tensor:
        """Return the views, uint8 ``[2, 3, S, S]``.

        Args:
            image: A Pillow image, or uint8 ``[H, W, 3]``.
            generator: Where every random number comes from.

        Raises:
            ValueError: An array that is not as above.
        """
        image = as_rgb(image)
        return _stack(*(self._view(image, generator, *probabilities) for probabilities in MOCO_VIEWS))

    def _view(self, image: Image.Image, generator: np.random.Generator, blur: float, solarize: float) -> Image.Image:
        view = random_resized_crop(image, generator, self.img_size, self.crop_scale)
        if generator.random() < JITTER_PROB:
            view = color_jitter(view, generator)
        if generator.random() < GRAY_PROB:
            view = view.convert("L").convert("RGB")
        if generator.random() < blur:
            view = view.filter(ImageFilter.GaussianBlur(generator.uniform(*BLUR_SIGMA)))
        if generator.random() < solarize:
            view = ImageOps.solarize(view, SOLARIZE_THRESHOLD)
        return random_flip(view, generator)


@dataclass(frozen=True)
class CropAndFlip:
    """A random crop, flipped half of the time: how features are probed.

    Args:
        img_size: Side of the view in pixels.
        crop_scale: Share of the image's area that a crop takes, least and most.
        resample: ``"bilinear"`` or ``"bicubic"``.

    Raises:
        ValueError: A size below 1, a scale outside (0, 1], or another name of a filter.
    """

    img_size: int
    crop_scale: tuple[float, float] = (0.08, 1.0)
    resample: str = "bilinear"

    def __post_init__(self) -> None:
        check_crop(self.img_size, self.crop_scale, self.resample)

    def __call__(self, image: Image.Image | np.ndarray, generator: np.random.Generator) -> Tensor:
        """Return the view, uint8 ``[1, 3, S, S]``; arguments as of `MocoViews`."""
        view = random_resized_crop(as_rgb(image), generator, self.img_size, self.crop_scale, self.resample)
        return _stack(random_flip(view, generator))


@dataclass(frozen=True)
class DeitAugment:
    """DeiT's augmentation (Touvron et al., ICML 2021): bicubic crop, flip, RandAugment.

    Args:
        img_size: Side of the view in pixels.
        crop_scale: Share of the image's area that a crop takes, least and most.
        magnitude: Of RandAugment, 0 to 10; 0 = none of it.
        std: Deviation of the magnitude.

    Raises:
        ValueError: A size below 1, a scale outside (0, 1], or a magnitude or deviation out of range.
    """

    img_size: int
    crop_scale: tuple[float, float] = (0.08, 1.0)
    magnitude: float = 9.0
    std: float = 0.5

    def __post_init__(self) -> None:
        check_crop(self.img_size, self.crop_scale)
        RandAugment(self.magnitude, self.std)  # which checks them

    def __call__(self, image: Image.Image | np.ndarray, generator: np.random.Generator) -> Tensor:
        """Return the view, uint8 ``[1, 3, S, S]``; arguments as of `MocoViews`."""
        view = random_resized_crop(as_rgb(image), generator, self.img_size, self.crop_scale, "bicubic")
        view = random_flip(view, generator)
        return _stack(RandAugment(self.magnitude, self.std)(view, generator) if self.magnitude else view)


@dataclass(frozen=True)
class CenterCrop:
    """The central square as published evaluations take it (`crop_geometry`). Nothing random.

    Args:
        img_size: Side of the square in pixels, a multiple of 8.
        resample: ``"bilinear"`` (linear probe) or ``"bicubic"`` (DeiT).

    Raises:
        ValueError: Another size, or another name of a filter.
    """

    img_size: int
    resample: str = "bilinear"

    def __post_init__(self) -> None:
        check_size(self.img_size, crop=True)
        check_crop(self.img_size, resample=self.resample)

    def __call__(self, image: Image.Image | np.ndarray, generator: np.random.Generator | None = None) -> Tensor:
        """Return the square, uint8 ``[1, 3, S, S]``.

        Raises:
            ValueError: An array that is not uint8 ``[H, W, 3]``, or a side more than 16 times the other.
        """
        pixels = np.asarray(as_rgb(image))
        return _stack(crop_geometry(*pixels.shape[:2], self.img_size).apply(pixels, self.resample))


def make_transform(config: "TrainConfig", train: bool) -> Transform:
    """Return what a kind of training makes of an image.

    Args:
        config: The settings of one of the tasks ``moco``, ``supervised`` and ``probe``.
        train: Whether for training; held-out images are augmented for ``moco`` alone, whose loss compares two views.

    Raises:
        ValueError: Another task.
    """
    match config.task:
        case "moco":
            return MocoViews(config.img_size, config.crop_scale)
        case "supervised" if train:
            return DeitAugment(config.img_size, config.crop_scale, config.rand_augment, config.rand_augment_std)
        case "supervised":
            return CenterCrop(config.img_size, "bicubic")
        case "probe" if train and config.augment:
            return CropAndFlip(config.img_size, config.crop_scale)
        case "probe":
            return CenterCrop(config.img_size)
    raise ValueError(f"expected a task that is moco, supervised or probe, got {config.task!r}")


def random_resized_crop(
    image: Image.Image,
    generator: np.random.Generator,
    size: int,
    scale: tuple[float, float],
    resample: str = "bilinear",
) -> Image.Image:
    """Return a random part of an RGB image, resized to a square of ``size`` pixels with Pillow's antialiasing filter.

    The part is cut out first, as published, so that the filter sees no pixel beside it.
    """
    box = crop_box(*image.size, scale, generator)
    return image.crop(box).resize((size, size), Image.Resampling[resample.upper()])


def crop_box(
    width: int, height: int, scale: tuple[float, float], generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw the left, top, right and bottom of a crop, by the rule of torchvision's ``RandomResizedCrop``.

    Area uniform, aspect log-uniform in 3/4 to 4/3. Where ten draws do not fit into the image: its centre, of the
    allowed aspect that is closest to its own.
    """
    for _ in range(CROP_TRIES):
        area = width * height * generator.uniform(*scale)
        ratio = math.exp(generator.uniform(*map(math.log, CROP_RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(generator.integers(width - w + 1)), int(generator.integers(height - h + 1))
            return left, top, left + w, top + h
    least, most = CROP_RATIO
    w, h = min(width, round(height * most)), min(height, round(width / least))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def random_flip(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Return the image, mirrored left to right half of the time."""
    return ImageOps.mirror(image) if generator.random() < FLIP_PROB else image


def color_jitter(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Change brightness, contrast, saturation and hue of an RGB image by random factors in random order."""
    factors = [generator.uniform(1 - x, 1 + x) for x in JITTER]
    hue = generator.uniform(-JITTER_HUE, JITTER_HUE)
    for op in generator.permutation(4):
        if op == 3:
            image = shift_hue(image, hue)
        else:
            enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[op]
            image = enhance(image).enhance(factors[op])
    return image


def shift_hue(image: Image.Image, shift: float) -> Image.Image:
    """Turn the hues of an RGB image by a share of their circle, in whole steps of 1/256: hues are bytes in Pillow."""
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(i + int(shift * 255)) % 256 for i in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def as_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    """Return a Pillow RGB image from one of any mode, or from uint8 ``[H, W, 3]``.

    Raises:
        ValueError: An array that is not as above.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"expected an image as uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
        return Image.fromarray(image)
    return image if image.mode == "RGB" else Image.fromarray(to_rgb(image))


def check_crop(img_size: int, scale: tuple[float, float] = (1.0, 1.0), resample: str = "bilinear") -> None:
    """Raise ValueError unless these are a size, shares of an area, and the name of a filter."""
    if img_size < 1:
        raise ValueError(f"expected img_size >= 1, got {img_size}")
    if not 0.0 < scale[0] <= scale[1] <= 1.0:
        raise ValueError(f"expected crop_scale (least, most) in (0, 1], got {scale}")
    if resample not in ("bilinear", "bicubic"):
        raise ValueError(f"expected resample 'bilinear' or 'bicubic', got {resample!r}")


def _stack(*views: Image.Image | np.ndarray) -> Tensor:
    """Views as uint8 ``[V, 3, S, S]``."""
    return torch.stack([torch.from_numpy(np.array(view)) for view in views]).permute(0, 3, 1, 2).contiguous()
