"""8-bit sRGB to CIE Lab (D65), equal to OpenCV's ``COLOR_RGB2LAB`` for all 2^24 colours.

    linear = gamma[rgb],  (x, y, z) = M linear,  (fx, fy, fz) = cube_root[(x, y, z)]
    L = 255/100 (116 fy - 16),  a = 500 (fx - fy) + 128,  b = 200 (fy - fz) + 128

in fixed point: tables and integers alone, hence the same on every device.

Source: CIE 15, with the fixed-point tables of OpenCV's colour conversion.
"""

import functools

import torch
from torch import Tensor

from cast_kernels import _ext
from cast_kernels._cuda import is_built_for
from cast_kernels._rgb import channel_dim
from cast_kernels._vmap import folded

MATRIX = ((1777, 1541, 778), (871, 2929, 296), (73, 448, 3575))  # linear RGB -> XYZ / white, scale 2^12


# 1. Public function
def rgb_to_lab(image: Tensor) -> Tensor:
    """Convert 8-bit RGB images to 8-bit Lab: L in 0..255 for 0..100, a and b shifted by 128.

    Args:
        image: RGB [B, H, W, 3] or [B, 3, H, W], uint8, any strides. Where both readings fit ([B, 3, W, 3]) the
            channels are last.

    Returns:
        Lab in the shape of ``image``, uint8, contiguous.

    Raises:
        TypeError: ``image`` is not a uint8 tensor.
        ValueError: ``image`` has another shape; a single image needs a batch dimension.

    Deterministic, the same on CPU and GPU. Not differentiable.
    """
    channel_dim(image)
    return torch.ops.cast_kernels.rgb_to_lab(image)


# 2. Reference: the definition, and the path of devices without native code
def rgb_to_lab_ref(image: Tensor) -> Tensor:
    """Return Lab like ``image``, [B, H, W, 3] or [B, 3, H, W] uint8."""
    dim = channel_dim(image)
    gamma, cube_root = (table.to(image.device) for table in _tables())
    red, green, blue = gamma[image.int()].unbind(dim)
    fx, fy, fz = (cube_root[(r * red + g * green + b * blue + 2048) >> 12] for r, g, b in MATRIX)
    half, centre = 1 << 14, 128 << 15
    lightness = ((296 * fy - 1336934 + half) >> 15).clamp(0, 255)
    a = (500 * (fx - fy) + centre + half) >> 15
    b = (200 * (fy - fz) + centre + half) >> 15
    return torch.stack([lightness, a, b], dim).to(torch.uint8)


@functools.cache
def _tables() -> tuple[Tensor, Tensor]:
    """Gamma [256], scale 2040, and cube root [3072] of i / 2040, scale 32768; int32."""
    v = torch.arange(256, dtype=torch.float64) / 255
    linear = torch.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    t = torch.arange(3072, dtype=torch.float64) / 2040
    f = torch.where(t < 216 / 24389, t * 841 / 108 + 16 / 116, t ** (1 / 3))
    gamma, cube_root = (2040 * linear).round().int(), (32768 * f).round().int()
    cube_root[49], cube_root[628] = 9454, 22126  # the two entries in which OpenCV's table is not the rounded formula
    return gamma, cube_root


# 3. Native code
def _layout(image: Tensor) -> dict[str, int]:
    """How csrc walks a contiguous image, see ColourLayout in csrc/rgb_to_lab.h."""
    pixels = image.numel() // 3
    if channel_dim(image) == 3:
        return {"groups": 1, "pixels": pixels, "group_stride": 3 * pixels, "pixel_stride": 3, "channel_stride": 1}
    plane = image.shape[2] * image.shape[3]
    groups = image.shape[0]
    return {"groups": groups, "pixels": plane, "group_stride": 3 * plane, "pixel_stride": 1, "channel_stride": plane}


def _rgb_to_lab_cpu(image: Tensor) -> Tensor:
    image = image.contiguous()
    lab = torch.empty_like(image)
    _ext.load().rgb_to_lab(image.data_ptr(), lab.data_ptr(), **_layout(image))
    return lab


def _rgb_to_lab_cuda(image: Tensor) -> Tensor:
    if not is_built_for(image.device):
        return rgb_to_lab_ref(image)
    image = image.contiguous()
    lab = torch.empty_like(image)
    with torch.cuda.device(image.device):
        stream = torch.cuda.current_stream().cuda_stream
        _ext.load().rgb_to_lab_cuda(image.data_ptr(), lab.data_ptr(), **_layout(image), stream=stream)
    return lab


# 4. Registration
_op = torch.library.custom_op("cast_kernels::rgb_to_lab", rgb_to_lab_ref, mutates_args=())
_op.register_kernel("cpu")(_rgb_to_lab_cpu)
_op.register_kernel("cuda")(_rgb_to_lab_cuda)
_op.register_vmap(folded(_op))


@_op.register_fake
def _(image):
    return image.new_empty(image.shape)
