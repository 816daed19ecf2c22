"""SEEDS superpixels: pixels move between neighbouring superpixels until their colour histograms are pure.

A superpixel starts as a cell of a regular grid. First blocks of pixels, then single pixels on its border change to a
neighbour wherever their colours are more frequent there.

Source: Van den Bergh, Boix, Roig, de Capitani, Van Gool, "SEEDS: Superpixels Extracted via Energy-Driven Sampling",
ECCV 2012; the order of decisions and the prior as in OpenCV contrib's ``createSuperpixelSEEDS``.
"""

import math

import torch
from torch import Tensor

from cast_kernels import _ext
from cast_kernels._checks import check_count
from cast_kernels._rgb import channel_dim

ORDERS = ("sequential",)
COLORS = ("lab", "rgb")
MAX_BINS = 40  # 40^3 joint bins fit 16 bits
MAX_PRIOR = 5
MAX_PIXELS = 2**30  # 32-bit offsets
MAX_LABELS = 65535  # labels are 16 bits inside, the last of them a mark
MIN_EDGE = 6  # pixels, of a superpixel at the start


# 1. Public functions
def seeds(
    image: Tensor,
    num_superpixels: int,
    *,
    order: str = "sequential",
    bins: int = 15,
    prior: int = 2,
    iterations: int = 20,
    num_levels: int = 1,
    double_step: bool = False,
    color: str = "lab",
) -> Tensor:
    """Segment 8-bit images into SEEDS superpixels, label for label those of OpenCV.

    The labels equal ``cv2.ximgproc.createSuperpixelSEEDS(W, H, 3, num_superpixels, num_levels, prior, bins,
    double_step)`` after one ``iterate(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), iterations)``. They are as it leaves
    them: a superpixel is not always connected.

    Args:
        image: RGB [B, H, W, 3] or [B, 3, H, W], uint8, any strides. Where both readings fit ([B, 3, W, 3]) the
            channels are last.
        num_superpixels: Wanted number per image; a wish, requests below 10 count as 10. ``seeds_count`` says what
            it becomes. A superpixel must start as at least 6 x 6 pixels, so the smallest square image is 13 x 13:
            of smaller ones OpenCV leaves some without a pixel, or crashes.
        order: "sequential", one decision after the other in raster order.
        bins: Histogram bins per channel, 1 to 40; histograms are joint over the channels.
        prior: Strength of the preference for smooth borders, 0 (none) to 5.
        iterations: Sweeps over single pixels, forward and backward in turn; 0 leaves whole blocks.
        num_levels: Levels of the grid above the pixels, at least 1. 1 means 2, and more than fit become fewer.
        double_step: Sweep twice over each level of blocks, first moving only what gains clearly.
        color: "lab" converts the image with ``rgb_to_lab`` first; "rgb" takes the three channels as they are.

    Returns:
        Labels [B, H, W] in [0, N), int32, contiguous, on the device of ``image``; N = ``seeds_count(H, W, ...)``.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape or a value is not supported, or the image cannot be divided into that many superpixels
            (where OpenCV would hang, crash or lose labels); the message names the limit.

    Runs on the CPU: the images of a batch are shared out over ``torch.get_num_threads()`` threads, and an image on
    another device is copied to the host and its labels back, which waits for the device.
    Deterministic, whatever the number of threads. Not differentiable.
    """
    dim = channel_dim(image)
    check_count("num_superpixels", num_superpixels)
    if order not in ORDERS:
        raise ValueError(f"expected order to be one of {ORDERS}, got {order!r}")
    if color not in COLORS:
        raise ValueError(f"expected color to be one of {COLORS}, got {color!r}")
    check_count("bins", bins)
    check_count("prior", prior, 0)
    check_count("iterations", iterations, 0)
    check_count("num_levels", num_levels)
    if bins > MAX_BINS:
        raise ValueError(f"expected bins in 1..{MAX_BINS}, got {bins}")
    if prior > MAX_PRIOR:
        raise ValueError(f"expected prior in 0..{MAX_PRIOR}, got {prior}")
    if not isinstance(double_step, bool):
        raise TypeError(f"expected double_step to be a bool, got {type(double_step).__name__}")
    pixels = image if dim == 3 else image.permute(0, 2, 3, 1)
    return torch.ops.cast_kernels.seeds(
        pixels, num_superpixels, bins, prior, iterations, num_levels, double_step, color == "lab"
    )


