"""Models for other runtimes: programs of `torch.export`, and ONNX. Superpixels are an input, the batch is free.

Inputs are ``image`` ``[B, C, H, W]``, uint8 or normalised floating point, and ``labels`` ``[B, H, W]`` int32, the
superpixels (none for `ViT`). Outputs go by name:

- ``logits`` and whatever else `forward_hierarchy` returns as a tensor (``embedding``, or ``cls`` and ``tokens``);
- ``parents0``, ``parents1``, ..: to which segment of the next level each segment belongs, int64 ``[B, N_l]``;
- ``label_maps``: the segmentation at every level, fine to coarse, int32 ``[B, L, H, W]``, -1 outside all segments.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cast._files import replace_file
from cast.models.base import ImageModel
from cast.models.inputs import channels_first
from cast.models.trunk import Trunk
from cast_kernels import __version__, onnx_translations, references

METADATA = "cast"  # the key under which an ONNX model says, in JSON, what it was made of


def export_program(
    model: ImageModel,
    size: int | tuple[int, int] | None = None,
    *,
    num_segments: int | None = None,
    hierarchy: bool = True,
    dtype: torch.dtype = torch.uint8,
    portable: bool = False,
) -> ExportedProgram:
    """Trace a model at one image size and any batch size with `torch.export`.

    Args:
        model: A model in eval mode; the program is for its device and in its dtype.
        size: Height and width of the images, or both as one number; None = ``config.img_size``.
        num_segments: Number of superpixels; None = as many as ``model.superpixels`` makes of such images.
        hierarchy: Whether ``embedding``, ``parents`` and ``label_maps`` are outputs as well as ``logits``; not for
            `ViT`.
        dtype: Of the images: uint8, or floating point for normalised ones.
        portable: Whether the program is of PyTorch's own ops alone, which run their definitions instead of kernels, and
            loads where this package is not installed. Otherwise it calls this package's ops: import `cast_kernels`
            before loading it.

    Returns:
        The program; ``program.module()(image, labels)`` returns a dictionary of the outputs.

    Raises:
        TypeError: The model is none of this package, or ``dtype`` is neither.
        ValueError: The model is in train mode, or does not take such images or so few superpixels.
    """
    return _trace(model, size, num_segments, hierarchy, dtype, keep=() if portable else None)


def export_onnx(
    model: ImageModel,
    path: str | os.PathLike[str],
    size: int | tuple[int, int] | None = None,
    *,
    num_segments: int | None = None,
    hierarchy: bool = True,
    dtype: torch.dtype = torch.uint8,
    opset: int = 20,
) -> None:
    """Write a model as one ONNX file, whole or not at all; needs the extra ``export``.

    This package's ops are in it by their definitions, farthest point sampling in float64 as one ``Loop`` per level. Its
    metadata hold, under "cast", JSON with the model's class and config (mean and std, settings of the superpixels),
    ``size`` and ``num_segments``.

    Args:
        model: As for `export_program`.
        path: The file to create or replace.
        size: As for `export_program`.
        num_segments: As for `export_program`.
        hierarchy: As for `export_program`.
        dtype: As for `export_program`.
        opset: Version of ONNX's operators.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        TypeError: As for `export_program`.
        ValueError: As for `export_program`, or the model is larger than the 2 GiB that one file can hold.
        OSError: The file cannot be written.
    """
    translations = onnx_translations()
    program = _trace(model, size, num_segments, hierarchy, dtype, keep=("farthest_point_sample",))
    exported = torch.onnx.export(
        program, custom_translation_table=translations, opset_version=opset, output_names=_names(program), verbose=False
    )
    about = {
        "class": type(model).__name__,
        "config": model.config.to_dict(),
        "size": list(_size(model, size)),
        "num_segments": _count(model, _size(model, size), num_segments),
        "cast_kernels_version": __version__,
    }
    exported.model.metadata_props[METADATA] = json.dumps(about)
    proto = exported.model_proto
    if (length := proto.ByteSize()) >= 2**31:
        raise ValueError(f"expected a model below 2 GiB, got {length / 2**30:.1f}: cast it to half precision first")
    with replace_file(path) as file:
        file.write(proto.SerializeToString())


def save_program(program: ExportedProgram, path: str | os.PathLike[str]) -> None:
    """Write a program as a ``.pt2`` file for `torch.export.load`, whole or not at all.

    Raises:
        OSError: The file cannot be written.
    """
    with replace_file(path) as file:
        torch.export.save(program, file)


def compare(
    path: str | os.PathLike[str],
    model: ImageModel,
    image: Tensor,
    labels: Tensor | None = None,
    *,
    num_segments: int | None = None,
) -> dict[str, float]:
    """Run an exported file beside the model it was made of and return how far each of its outputs is off.

    Args:
        path: A file of `export_onnx` (``.onnx``, run by onnxruntime on the CPU) or of `save_program` (``.pt2``).
        model: The model, in eval mode.
        image: As the file takes it, on the model's device.
        labels: As the file takes them; None for `ViT`.
        num_segments: As when the file was made.

    Returns:
        By name of output: the largest absolute difference of floating point numbers, the share of integers that differ.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: The file's name ends in neither.
    """
    path, inputs = Path(path), [image] if labels is None else [image, labels.int()]
    with torch.no_grad():
        if path.suffix == ".pt2":
            found = torch.export.load(path).module()(*inputs)
        elif path.suffix == ".onnx":
            found = _run_onnx(path, inputs)
        else:
            raise ValueError(f"expected a file that ends in .onnx or .pt2, got {path}")
        count = _count(model, tuple(image.shape[2:]), num_segments)
        expected = _exportable(model, count, hierarchy=len(found) > 1)(*inputs)
    return {name: _difference(found[name].to(value.device), value) for name, value in expected.items()}


def _difference(found: Tensor, expected: Tensor) -> float:
    if expected.is_floating_point():
        return (found.double() - expected.double()).abs().max().item()
    return (found != expected).double().mean().item()


def _run_onnx(path: Path, inputs: list[Tensor]) -> dict[str, Tensor]:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"running ONNX needs onnxruntime: pip install 'cast-kernels[export]' ({error})") from error
    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    feeds = {given.name: x.cpu().numpy() for given, x in zip(session.get_inputs(), inputs, strict=True)}
    names = [output.name for output in session.get_outputs()]
    return {name: torch.from_numpy(x) for name, x in zip(names, session.run(names, feeds), strict=True)}


def _trace(
    model: ImageModel,
    size: int | tuple[int, int] | None,
    num_segments: int | None,
    hierarchy: bool,
    dtype: torch.dtype,
    *,
    keep: tuple[str, ...] | None,
) -> ExportedProgram:
    """Trace a model; ``keep`` names the ops of this package that stay, None = all."""
    if not isinstance(model, ImageModel):
        raise TypeError(
            f"expected a model of this package, got {type(model).__name__}; torch.export.export takes any module"
        )
    if dtype != torch.uint8 and not dtype.is_floating_point:
        raise TypeError(f"expected dtype uint8 or floating point, got {dtype}")
    if model.training:
        raise ValueError("expected a model in eval mode: call eval() before exporting it")
    height, width = _size(model, size)
    count = _count(model, (height, width), num_segments)
    device, batch = model.cls_token.device, 2  # 1 would be taken for a constant
    inputs = [torch.zeros(batch, model.config.in_chans, height, width, dtype=dtype, device=device)]
    channels_first(inputs[0], model.config.in_chans, getattr(model, "size_multiple", model.config.stride))
    if count is not None:
        inputs.append(torch.zeros(batch, height, width, dtype=torch.int32, device=device))
    free = tuple({0: Dim("batch")} for _ in inputs)
    exportable = _exportable(model, count, hierarchy)
    with torch.no_grad():
        if keep is None:
            return torch.export.export(exportable, tuple(inputs), dynamic_shapes=free)
        with references(keep=keep):
            return torch.export.export(exportable, tuple(inputs), dynamic_shapes=free)


def _size(model: ImageModel, size: int | tuple[int, int] | None) -> tuple[int, int]:
    size = model.config.img_size if size is None else size
    return size if isinstance(size, tuple) else (size, size)


def _count(model: ImageModel, size: tuple[int, int], num_segments: int | None) -> int | None:
    """Return the number of superpixels; None for a model of patches."""
    if isinstance(model, Trunk):
        return model.count_superpixels(*size) if num_segments is None else num_segments
    if num_segments is not None:
        raise ValueError(f"expected no num_segments: {type(model).__name__} is a model of patches")
    return None


def _names(program: ExportedProgram) -> list[str]:
    """Return the names of a program's outputs, which it returns as a dictionary."""
    outputs = program.call_spec.out_spec
    return list(outputs.unflatten(range(outputs.num_leaves)))


def _exportable(model: ImageModel, count: int | None, hierarchy: bool) -> nn.Module:
    return _Patches(model) if count is None else _Segments(model, count, hierarchy)


class _Segments(nn.Module):
    """A model of superpixels, as a function of image and labels alone that returns tensors by name."""

    def __init__(self, model: Trunk, count: int, hierarchy: bool) -> None:
        super().__init__()
        self.model, self.count, self.hierarchy = model, count, hierarchy

    def forward(self, image: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Run the model."""
        if not self.hierarchy:
            return {"logits": self.model(image, labels, self.count)}
        output: Any = self.model.forward_hierarchy(image, labels, self.count)
        named = {name: value for name, value in output._asdict().items() if isinstance(value, Tensor)}
        named |= {f"parents{level}": table for level, table in enumerate(output.hierarchy.parents)}
        return named | {"label_maps": output.hierarchy.label_maps()}


class _Patches(nn.Module):
    """A model of patches, as a function that returns its output by name."""

    def __init__(self, model: ImageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Run the model."""
        return {"logits": self.model(image)}
