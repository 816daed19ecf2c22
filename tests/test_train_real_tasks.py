"""The tasks themselves, images from files included: two processes train as one does, and a killed run ends the same."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from train_worker import _kill_at, assert_equal, checkpoint, finish, log_of, start

from cast.train.command import train
from cast.train.settings import resolve

SMALL = {
    "model": "cast_mini",
    "model_overrides": {"embed_dim": 24, "num_heads": 2, "depths": [1, 1], "num_clusters": [4, 2],
                        "superpixels": {"num_superpixels": 16}, "pool_dropout": 0.0},
    "img_size": 32,
    "batch": 8,
    "epochs": 2,
    "warmup_epochs": 0,
    "lr": 1e-3,
    "lr_batch": 8,
    "workers": 0,
    "device": "cpu",
    "save_every": 1,
    "log_every": 2,
}  # fmt: skip
TASKS = {
    "moco": {"dim": 8, "hidden_dim": 16, "last_pool_weight": 0.5},
    "supervised": {"mixup": 0.0, "cutmix": 0.0, "erasing": 0.0, "repeats": 1, "drop_path": 0.0, "ema": 0.9,
                   "sync_batchnorm": True, "clip_grad": 1.0},
    "probe": {"augment": False, "lr": 0.1},
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 3)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(random.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(
                    folder / split / name / f"{i}.png"
                )
    return folder


def train_task(kind, photos, folder, changes=None, kill=None):
    torch.set_num_threads(1)
    if kill is not None:
        _kill_at(*kill)
    places = {"data": os.fspath(photos / "train"), "val": os.fspath(photos / "val")}
    train(resolve(kind, changes=SMALL | TASKS[kind] | places | (changes or {})), Path(folder), progress=False)


@pytest.mark.parametrize("kind", TASKS)
def test_two_processes_train_as_one(kind, photos, tmp_path):
    changes = {"precision": "float64"}
    jobs = start(train_task, kind, photos, tmp_path / "two", changes, world=2)
    train_task(kind, photos, tmp_path / "one", changes)
    assert finish(jobs) == [0, 0]
    assert_equal(checkpoint(tmp_path / "two"), checkpoint(tmp_path / "one"), 1e-6)
    one, two = (json.loads((tmp_path / name / "result.json").read_text())["metrics"] for name in ("one", "two"))
    assert one == pytest.approx(two, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "changes", "kill"),
    [
        ("moco", {"accumulate": 2}, ("rename", 6)),
        ("supervised", {"cache": "device", "rand_augment": 0.0, "mixup": 0.8, "erasing": 0.5}, ("checkpoint", 40)),
        ("supervised", {"workers": 1, "superpixels_on": "cpu", "mixup": 0.8, "erasing": 0.5}, ("log", 2)),
        ("probe", {}, ("renamed", 5)),
    ],
)
def test_a_killed_run_ends_with_the_same_weights(kind, changes, kill, photos, tmp_path):
    assert finish(start(train_task, kind, photos, tmp_path / "killed", changes, kill)) == [-9]
    train_task(kind, photos, tmp_path / "killed", changes)
    train_task(kind, photos, tmp_path / "whole", changes)
    assert_equal(checkpoint(tmp_path / "killed"), checkpoint(tmp_path / "whole"))
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")
