"""What the tests of ``cast segment`` share: a photo, a command line that is quick, and a look at the results."""

import json

import numpy as np

from cast.cli import main

FILES = {"superpixels.png", *(f"level{n}.png" for n in (1, 2, 3, 4)), "panel.png", "hierarchy.npz", "hierarchy.json"}
QUICK = ["--model", "cast_mini", "--size", "64", "--superpixels", "100", "--levels", "16,8,4,2", "--device", "cpu"]


def make_scene():
    """A smooth gradient with a disc: something whose contours superpixels can follow."""
    y, x = np.mgrid[:90, :130]
    image = np.stack([2 * y + 20, x + 60, 220 - y], -1).astype(np.uint8)
    image[(y - 45) ** 2 + (x - 60) ** 2 < 900] = (230, 40, 30)
    return image


def segment(*arguments):
    """Run ``cast segment``, quickly."""
    return main(["segment", *map(str, arguments), *QUICK])


def read(folder):
    """The JSON and the arrays of a result folder."""
    about = json.loads((folder / "hierarchy.json").read_text(encoding="ascii"))
    with np.load(folder / "hierarchy.npz") as arrays:
        return about, {name: arrays[name] for name in arrays.files}


def left_in(folder):
    """The names in a folder."""
    return sorted(path.name for path in folder.iterdir())
