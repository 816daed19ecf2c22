"""SEEDS superpixels: pixels move between neighbouring superpixels until their colour histograms are pure.

A superpixel starts as a cell of a regular grid. First blocks of pixels, then single pixels on its border change to a
neighbour wherever their colours are more frequent there. Two orders of these decisions:

* ``"parallel"``, ours: phases in which every fourth site decides at once, the same labels on any device and always
  connected (docs/superpixels.md; csrc/seeds_phases.h is the definition);
* ``"sequential"``, that of OpenCV contrib's ``createSuperpixelSEEDS``, label for label.

Source: Van den Bergh, Boix, Roig, de Capitani, Van Gool, "SEEDS: Superpixels Extracted via Energy-Driven Sampling",
ECCV 2012; the prior as in OpenCV.
"""

import math

import torch
from torch import Tensor

from cast_kernels import _ext
from cast_kernels._checks import check_count
from cast_kernels._cuda import is_built_for
from cast_kernels._rgb import channel_dim
from cast_kernels._vmap import folded

ORDERS = ("parallel", "sequential")
QUALITIES = ("best", "fast")
COLORS = ("lab", "rgb")
MAX_BINS = 40  # 40^3 joint bins fit 16 bits
MAX_PRIOR = 5
MAX_PIXELS = 2**30  # 32-bit offsets
MAX_LABELS = 65535  # labels are 16 bits inside, the last of them a mark
MIN_EDGE = 6  # pixels, of a superpixel at the start
MAX_CUDA_SIDE = 8191  # csrc/team.h
MAX_CUDA_PIXELS = 2**24
CUDA_DRIVERS = ("automatic", "block", "cluster", "grid")  # csrc/seeds_launch.h


# 1. Public functions
def seeds(
    image: Tensor,
    num_superpixels: int,
    *,
    order: str = "parallel",
    quality: str | None = None,
    bins: int = 15,
    prior: int | None = None,
    iterations: int | None = None,
    num_levels: int | None = None,
    double_step: bool | None = None,
    color: str = "lab",
    stride: int = 1,
) -> Tensor:
    """Segment 8-bit images into SEEDS superpixels.

    A pixel of colour bin ``c`` at the border of superpixel ``a`` moves to its neighbour ``b`` where ``h_b[c] / T_b^2``
    (the share of its colour there, over the size once more) times a prior of smooth borders is greater than
    ``h_a[c] / T_a^2``; a block of pixels where its histogram intersects that of ``b`` more.

    Args:
        image: RGB [B, H, W, 3] or [B, 3, H, W], uint8, any strides. Where both readings fit ([B, 3, W, 3]) the
            channels are last.
        num_superpixels: Wanted number per image; a wish, requests below 10 count as 10. ``seeds_count`` says what
            it becomes. A superpixel must start as at least 6 x 6 pixels, so the smallest square image is 13 x 13:
            of smaller ones OpenCV leaves some without a pixel, or crashes.
        order: "parallel", in phases of independent decisions: every superpixel is one 4-connected piece. "sequential",
            one decision after the other in raster order: the labels of ``cv2.ximgproc.createSuperpixelSEEDS(W, H, 3,
            num_superpixels, num_levels, prior, bins, double_step)`` after one ``iterate(cv2.cvtColor(image,
            cv2.COLOR_RGB2LAB), iterations)``, as it leaves them: a superpixel is not always connected.
        quality: Of order "parallel": "best" (default), or "fast", which takes about half the time and gives up part of
            the lead over OpenCV; docs/superpixels.md has the figures.
        bins: Histogram bins per channel, 1 to 40; histograms are joint over the channels.
        prior: Of order "sequential": strength of the preference for smooth borders, 0 (none) to 5; default 2.
        iterations: Of order "sequential": sweeps over single pixels, forward and backward in turn; 0 leaves whole
            blocks; default 20.
        num_levels: Of order "sequential": levels of the grid above the pixels, at least 1 (default). 1 means 2, and
            more than fit become fewer.
        double_step: Of order "sequential": sweep twice over each level of blocks, first moving only what gains
            clearly; default False.
        color: "lab" converts the image with ``rgb_to_lab`` first; "rgb" takes the three channels as they are.
        stride: Return only the labels of the top left pixels of all ``stride`` x ``stride`` squares: those of the
            full map ``[:, ::stride, ::stride]``, which then is never written.

    Returns:
        Labels [B, ceil(H / stride), ceil(W / stride)] in [0, N), int32, contiguous, on the device of ``image``;
        N = ``seeds_count(H, W, num_superpixels, num_levels)``. Of order "parallel" all N labels occur in the full map.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape or a value is not supported, an option does not belong to the order, or the image cannot be
            divided into that many superpixels (where OpenCV would hang, crash or lose labels); the message names the
            limit.

    On the CPU the images of a batch are shared out over ``torch.get_num_threads()`` threads, of order "parallel" a
    large image, too. On CUDA everything runs on the current stream without waiting for it and can be captured in a
    graph. An image on another device, on a GPU before sm_80 or one that the extension was not built for (as without
    nvcc), and one of more than 8,191 pixels a side or 2^24 in all is copied to the host and its labels back, which
    waits for the device.
    Deterministic, the same labels on every device, whatever the number of threads. Not differentiable.
    """
    dim = channel_dim(image)
    check_count("num_superpixels", num_superpixels)
    if order not in ORDERS:
        raise ValueError(f"expected order to be one of {ORDERS}, got {order!r}")
    if color not in COLORS:
        raise ValueError(f"expected color to be one of {COLORS}, got {color!r}")
    check_count("bins", bins)
    if bins > MAX_BINS:
        raise ValueError(f"expected bins in 1..{MAX_BINS}, got {bins}")
    check_count("stride", stride)
    pixels = image if dim == 3 else image.permute(0, 2, 3, 1)
    sequential = {"prior": prior, "iterations": iterations, "num_levels": num_levels, "double_step": double_step}
    if order == "parallel":
        _refuse_foreign(order, sequential)
        quality = "best" if quality is None else quality
        if quality not in QUALITIES:
            raise ValueError(f"expected quality to be one of {QUALITIES}, got {quality!r}")
        return torch.ops.cast_kernels.seeds_parallel(pixels, num_superpixels, quality, bins, color == "lab", stride)
    _refuse_foreign(order, {"quality": quality})
    return torch.ops.cast_kernels.seeds_sequential(
        pixels, num_superpixels, bins, *_sequential_options(**sequential), color == "lab", stride
    )


