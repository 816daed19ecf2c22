"""What `train` puts together: which held-out batches a task gets, and what is said while images are loaded."""

import pytest
import torch
from image_set_helpers import class_tree
from task_helpers import make_config

from cast.cli import main
from cast.data.image_sets import open_image_set
from cast.train import command
from cast.train.distributed import Processes
from cast.train.tasks import make_task

COUNT = 14
SMALL = {"model": "vit_conv_small", "img_size": 16, "batch": 4, "workers": 0, "warmup_epochs": 0, "epochs": 1}


@pytest.fixture
def folder(tmp_path):
    return class_tree(tmp_path / "set", classes=2, per_class=COUNT // 2)


def held_out(task, folder, rank=0, world=1):
    """The numbers of the images in a process's held-out batches."""
    config, images = make_config(task, **SMALL), open_image_set(folder)
    place = Processes(rank, world, rank, torch.device("cpu"))
    data = command._Loaded(config, make_task(config, 2).preparation, images, images, place, 3, False)
    return [batch.images[:, 0, 0].amax((1, 2)).tolist() for batch in data.evaluation()]


def test_contrastive_figures_do_not_depend_on_the_number_of_processes(folder):
    alone = held_out("moco", folder)
    assert [len(batch) for batch in alone] == [4, 4, 4, 2]
    for rank in range(3):
        assert held_out("moco", folder, rank, 3) == alone[rank::3]
    shared = [set(batch) for rank in range(2) for batch in held_out("supervised", folder, rank, 2)]
    assert not any(set(batch) in shared for batch in held_out("supervised", folder))  # these are divided


def run(folder, tmp_path, capsys, **changes):
    config = make_config("probe", **SMALL, data=str(folder), cache="device", **changes)
    assert command.train(config, tmp_path / "run")["status"] == "done"
    return capsys.readouterr().err


def test_loading_onto_the_device_is_reported(folder, tmp_path, capsys):
    assert f"{COUNT} images are on cpu\n" in run(folder, tmp_path, capsys)


def test_loading_is_reported_by_the_main_process_alone(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "is_main", lambda: False)
    assert "images are on" not in run(folder, tmp_path, capsys)


def test_no_progress_is_none(folder, tmp_path, capsys):
    config = make_config("probe", **SMALL, data=str(folder), cache="device")
    command.train(config, tmp_path / "run", progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("weights", ["imagenette", ""])
def test_the_terms_of_the_package_weights_are_named(folder, tmp_path, capsys, monkeypatch, weights):
    monkeypatch.setattr(
        command, "train", lambda config, out: {"status": "time limit", "step": 0, "loss": None, "metrics": {}}
    )
    assert (
        main(["probe", str(folder), "--out", str(tmp_path / "run"), *(["--weights", weights] if weights else [])]) == 0
    )
    assert ("non-commercial research" in capsys.readouterr().err) == bool(weights)
