"""From the pixels of a photo to the pixels that the network sees, and the part of the photo that they cover."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from cast.hierarchy import Hierarchy

STRIDE = 8  # of the convolutional stem: sides are multiples of it
MAX_SIZE = 8192  # of the short side: with the longest of long sides, just the 2**30 pixels that superpixels can index
MAX_ASPECT = 16  # beyond it the long side would cost more tokens than attention can take

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Geometry:
    """How one photo becomes the network's input.

    Attributes:
        original: Height and width of the photo.
        resized: Height and width after resizing.
        crop: Top, left, height, width of the network's input within the resized photo.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    crop: tuple[int, int, int, int]

    @property
    def network(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        return self.crop[2:]

    @property
    def region(self) -> tuple[int, int, int, int]:
        """Top, left, bottom, right of what the network sees, in whole pixels of the photo, at least one each way."""
        (top, bottom), (left, right) = (
            _whole_pixels(start * old / new, (start + length) * old / new, old)
            for start, length, old, new in zip(self.crop[:2], self.crop[2:], self.original, self.resized, strict=True)
        )
        return top, left, bottom, right

    def apply(self, image: np.ndarray, resample: str = "bilinear") -> np.ndarray:
        """The network's input: resized with Pillow's antialiasing filter, then cropped.

        Args:
            image: uint8 ``[H, W, 3]`` of the original size.
            resample: ``"bilinear"`` or ``"bicubic"``.

        Returns:
            uint8 ``[h, w, 3]`` of the network's size.
        """
        if image.shape[:2] != self.original:
            raise ValueError(f"expected an image of {self.original}, got {image.shape[:2]}")
        height, width = self.resized
        resized = Image.fromarray(image).resize((width, height), _RESAMPLING[resample])
        top, left, height, width = self.crop
        return np.asarray(resized)[top : top + height, left : left + width]

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The part of the photo that the network sees, at the photo's own resolution."""
        top, left, bottom, right = self.region
        return image[top:bottom, left:right]

    def restore(self, hierarchy: Hierarchy) -> Hierarchy:
        """The hierarchy on the photo's own pixels (those of ``region``), by nearest neighbour: every pixel labelled."""
        top, left, bottom, right = self.region
        return hierarchy.resize(bottom - top, right - left)


def fit_geometry(height: int, width: int, size: int = 224) -> Geometry:
    """The whole photo: the short side becomes ``size``, the aspect is kept, sides are rounded to multiples of 8.

    Args:
        height: Height of the photo.
        width: Width of the photo.
        size: Target of the short side in pixels, in [8, 8192].

    Raises:
        ValueError: ``size`` is not in [8, 8192], or one side is more than 16 times the other.
    """
    check_size(size)
    _check(height, width)
    scale = size / min(height, width)
    resized = tuple(STRIDE * max(1, int(side * scale / STRIDE + 0.5)) for side in (height, width))
    return Geometry((height, width), resized, (0, 0, *resized))


def crop_geometry(height: int, width: int, size: int = 224) -> Geometry:
    """The published evaluation transform: short side to ``size * 256 / 224``, then the central square of ``size``.

    Sides and offsets are rounded as torchvision's ``Resize`` and ``CenterCrop`` do.

    Raises:
        ValueError: ``size`` is not a multiple of 8 in [8, 8192], or one side is more than 16 times the other.
    """
    check_size(size, crop=True)
    _check(height, width)
    short = size * 256 // 224
    resized = (short * height // min(height, width), short * width // min(height, width))
    top, left = (round((side - size) / 2) for side in resized)
    return Geometry((height, width), resized, (top, left, size, size))


def _whole_pixels(start: float, end: float, side: int) -> tuple[int, int]:
    """The interval rounded; where nothing is left of it, the pixel in its middle."""
    first, last = round(start), round(end)
    if first < last:
        return first, last
    middle = min(int((start + end) / 2), side - 1)
    return middle, middle + 1


def check_size(size: int, crop: bool = False) -> None:
    """Raise ValueError unless ``size`` lies in [8, 8192] and, for a square crop, is a multiple of 8."""
    if not STRIDE <= size <= MAX_SIZE:
        raise ValueError(f"expected a size of {STRIDE} to {MAX_SIZE} pixels, got {size}")
    if crop and size % STRIDE:
        raise ValueError(f"a square crop needs a size that is a multiple of {STRIDE}, got {size}")


def _check(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"expected an image with at least one pixel, got {width} x {height}")
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(
            f"an image of {width} x {height} pixels is too narrow: one side may be at most {MAX_ASPECT} times the other"
        )