def _refuse_foreign(order: str, options: dict[str, object]) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(f'{name}={value!r} is not an option of order="{order}"')


def _sequential_options(
    prior: int | None, iterations: int | None, num_levels: int | None, double_step: bool | None
) -> tuple[int, int, int, bool]:
    """The options as OpenCV has them by default, checked."""
    prior = 2 if prior is None else prior
    iterations = 20 if iterations is None else iterations
    num_levels = 1 if num_levels is None else num_levels
    double_step = False if double_step is None else double_step
    check_count("prior", prior, 0)
    check_count("iterations", iterations, 0)
    check_count("num_levels", num_levels)
    if prior > MAX_PRIOR:
        raise ValueError(f"expected prior in 0..{MAX_PRIOR}, got {prior}")
    if not isinstance(double_step, bool):
        raise TypeError(f"expected double_step to be a bool, got {type(double_step).__name__}")
    return prior, iterations, num_levels, double_step


def seeds_count(height: int, width: int, num_superpixels: int, num_levels: int = 1) -> int:
    """Return the exact number of labels N that ``seeds`` gives images of this size.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        num_superpixels: The request. N seldom equals it: 224 x 224 gives 196 for 196, 784 for 1024.
        num_levels: As for ``seeds`` in order "sequential"; the other has 1.

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


# 2. Native code; csrc/seeds_phases.h and csrc/seeds_sequential.cpp are the definitions
def _seeds_parallel(image: Tensor, num_superpixels: int, quality: str, bins: int, lab: bool, stride: int) -> Tensor:
    host, labels = image.cpu(), _empty_labels(image, stride, "cpu")
    native = _ext.load()
    native.seeds_parallel(
        host.data_ptr(),
        labels.data_ptr(),
        **_layout(host),
        num_superpixels=num_superpixels,
        steps=native.seeds_steps(quality),
        bins=bins,
        lab=lab,
        stride=stride,
        threads=torch.get_num_threads(),
    )
    return labels.to(image.device)


def _seeds_sequential(
    image: Tensor,
    num_superpixels: int,
    bins: int,
    prior: int,
    iterations: int,
    num_levels: int,
    double_step: bool,
    lab: bool,
    stride: int,
) -> Tensor:
    host, labels = image.cpu(), _empty_labels(image, stride, "cpu")
    _ext.load().seeds_sequential(
        host.data_ptr(),
        labels.data_ptr(),
        **_layout(host),
        num_superpixels=num_superpixels,
        bins=bins,
        prior=prior,
        iterations=iterations,
        num_levels=num_levels,
        double_step=double_step,
        lab=lab,
        stride=stride,
        threads=torch.get_num_threads(),
    )
    return labels.to(image.device)


def _runs_on_gpu(image: Tensor) -> bool:
    """Is there code for this GPU in this build, and is the image within its limits?"""
    _, height, width, _ = image.shape
    fits = max(height, width) <= MAX_CUDA_SIDE and height * width <= MAX_CUDA_PIXELS
    return fits and is_built_for(image.device)


def _seeds_parallel_cuda(
    image: Tensor, num_superpixels: int, quality: str, bins: int, lab: bool, stride: int, driver: str = "automatic"
) -> Tensor:
    if not _runs_on_gpu(image):
        return _seeds_parallel(image, num_superpixels, quality, bins, lab, stride)
    request = {
        "num_superpixels": num_superpixels,
        "steps": _ext.load().seeds_steps(quality),
        "bins": bins,
        "lab": lab,
        "driver": CUDA_DRIVERS.index(driver),
    }
    return _run_cuda("seeds_parallel", image, stride, request)


def _seeds_sequential_cuda(
    image: Tensor,
    num_superpixels: int,
    bins: int,
    prior: int,
    iterations: int,
    num_levels: int,
    double_step: bool,
    lab: bool,
    stride: int,
) -> Tensor:
    options = (bins, prior, iterations, num_levels, double_step, lab, stride)
    if not _runs_on_gpu(image):
        return _seeds_sequential(image, num_superpixels, *options)
    request = {"num_superpixels": num_superpixels, "bins": bins, "num_levels": num_levels, "lab": lab}
    return _run_cuda(
        "seeds_sequential", image, stride, request, prior=prior, iterations=iterations, double_step=double_step
    )


def _run_cuda(name: str, image: Tensor, stride: int, request: dict[str, object], **options: object) -> Tensor:
    """Run an order on the image's stream; the size of its workspace follows from the request alone."""
    native, layout = _ext.load(), _layout(image)
    with torch.cuda.device(image.device):
        sizes = {key: layout[key] for key in ("batch", "height", "width")}
        size = getattr(native, f"{name}_cuda_bytes")(**sizes, **request)
        labels = _empty_labels(image, stride, image.device)
        workspace = torch.empty(size, dtype=torch.uint8, device=image.device)
        getattr(native, f"{name}_cuda")(
            image.data_ptr(),
            labels.data_ptr(),
            **layout,
            **request,
            **options,
            stride=stride,
            workspace=workspace.data_ptr(),
            workspace_size=size,
            stream=torch.cuda.current_stream().cuda_stream,
        )
    return labels


