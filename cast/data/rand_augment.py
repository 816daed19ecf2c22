"""RandAugment (Cubuk et al., NeurIPS 2020) as DeiT trains with it: ``rand-m9-mstd0.5-inc1``.

Two operations per image, drawn with replacement, each applied half of the time, of a strength that is drawn around the
magnitude and grows with it ("inc1").
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from PIL.Image import Resampling, Transform

MAX_MAGNITUDE = 10.0
OPS_PER_IMAGE = 2
OP_PROB = 0.5
FILL = (124, 116, 104)  # where a geometric operation finds no pixel: the mean colour of ImageNet

Op = Callable[[Image.Image, float, Resampling], Image.Image]  # image, strength in [-1, 1], filter


@dataclass(frozen=True)
class RandAugment:
    """Random operations on an RGB image.

    Args:
        magnitude: Mean strength of an operation, 0 to 10.
        std: Deviation of the strength, which is then cut to 0 to 10.
        resample: The filter of rotations, shears and translations: ``"bicubic"`` (DeiT's), ``"bilinear"``, or
            ``"random"``: one of both for each.

    Raises:
        ValueError: A value out of range.
    """

    magnitude: float = 9.0
    std: float = 0.5
    resample: str = "bicubic"

    def __post_init__(self) -> None:
        if not 0.0 <= self.magnitude <= MAX_MAGNITUDE:
            raise ValueError(f"expected the magnitude of RandAugment in [0, 10], got {self.magnitude}")
        if not (self.std >= 0.0 and math.isfinite(self.std)):
            raise ValueError(f"expected a finite deviation of RandAugment's magnitude >= 0, got {self.std}")
        if self.resample not in ("bilinear", "bicubic", "random"):
            raise ValueError(f"expected resample 'bilinear', 'bicubic' or 'random', got {self.resample!r}")

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        """Return the changed image, RGB, of the same size.

        Args:
            image: RGB.
            generator: Where every random number comes from.
        """
        names = tuple(OPS)
        for index in generator.integers(len(names), size=OPS_PER_IMAGE):
            if generator.random() < OP_PROB:
                level = min(max(generator.normal(self.magnitude, self.std), 0.0), MAX_MAGNITUDE)
                sign = 1 if generator.random() < 0.5 else -1
                resample = self.resample
                if resample == "random":
                    resample = "bilinear" if generator.random() < 0.5 else "bicubic"
                image = apply_op(names[index], image, level, sign, resample)
        return image


def apply_op(name: str, image: Image.Image, level: float, sign: int = 1, resample: str = "bicubic") -> Image.Image:
    """Return an RGB image changed by one operation of `OPS`.

    Args:
        name: Which.
        image: RGB.
        level: Strength, 0 to 10.
        sign: 1 or -1: the direction, for those that have one.
        resample: ``"bilinear"`` or ``"bicubic"``, for geometric ones.
    """
    return OPS[name](image, sign * level / MAX_MAGNITUDE, Resampling[resample.upper()])


def _by_value(image: Image.Image, new_value: Callable[[int], int]) -> Image.Image:
    return image.point([new_value(i) for i in range(256)] * 3)


def _auto_contrast(image: Image.Image, _strength: float, _resample: Resampling) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, _strength: float, _resample: Resampling) -> Image.Image:
    return ImageOps.equalize(image)


def _invert(image: Image.Image, _strength: float, _resample: Resampling) -> Image.Image:
    return ImageOps.invert(image)


def _posterize(image: Image.Image, strength: float, _resample: Resampling) -> Image.Image:
    """Keep the 4 highest bits, less with strength; none at all at the highest."""
    dropped = 4 + int(abs(strength) * 4)
    return _by_value(image, lambda i: i >> dropped << dropped)


def _solarize(image: Image.Image, strength: float, _resample: Resampling) -> Image.Image:
    """Invert what is at least as bright as a threshold, which goes from 256 to 0."""
    threshold = 256 - int(abs(strength) * 256)
    return _by_value(image, lambda i: i if i < threshold else 255 - i)


def _solarize_add(image: Image.Image, strength: float, _resample: Resampling) -> Image.Image:
    """Brighten the darker half by up to 110."""
    added = int(abs(strength) * 110)
    return _by_value(image, lambda i: min(255, i + added) if i < 128 else i)


def _enhancement(enhance: type) -> Op:
    """Color, contrast and the like: a factor of 0.1 to 1.9, where 1 changes nothing."""

    def op(image: Image.Image, strength: float, _resample: Resampling) -> Image.Image:
        return enhance(image).enhance(max(0.1, 1 + 0.9 * strength))

    return op


def _rotate(image: Image.Image, strength: float, resample: Resampling) -> Image.Image:
    return image.rotate(30 * strength, resample, fillcolor=FILL)


def _affine(image: Image.Image, matrix: tuple[float, ...], resample: Resampling) -> Image.Image:
    """Output pixel (x, y) is the input's at (a x + b y + c, d x + e y + f)."""
    return image.transform(image.size, Transform.AFFINE, matrix, resample, fillcolor=FILL)


def _shear_x(image: Image.Image, strength: float, resample: Resampling) -> Image.Image:
    return _affine(image, (1, 0.3 * strength, 0, 0, 1, 0), resample)


def _shear_y(image: Image.Image, strength: float, resample: Resampling) -> Image.Image:
    return _affine(image, (1, 0, 0, 0.3 * strength, 1, 0), resample)


def _translate_x(image: Image.Image, strength: float, resample: Resampling) -> Image.Image:
    return _affine(image, (1, 0, 0.45 * strength * image.width, 0, 1, 0), resample)


def _translate_y(image: Image.Image, strength: float, resample: Resampling) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, 0.45 * strength * image.height), resample)


OPS: dict[str, Op] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": _invert,
    "Rotate": _rotate,
    "PosterizeIncreasing": _posterize,
    "SolarizeIncreasing": _solarize,
    "SolarizeAdd": _solarize_add,
    "ColorIncreasing": _enhancement(ImageEnhance.Color),
    "ContrastIncreasing": _enhancement(ImageEnhance.Contrast),
    "BrightnessIncreasing": _enhancement(ImageEnhance.Brightness),
    "SharpnessIncreasing": _enhancement(ImageEnhance.Sharpness),
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateXRel": _translate_x,
    "TranslateYRel": _translate_y,
}
