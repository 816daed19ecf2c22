"""Triton kernels of ``superpixel_summary``, and their launcher.

One program takes a stretch of an image's pixels in raster order. Pixels of one segment that follow each other in a row
are a run; its sums come from prefix sums over the stretch, and its last pixel adds them to the segment by atomics on
integers, whose result does not depend on their order. Corners are stored as maxima, so that zeros start everything.
Labels, image and mask are touched once; runs of superpixels are some 10 pixels long, so atomics are few. A second
kernel turns the sums into boxes and means.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cast_kernels.kernels._aot import Case
from cast_kernels.kernels._tiles import OLDEST, architecture, tiles
from cast_kernels.kernels.segment_mean_rows import make_case

FIELDS = 8  # per segment: area, height - y0, width - x0, y1, x1, red, green, blue
FUSION = False  # there is no product to fuse


@triton.jit
def load_label(labels_ptr, y, x, inside, S, stride_y, stride_x):
    """Labels at (y, x) as int32; S where out of range or not inside."""
    offset = y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x
    label = tl.load(labels_ptr + offset, mask=inside, other=0).to(tl.int64)
    return tl.where(inside & (label >= 0) & (label < S), label, S).to(tl.int32)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def _sum_kernel(
    labels_ptr,  # [B, H, W] integer, any strides
    image_ptr,  # [B, H, W, 3] uint8, any strides, or None
    sums_ptr,  # [B, S, FIELDS] int64, zeros before
    boundary_ptr,  # [B, H, W] bool
    H,
    W,
    S,
    label_stride_b,
    label_stride_y,
    label_stride_x,
    image_stride_b,
    image_stride_y,
    image_stride_x,
    image_stride_c,
    FIELDS: tl.constexpr,
    THICK: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    P = H * W
    stretches = tl.cdiv(P, BLOCK_P)
    b = (tl.program_id(0) // stretches).to(tl.int64)
    i = tl.arange(0, BLOCK_P)
    p = tl.program_id(0) % stretches * BLOCK_P + i
    y = p // W
    x = p % W
    inside = p < P
    labels_ptr += b * label_stride_b
    label = load_label(labels_ptr, y, x, inside, S, label_stride_y, label_stride_x)
    has_left = inside & (x > 0)
    has_right = inside & (x < W - 1)
    has_lower = inside & (y < H - 1)
    left = load_label(labels_ptr, y, x - 1, has_left, S, label_stride_y, label_stride_x)
    right = load_label(labels_ptr, y, x + 1, has_right, S, label_stride_y, label_stride_x)
    lower = load_label(labels_ptr, y + 1, x, has_lower, S, label_stride_y, label_stride_x)
    edge = (has_right & (right != label)) | (has_lower & (lower != label))
    if THICK:
        has_upper = inside & (y > 0)
        upper = load_label(labels_ptr, y - 1, x, has_upper, S, label_stride_y, label_stride_x)
        edge |= (has_left & (left != label)) | (has_upper & (upper != label))
    tl.store(boundary_ptr + b * P + p, edge, mask=inside)

    first = tl.associative_scan(tl.where(left != label, i, 0), 0, _larger)  # where the pixel's run starts
    ends = ((i == BLOCK_P - 1) | (right != label)) & (label < S)  # outside the row there is S: runs end where rows do
    length = i - first + 1
    sums_ptr += (b * S + label) * FIELDS
    tl.atomic_add(sums_ptr, length.to(tl.int64), mask=ends, sem="relaxed")
    tl.atomic_max(sums_ptr + 1, (H - y).to(tl.int64), mask=ends, sem="relaxed")
    tl.atomic_max(sums_ptr + 2, (W - 1 - x + length).to(tl.int64), mask=ends, sem="relaxed")
    tl.atomic_max(sums_ptr + 3, (y + 1).to(tl.int64), mask=ends, sem="relaxed")
    tl.atomic_max(sums_ptr + 4, (x + 1).to(tl.int64), mask=ends, sem="relaxed")
    if image_ptr is not None:
        image_ptr += b * image_stride_b + y.to(tl.int64) * image_stride_y + x.to(tl.int64) * image_stride_x
        for c in tl.static_range(3):
            value = tl.load(image_ptr + c * image_stride_c, mask=inside, other=0).to(tl.int32)
            upto = tl.cumsum(value, 0)
            run = upto - tl.gather(upto - value, first, 0)
            tl.atomic_add(sums_ptr + 5 + c, run.to(tl.int64), mask=ends, sem="relaxed")


@triton.jit(do_not_specialize=["count"])  # it follows the batch: no compilation for each
def _finish_kernel(
    sums_ptr,  # [count, FIELDS] int64
    area_ptr,  # [count] int64
    box_ptr,  # [count, 4] int64
    color_ptr,  # [count, 3] float32, or None
    count,  # B S
    H,
    W,
    FIELDS: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    s = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    mask = s < count
    sums_ptr += s * FIELDS
    area = tl.load(sums_ptr, mask=mask, other=0)
    tl.store(area_ptr + s, area, mask=mask)
    some = area > 0
    tl.store(box_ptr + s * 4, tl.where(some, H - tl.load(sums_ptr + 1, mask=mask, other=0), 0), mask=mask)
    tl.store(box_ptr + s * 4 + 1, tl.where(some, W - tl.load(sums_ptr + 2, mask=mask, other=0), 0), mask=mask)
    tl.store(box_ptr + s * 4 + 2, tl.load(sums_ptr + 3, mask=mask, other=0), mask=mask)
    tl.store(box_ptr + s * 4 + 3, tl.load(sums_ptr + 4, mask=mask, other=0), mask=mask)
    if color_ptr is not None:
        pixels = tl.maximum(area, 1).to(tl.float64)
        for c in tl.static_range(3):
            total = tl.load(sums_ptr + 5 + c, mask=mask, other=0).to(tl.float64)
            tl.store(color_ptr + s * 3 + c, (total / pixels).to(tl.float32), mask=mask)


def forward(
    labels: Tensor, num_segments: int, image: Tensor | None, thick: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch: area [B, S], box [B, S, 4], colour [B, S, 3] ([B, S, 0] without image), boundary [B, H, W]."""
    (B, H, W), S = labels.shape, num_segments
    sums = labels.new_zeros(B, S, FIELDS, dtype=torch.int64)
    area, box = sums.new_empty(B, S), sums.new_empty(B, S, 4)
    color = sums.new_empty(B, S, 0 if image is None else 3, dtype=torch.float32)
    boundary = labels.new_empty(B, H, W, dtype=torch.bool)
    if labels.numel():
        constants = _sum_constants(architecture(labels.device), H * W, thick)
        strides = (0, 0, 0, 0) if image is None else image.stride()
        _sum_kernel[(B * triton.cdiv(H * W, constants["BLOCK_P"]),)](
            *(labels, image, sums, boundary, H, W, S, *labels.stride(), *strides), **constants
        )
    if B:
        constants = _finish_constants()
        _finish_kernel[(triton.cdiv(B * S, constants["BLOCK_S"]),)](
            *(sums, area, box, None if image is None else color, B * S, H, W), **constants
        )
    return area, box, color, boundary