def _layout(image: Tensor) -> dict[str, int]:
    """Sizes and strides of [B, H, W, 3], as csrc names them."""
    names = ("batch", "height", "width")
    strides = ("image_stride", "row_stride", "column_stride", "channel_stride")
    return dict(zip(names, image.shape[:3], strict=True)) | dict(zip(strides, image.stride(), strict=True))


def _empty_labels(image: Tensor, stride: int, device: torch.device | str) -> Tensor:
    batch, height, width, _ = image.shape
    rows, columns = (height + stride - 1) // stride, (width + stride - 1) // stride
    return torch.empty(batch, rows, columns, dtype=torch.int32, device=device)


# 3. Registration. What is registered for a device replaces the copy to the host.
_parallel_op = torch.library.custom_op("cast_kernels::seeds_parallel", _seeds_parallel, mutates_args=())
_sequential_op = torch.library.custom_op("cast_kernels::seeds_sequential", _seeds_sequential, mutates_args=())
_parallel_op.register_kernel("cuda")(_seeds_parallel_cuda)
_sequential_op.register_kernel("cuda")(_seeds_sequential_cuda)


@_parallel_op.register_fake
def _(image, num_superpixels, quality, bins, lab, stride):
    return _empty_labels(image, stride, image.device)


@_sequential_op.register_fake
def _(image, num_superpixels, bins, prior, iterations, num_levels, double_step, lab, stride):
    return _empty_labels(image, stride, image.device)


_parallel_op.register_vmap(folded(_parallel_op))
_sequential_op.register_vmap(folded(_sequential_op))
