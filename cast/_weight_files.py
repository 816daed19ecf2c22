"""From a file of weights to tensors by name: only plain, finite, floating point tensors come through."""

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel and torch.compile put them before every name
_ENCODER = "base_encoder."  # of MoCo-v3 pre-training


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a ``.safetensors`` or PyTorch file, on the CPU, without the prefixes that wrappers leave.

    Raises:
        ValueError: The file cannot be read, or holds other things than finite floating point tensors by name. The
            counters ``num_batches_tracked`` of batch normalisation may be integers.
    """
    if not path.is_file():
        raise ValueError(f"no such file of weights: {path}")
    try:
        state = _state_dict(load_file(path) if path.suffix.lower() == ".safetensors" else _load_pickle(path))
        for name, value in state.items():
            _check_numbers(name, value)
    except pickle.UnpicklingError as error:  # PyTorch's own words recommend to lift the protection
        raise ValueError(f"{path} is not a PyTorch file of plain tensors, or not safe to read") from error
    except Exception as error:  # damaged files raise nearly anything: struct.error, IndexError, AssertionError
        reason = (str(error).splitlines() or [""])[0]
        if not isinstance(error, ValueError):
            reason = f"{type(error).__name__} {reason}".rstrip()  # the message alone may be no more than a number
        raise ValueError(f"cannot read weights from {path}: {reason}") from error
    return state


def _load_pickle(path: Path) -> Mapping:
    # the published DeiT checkpoints carry their command line as a Namespace, which cannot do anything either
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _state_dict(checkpoint: Mapping) -> dict[str, Tensor]:
    state = checkpoint
    if isinstance(checkpoint, Mapping):
        state = next((checkpoint[k] for k in ("state_dict", "model") if isinstance(checkpoint.get(k), Mapping)), state)
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ValueError("expected a state dict of tensors by name")
    plain = {_unwrapped(name): value for name, value in state.items()}
    if len(plain) < len(state):
        raise ValueError(f"the same parameter is there with and without a prefix ({' or '.join(_WRAPPERS)})")
    if any(name.startswith(_ENCODER) for name in plain):
        plain = {name.removeprefix(_ENCODER): value for name, value in plain.items() if name.startswith(_ENCODER)}
        # its head is the projector of the contrastive loss, not a classifier
        plain = {name: value for name, value in plain.items() if not name.startswith("head.")}
    if not plain or not all(isinstance(value, Tensor) for value in plain.values()):
        raise ValueError("expected a state dict of tensors")
    return plain


def _unwrapped(name: str) -> str:
    while prefix := next((p for p in _WRAPPERS if name.startswith(p)), ""):
        name = name.removeprefix(prefix)
    return name


def _check_numbers(name: str, value: Tensor) -> None:
    if value.layout is not torch.strided or value.device.type != "cpu":
        raise ValueError(f"{name} is not a plain tensor with values, but {value.layout} on {value.device}")
    if not value.is_floating_point():
        if name.endswith("num_batches_tracked") and value.dtype == torch.int64:
            return
        raise ValueError(f"{name} is {value.dtype}; expected floating point weights")
    if not value.float().isfinite().all():
        raise ValueError(f"{name} has values that are NaN or infinite in float32")
