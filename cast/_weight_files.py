"""From a file of weights to tensors by name: only plain, finite, floating point tensors come through."""

import argparse
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from cast._layouts import Weights, unwrap


def read_weights(path: Path, *, encoder: str = "base", weights: str = "model", projector: bool = False) -> Weights:
    """The weights in a ``.safetensors`` or PyTorch file, on the CPU, without what published checkpoints put around.

    Args:
        path: The file.
        encoder: Which encoder of MoCo-v3 pre-training, "base" or "momentum".
        weights: Which weights of a DeiT training, "model" or "ema", their moving average.
        projector: Whether the projector of MoCo-v3 pre-training is taken as well, as ``head.``.

    Raises:
        ValueError: The file cannot be read, has not what is asked for, or holds other things than finite floating
            point tensors by name. The counters ``num_batches_tracked`` of batch normalisation may be integers.
    """
    if not path.is_file():
        raise ValueError(f"no such file of weights: {path}")
    try:
        content = load_file(path) if path.suffix.lower() == ".safetensors" else _load_pickle(path)
        found = unwrap(content, encoder=encoder, weights=weights, projector=projector)
        for name, value in found.state.items():
            check_numbers(name, value)
    except pickle.UnpicklingError as error:  # PyTorch's own words recommend to lift the protection
        raise ValueError(f"{path} is not a PyTorch file of plain tensors, or not safe to read") from error
    except Exception as error:  # damaged files raise nearly anything: struct.error, IndexError, AssertionError
        reason = (str(error).splitlines() or [""])[0]
        if not isinstance(error, ValueError):
            reason = f"{type(error).__name__} {reason}".rstrip()  # the message alone may be no more than a number
        raise ValueError(f"cannot read weights from {path}: {reason}") from error
    return found


def _load_pickle(path: Path) -> Mapping[Any, Any]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("expected an archive that PyTorch wrote, but this one is compressed")
    # the published DeiT checkpoints carry their command line as a Namespace, which cannot do anything either
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def check_numbers(name: str, value: Tensor) -> None:
    """Check that a tensor of a state dict is dense, on the CPU, floating point and finite; counters may be integers.

    Raises:
        ValueError: It is not; the message names it.
    """
    if value.layout is not torch.strided or value.device.type != "cpu":
        raise ValueError(f"{name} is not a plain tensor with values, but {value.layout} on {value.device}")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():  # a few bytes that claim to be many
        raise ValueError(f"{name} has shape {tuple(value.shape)}, but not as many values")
    if not value.is_floating_point():
        if name.endswith("num_batches_tracked") and value.dtype == torch.int64:
            return
        raise ValueError(f"{name} is {value.dtype}; expected floating point weights")
    if not value.float().isfinite().all():
        raise ValueError(f"{name} has values that are NaN or infinite in float32")
