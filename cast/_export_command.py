"""What ``cast export`` does: write a model for another runtime, run the file, and compare it with the model."""

from importlib.resources import as_file, files
from pathlib import Path

import torch
from torch import Tensor

from cast.data import crop_geometry, read_image
from cast.export import compare, export_onnx, export_program, save_program
from cast.models.trunk import Trunk

TOLERANCE = 1e-3  # of the largest of the model's own numbers, between it and the file


def export_and_compare(model: Trunk, path: Path, size: int) -> tuple[dict[str, float], bool]:
    """Write ``path``, ``.onnx`` or ``.pt2``, and run it on the photo of the package and its mirror image.

    Returns:
        `cast.export.compare` of file and model, and whether they agree.
    """
    if path.suffix == ".onnx":
        export_onnx(model, path, size)
    else:
        save_program(export_program(model, size, portable=True), path)
    image = _photos(size).to(model.cls_token.device)
    labels = model.superpixels(image)
    with torch.no_grad():
        scale = model(image, labels).abs().max().item()
    differences = compare(path, model, image, labels)
    return differences, differences["logits"] <= TOLERANCE * scale


def _photos(size: int) -> Tensor:
    with as_file(files("cast") / "assets" / "demo.jpg") as path:
        photo = read_image(path)
    seen = torch.tensor(crop_geometry(*photo.shape[:2], size).apply(photo)).permute(2, 0, 1)
    return torch.stack([seen, seen.flip(2)])
