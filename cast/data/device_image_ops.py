"""Pillow's operations on batches of images in float32, followed to the rounding: whole numbers in, whole numbers out.

* A crop is resized by two matrices per image, which hold the weights of Pillow's antialiasing filter.
* Blur is Pillow's: along each axis, three times a box of fractional width.
* Where float32 falls on the other side of a whole number than Pillow's arithmetic, a value differs by one, a hue by a
  step. That is rare.

Nothing here waits for the device, and shapes do not depend on values.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

BLUR_PASSES = 3
_REACH = 2  # pixels on either side of a box of the widest blur


def blur_boxes(sigma: Tensor) -> Tensor:
    """Return the box of each blur, float32 ``[N, 5]``: whole pixels, and a fraction of a pixel at either end.

    Its variance is a third of the blur's, which is three times as wide (Gwosdek et al., SSVM 2011, equations 7 to 14).

    Args:
        sigma: Standard deviation in pixels, float64 ``[N]`` in [0, 2]; 0 gives the box that changes nothing.
    """
    variance = sigma.square() / BLUR_PASSES
    whole = torch.floor((torch.sqrt(12 * variance + 1) - 1) / 2)  # pixels on either side of the middle
    end = (2 * whole + 1) * (variance - whole * (whole + 1) / 3) / (2 * ((whole + 1).square() - variance))
    distance = torch.arange(-_REACH, _REACH + 1).abs()
    box = (distance <= whole[:, None]) + end[:, None] * (distance == whole[:, None] + 1)
    return (box / box.sum(dim=1, keepdim=True)).float()


def resize_boxes(images: Tensor, boxes: Tensor, flips: Tensor, size: int, resample: str) -> Tensor:
    """Cut a box out of each image, resize it to a square, and mirror some.

    Args:
        images: uint8 ``[B, 3, R, R]``.
        boxes: float32 ``[B, 4]``: left, top, width, height in whole pixels.
        flips: bool ``[B]``: which are mirrored left to right.
        size: Side of the result in pixels.
        resample: ``"bilinear"`` or ``"bicubic"``.

    Returns:
        Whole numbers, float32 ``[B, 3, size, size]``.
    """
    left, top, width, height = boxes.unbind(dim=1)
    side = images.shape[-1]
    columns = _resize_weights(left, width, side, size, resample)
    columns = torch.where(flips[:, None, None], columns.flip(1), columns)
    rows = _resize_weights(top, height, side, size, resample)
    resized = _whole(images.float().flatten(1, 2) @ columns.mT + 0.5)
    return _whole(rows[:, None] @ resized.unflatten(1, (-1, side)) + 0.5)


def _resize_weights(start: Tensor, length: Tensor, side: int, size: int, resample: str) -> Tensor:
    """What each pixel along an axis weighs in each of the result: ``[B, size, side]``, nothing outside the box."""
    scale = (length / size)[:, None, None]
    center = start[:, None, None] + (torch.arange(size, device=start.device)[:, None] + 0.5) * scale
    pixel = torch.arange(side, device=start.device)
    stretch = scale.clamp(min=1.0)  # shrinking averages over as many pixels as become one
    weights = _filter((pixel + 0.5 - center) / stretch, resample)
    inside = (pixel >= start[:, None, None]) & (pixel < (start + length)[:, None, None])
    weights = torch.where(inside, weights, 0.0)
    return weights / weights.sum(dim=2, keepdim=True)


def _filter(x: Tensor, resample: str) -> Tensor:
    """The triangle, or the cubic with a = -1/2 (Keys, 1981), at a distance in pixels."""
    x = x.abs()
    if resample == "bilinear":
        return (1 - x).clamp(min=0.0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def color_jitter(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Change brightness (0), contrast (1), saturation (2) and hue (3) of each image, in its own order.

    Args:
        images: Whole numbers in [0, 255], float32 ``[B, 3, S, S]``.
        factors: float32 ``[B, 4]``: three factors, where 1 changes nothing, and a shift of the hue in bytes.
        order: int64 ``[B, 4]``: which comes first, second, ...

    Returns:
        As ``images``.
    """
    shift = per_image(factors[:, 3])
    for place in range(4):
        op = per_image(order[:, place])
        factor = per_image(factors.gather(1, order)[:, place])
        gray = to_gray(images)
        mean = torch.floor(gray.mean(dim=(1, 2, 3), keepdim=True) + 0.5)
        # the first three differ in what they blend the image with: black, its mean gray, its own gray
        base = torch.where(op == 0, 0.0, torch.where(op == 1, mean, gray))
        blended = _whole(base + factor * (images - base))
        images = torch.where(op == 3, shift_hue(images, shift), blended)
    return images


def to_gray(images: Tensor) -> Tensor:
    """Luma as Pillow computes it, float32 ``[B, 1, S, S]``: every step is exact in float32."""
    red, green, blue = images.split(1, dim=1)
    return torch.floor((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536)


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn hues through Pillow's HSV bytes.

    Args:
        images: Whole numbers in [0, 255], float32 ``[B, 3, S, S]``.
        shift: Whole numbers, float32 ``[B, 1, 1, 1]``; where it is 0, the image does not change.
    """
    red, green, blue = images.split(1, dim=1)
    value, least = images.amax(dim=1, keepdim=True), images.amin(dim=1, keepdim=True)
    chroma = value - least
    divisor = chroma.clamp(min=1.0)  # 0 where all three are equal: hue and saturation are 0 there
    sixth = torch.where(
        red == value,
        (green - blue) / divisor,
        torch.where(green == value, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    hue = torch.floor(torch.remainder(sixth / 6, 1.0) * 255)
    hue = torch.remainder(hue + shift, 256) * (6 / 255)
    saturation = torch.floor(chroma / value.clamp(min=1.0) * 255) / 255
    # a channel falls from the value by the distance of its own hue, up to the saturation (Smith, 1978)
    offsets = torch.arange(5, 0, -2, device=images.device)[:, None, None]
    position = torch.remainder(offsets + hue, 6.0)
    fall = torch.minimum(position, 4 - position).clamp(0.0, 1.0)
    shifted = torch.floor(value * (1 - saturation * fall) + 0.5)
    return torch.where(shift == 0, images, shifted)


def gaussian_blur(images: Tensor, boxes: Tensor) -> Tensor:
    """Blur each image by its box, border pixels repeated beyond the border.

    Args:
        images: Whole numbers in [0, 255], float32 ``[B, C, S, S]``.
        boxes: float32 ``[B, K]`` with K odd, from `blur_boxes`.

    Returns:
        As ``images``.
    """
    batch, channels = images.shape[:2]
    reach = boxes.shape[1] // 2
    weights = boxes.repeat_interleave(channels, dim=0)[:, None, None]
    for _axis in range(2):
        for _pass in range(BLUR_PASSES):
            padded = F.pad(images, (reach, reach, 0, 0), mode="replicate").flatten(0, 1)[None]
            blurred = F.conv2d(padded, weights, groups=batch * channels)
            images = _whole(blurred[0].unflatten(0, (batch, channels)) + 0.5)
        images = images.mT
    return images


def per_image(values: Tensor) -> Tensor:
    """Return ``[B]`` as ``[B, 1, 1, 1]``."""
    return values[:, None, None, None]


def _whole(values: Tensor) -> Tensor:
    return values.clamp(0.0, 255.0).floor()