def _sum_constants(arch: int, P: int, thick: bool) -> dict:
    chosen = tiles("superpixel_summary", arch, {"BLOCK_P": 1024, "num_warps": 8}, P=P)
    return chosen | {"FIELDS": FIELDS, "THICK": thick, "enable_fp_fusion": FUSION}


def _finish_constants() -> dict:
    return {"FIELDS": FIELDS, "BLOCK_S": 128, "num_warps": 4, "enable_fp_fusion": FUSION}


def aot_cases(arch: int = OLDEST) -> list[Case]:
    """224 x 224 pixels: labels of each dtype, both boundaries, with and without an image in either layout."""
    return [
        _case(arch, "i32"),
        _case(arch, "i32", image="channels last", thick=True),
        _case(arch, "i64", image="channels first"),
        _case(arch, "u8", image="channels last"),
        *(
            make_case(_finish_kernel, _types("i32", image), {}, _finish_constants(), "with image" if image else "")
            for image in (True, False)
        ),
    ]


def _case(arch: int, labels: str, image: str | None = None, thick: bool = False) -> Case:
    known = {"label_stride_x": 1}
    if image:
        known |= {"image_stride_x": 3, "image_stride_c": 1} if image == "channels last" else {"image_stride_x": 1}
    constants = _sum_constants(arch, 224 * 224, thick)
    name = f"labels {labels}, image {image}, {'thick' if thick else 'thin'}"
    return make_case(_sum_kernel, _types(labels, image is not None), known, constants, name)


def _types(labels: str, image: bool) -> dict[str, str | None]:
    types = {"labels": labels, "image": "u8" if image else None, "sums": "i64", "boundary": "i1"}
    return types | {"area": "i64", "box": "i64", "color": "fp32" if image else None}
