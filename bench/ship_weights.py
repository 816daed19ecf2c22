"""The weights that come with the package, made from a run: ``python -m bench.ship_weights RUN/model``.

Writes config.json and model.safetensors, in float16, into cast/assets/imagenette, both or none, and prints their size
and what the rounding did to the logits of a photo. The model card beside them, README.md, is written by hand.
"""

import argparse
import copy
import sys
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

import torch
from torch import Tensor

from cast import shipped
from cast.data import crop_geometry, read_image
from cast.models import Cast
from cast.models.saving import WEIGHTS

MOST_BYTES = 16_000_000


def ship(source: Path, folder: Path = shipped.FOLDER) -> tuple[int, float, float]:
    """Write a trained model in float16.

    Args:
        source: The folder of a saved model, a classifier of the classes in classes.txt.
        folder: Where it goes.

    Returns:
        Bytes of the tensors, the largest difference of a logit of a photo, and the largest logit.

    Raises:
        ValueError: There is no such model, its classes are others, it is too large, or a weight is infinite in float16.
    """
    model = Cast.from_pretrained(source)
    if model.config.num_classes != len(shipped.class_names()):
        raise ValueError(f"expected {len(shipped.class_names())} classes, got {model.config.num_classes}")
    half = copy.deepcopy(model).half()
    size = sum(value.numel() * value.element_size() for value in half.state_dict().values())
    if size > MOST_BYTES:
        raise ValueError(f"expected at most {MOST_BYTES} bytes in float16, got {size}")
    half.save_pretrained(folder)
    (folder / WEIGHTS).chmod(0o644)  # safetensors lets nobody but the owner read
    rounded = Cast.from_pretrained(folder).float()
    rounded.init_non_persistent_buffers()
    before, after = logits(model), logits(rounded)
    return size, (after - before).abs().max().item(), before.abs().max().item()


@torch.inference_mode()
def logits(model: Cast) -> Tensor:
    """Logits of the package's photo and its mirror image, at the sizes of training and of segmenting, ``[4, K]``."""
    with as_file(files("cast") / "assets" / "demo.jpg") as path:
        photo = read_image(path)
    found = []
    for size in (model.config.img_size, shipped.SIZE):
        seen = torch.tensor(crop_geometry(*photo.shape[:2], size).apply(photo)).permute(2, 0, 1)
        found.append(model(torch.stack([seen, seen.flip(2)])))
    return torch.cat(found)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 2 if the model cannot be shipped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="FOLDER", help="of a saved model, as a run leaves it")
    parser.add_argument("--out", type=Path, default=shipped.FOLDER, metavar="DIR", help="(default: the package's)")
    arguments = parser.parse_args(argv)
    try:
        size, off, largest = ship(arguments.model, arguments.out)
    except ValueError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.out}: {size / 1e6:.1f} MB; logits off by at most {off:.1e}, the largest is {largest:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