def seeds_count(height: int, width: int, num_superpixels: int, num_levels: int = 1) -> int:
    """Return the exact number of labels N that ``seeds`` gives images of this size.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        num_superpixels: The request. N seldom equals it: 224 x 224 gives 196 for 196, 784 for 1024.
        num_levels: As for ``seeds``.

    Raises:
        TypeError: An argument is not an int.
        ValueError: ``seeds`` refuses the size and request, for the same reason.

    Plain arithmetic on ints, the same as in csrc/seeds_grid.cpp; under ``torch.compile`` the size becomes a constant.
    """
    check_count("height", height)
    check_count("width", width)
    check_count("num_superpixels", num_superpixels)
    check_count("num_levels", num_levels)
    request = max(num_superpixels, 10)
    h, w = _float32(height), _float32(width)
    rows = int(_float32(math.sqrt(_float32(_float32(_float32(request) * h) / w))))
    columns = rows * width // height
    depth = max(num_levels, 2)
    # A grid without rows or columns is too coarse for so narrow an image, a depth below 2 too fine.
    while height * width <= MAX_PIXELS and rows > 0 and columns > 0 and depth >= 2:
        block_width = _float32(_float32(w / columns) / 2 ** (depth - 1))
        block_height = _float32(_float32(h / rows) / 2 ** (depth - 1))
        if block_width >= 1 and block_height >= 1:
            blocks_per_side = 2 ** (depth - 1)
            labels_high = height // math.ceil(block_height) // blocks_per_side
            labels_wide = width // math.ceil(block_width) // blocks_per_side
            edge = math.ceil(min(block_width, block_height)) * blocks_per_side
            if edge >= MIN_EDGE and 0 < labels_high * labels_wide <= MAX_LABELS:
                return labels_high * labels_wide
            break
        depth -= 1
    raise ValueError(
        f"SEEDS cannot divide an image of {height} x {width} pixels into {request} superpixels: each must start as at "
        f"least {MIN_EDGE} x {MIN_EDGE} pixels, the grid needs a row and a column, and at most {MAX_LABELS} labels are "
        "supported"
    )


def _float32(x: float) -> float:
    """Round to the nearest float32; exact, as no double rounding occurs for +, *, / and sqrt."""
    mantissa, exponent = math.frexp(x)
    return math.ldexp(round(mantissa * 2**24), exponent - 24)


# 2. Native code; csrc/seeds_sequential.cpp is the definition
def _seeds(
    image: Tensor,
    num_superpixels: int,
    bins: int,
    prior: int,
    iterations: int,
    num_levels: int,
    double_step: bool,
    lab: bool,
) -> Tensor:
    host = image.cpu()
    batch, height, width, _ = host.shape
    labels = torch.empty(batch, height, width, dtype=torch.int32)
    image_stride, row_stride, column_stride, channel_stride = host.stride()
    _ext.load().seeds_sequential(
        host.data_ptr(),
        labels.data_ptr(),
        batch=batch,
        height=height,
        width=width,
        image_stride=image_stride,
        row_stride=row_stride,
        column_stride=column_stride,
        channel_stride=channel_stride,
        num_superpixels=num_superpixels,
        bins=bins,
        prior=prior,
        iterations=iterations,
        num_levels=num_levels,
        double_step=double_step,
        lab=lab,
        threads=torch.get_num_threads(),
    )
    return labels.to(image.device)


# 3. Registration
_op = torch.library.custom_op("cast_kernels::seeds", _seeds, mutates_args=())


@_op.register_fake
def _(image, num_superpixels, bins, prior, iterations, num_levels, double_step, lab):
    return image.new_empty(image.shape[:3], dtype=torch.int32)
