"""Checks shared by the public functions: they run before anything is launched and name what was expected."""

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LABELS = (torch.int32, torch.int64, torch.uint8)


def shown(x: Tensor) -> str:
    """Shape and dtype of a tensor, for messages."""
    return f"{list(x.shape)} {str(x.dtype).removeprefix('torch.')}"


def check_float(name: str, x: Tensor) -> None:
    """Raise TypeError unless ``x`` is a tensor of a supported floating dtype."""
    if not isinstance(x, Tensor):
        raise TypeError(f"expected {name} to be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in FLOATS:
        raise TypeError(f"expected {name} in float32, float16, bfloat16 or float64, got {shown(x)}")


def check_labels(name: str, x: Tensor) -> None:
    """Raise TypeError unless ``x`` is a tensor of a supported label dtype."""
    if not isinstance(x, Tensor):
        raise TypeError(f"expected {name} to be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in LABELS:
        raise TypeError(f"expected {name} in int32, int64 or uint8, got {shown(x)}")


def check_index(name: str, x: Tensor) -> None:
    """Raise TypeError unless ``x`` is an int64 tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"expected {name} to be a torch.Tensor, got {type(x).__name__}")
    if x.dtype != torch.int64:
        raise TypeError(f"expected {name} in int64, got {shown(x)}")


def check_count(name: str, value: int, least: int = 1) -> None:
    """Raise unless ``value`` is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        raise TypeError(f"expected {name} to be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"expected {name} >= {least}, got {value}")


def check_same_device(**tensors: Tensor | None) -> None:
    """Raise ValueError unless all tensors that are given live on one device."""
    devices = {name: x.device for name, x in tensors.items() if x is not None}
    if len(set(devices.values())) > 1:
        raise ValueError(
            "expected all tensors on one device, got " + ", ".join(f"{n} on {d}" for n, d in devices.items())
        )
