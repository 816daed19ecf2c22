"""A short training on real photos lowers the loss on held-out ones by more than it scatters."""

import csv
import dataclasses

import numpy as np
import pytest

from cast.data.augment import make_transform
from cast.data.image_sets import open_image_set
from cast.data.loading import evaluation_batches
from cast.models import from_pretrained
from cast.train.checkpoints import read_checkpoint
from cast.train.command import train
from cast.train.settings import resolve
from cast.train.tasks import make_task

SIZE = 48
SMALL = {
    "model": "cast_mini",
    "model_overrides": {
        "embed_dim": 48,
        "num_heads": 4,
        "depths": [1, 1],
        "num_clusters": [16, 8],
        "superpixels": {"num_superpixels": 36},
    },
    "img_size": SIZE,
    "epochs": 4,
    "batch": 32,
    "lr": 2e-3,
    "lr_batch": 32,
    "eval_every": 100,
    "workers": 0,
    "device": "cpu",
}
TASKS = {
    "moco": {"epochs": 6, "warmup_epochs": 1, "lr": 5e-3, "momentum": 0.9, "dim": 32, "hidden_dim": 128,
             "crop_scale": (0.3, 1.0)},
    "supervised": {"warmup_epochs": 0, "rand_augment": 0.0, "mixup": 0.0, "cutmix": 0.0, "repeats": 1, "ema": 0.0,
                   "erasing": 0.0, "drop_path": 0.0, "crop_scale": (0.5, 1.0)},
}  # fmt: skip


EVERY = {"train": 24, "val": 4}  # of the photos, which is every how manyth


@pytest.fixture(scope="module")
def photos(shared_folder, tmp_path_factory):
    """Some photos of imagenette, in class folders."""
    data, tree = shared_folder("data") / "imagenette", tmp_path_factory.mktemp("imagenette")
    with (data / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for split, every in EVERY.items():
        for row in [row for row in rows if row["split"] == split][::every]:
            link = tree / split / row["wnid"] / f"{row['id']}.jpg"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(data / "images" / link.name)
    return tree


def held_out_losses(task, config):
    """The mean loss of each 8 held-out photos; of two views, the same two whenever this is called."""
    photos, transform = open_image_set(config.val), make_transform(config, train=False)
    small = dataclasses.replace(config, batch=8)
    batches = evaluation_batches(photos, transform, small, rank=0, world=1, whole=True)
    sums = [task.evaluate([batch]) for batch in batches]
    return np.array([float(s["loss"] / s["count"]) for s in sums if s["count"] == 8])


@pytest.mark.parametrize("kind", TASKS)
def test_held_out_loss_falls_beyond_its_noise(photos, tmp_path, kind):
    places = {"data": str(photos / "train"), "val": str(photos / "val")}
    config = resolve(kind, changes=SMALL | TASKS[kind] | places)
    task = make_task(config, 10)
    before = held_out_losses(task, config)
    assert train(config, tmp_path / "run", progress=False)["status"] == "done"
    task.load_state_dict(read_checkpoint(tmp_path / "run" / "last.pt")["task"])
    gain = before - held_out_losses(task, config)
    assert len(gain) == 31
    assert gain.mean() > 3 * gain.std(ddof=1) / len(gain) ** 0.5, gain
    assert from_pretrained(tmp_path / "run" / "model").config.img_size == SIZE
