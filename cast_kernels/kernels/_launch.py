"""What launchers share."""

import torch
from torch import Tensor

TRITON = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}  # triton's words for dtypes


def rows(x: Tensor) -> tuple[Tensor, int, int]:
    """``x`` [B, N, C] with element [b, n, c] at (b * images + n) * row + c, then row and images; copied if need be.

    Row lengths are constants of a kernel, so that it sees how they are aligned.
    """
    if _is_rows(x):
        return x, x.stride(1), x.stride(0) // x.stride(1)
    # contiguous() leaves the strides of axes of length 1 as they are: take them from the shape
    return x.contiguous(), max(1, x.shape[2]), x.shape[1]


def row_length(x: Tensor) -> int:
    """The row that ``rows`` would give, without its copy."""
    return x.stride(1) if _is_rows(x) else max(1, x.shape[2])


def _is_rows(x: Tensor) -> bool:
    batch, row, column = x.stride()
    return column == 1 and row >= max(1, x.shape[2]) and batch % row == 0


def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 for the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def share_out(columns: int, block: int, wanted: int) -> tuple[int, int]:
    """Programs per image, ``wanted`` at most but one at least, and tiles of ``block`` columns for each."""
    count = max(1, -(-columns // block))
    steps = -(-count // max(1, min(count, wanted)))
    return -(-count // steps), steps


def interpreted_bfloat16(x: Tensor) -> bool:
    """Whether products must be in float32 because the interpreter's own in bfloat16 are wrong."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu"


def padded(size: int, least: int = 16) -> int:
    """Next power of two; at least 16, the least side of a product."""
    return max(least, 1 << max(0, size - 1).bit_length())


def split_options(chosen: dict) -> tuple[dict, dict]:
    """Apart: the kernel's constants, in capitals, and the options of its launch."""
    sizes = {name: value for name, value in chosen.items() if name.isupper()}
    return sizes, {name: value for name, value in chosen.items() if name not in sizes}
