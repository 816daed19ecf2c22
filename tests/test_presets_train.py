"""Every preset builds and trains: two steps of a small form of its own model, in its own precision."""

import math
import os

import pytest
import torch
from PIL import Image

from cast.models import create_model, from_pretrained
from cast.train.command import train
from cast.train.presets import PRESETS
from cast.train.settings import resolve

SHAPE = {"embed_dim": 24, "num_heads": 2, "depths": [1, 1, 1], "num_clusters": [8, 4, 2]}
SMALL = {
    "model_overrides": SHAPE | {"superpixels": {"num_superpixels": 16}},
    "img_size": 32,
    "batch": 4,
    "workers": 0,
    "device": "cpu",
    "max_steps": 2,
}
OF_TASK = {"moco": {"hidden_dim": 16, "dim": 8}, "supervised": {}, "probe": {}}
NAMES = [(task, name) for task, presets in PRESETS.items() for name in presets]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eight tiny images of two classes."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(8):
        pixels = torch.randint(0, 256, (40, 36, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        folder = root / f"class{i % 2}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return root


@pytest.mark.parametrize(("task", "preset"), NAMES)
def test_two_steps(task, preset, photos, tmp_path):
    changes = SMALL | OF_TASK[task] | {"data": str(photos), "val": str(photos)}
    if task == "probe":
        create_model("cast_small", img_size=32, **SMALL["model_overrides"]).save_pretrained(tmp_path / "weights")
        changes |= {"weights": str(tmp_path / "weights"), "model_overrides": {}}
    config = resolve(task, preset=preset, changes=changes)
    own = PRESETS[task][preset]
    kept = {name: value for name, value in own.items() if name not in changes}
    assert {"epochs", "lr"} <= set(kept)
    assert {name: getattr(config, name) for name in kept} == kept  # among them model and precision
    result = train(config, tmp_path / "run", progress=False)
    assert (result["status"], result["step"]) == ("max_steps", 2)
    assert math.isfinite(result["loss"])
    assert all(math.isfinite(x) for x in result["metrics"].values())
    model = from_pretrained(tmp_path / "run" / "model")
    assert (model.config.embed_dim, model.config.img_size) == (24, 32)
    assert all(p.isfinite().all() for p in model.parameters())
    assert os.path.exists(tmp_path / "run" / "last.pt")
