"""Features computed once for a probe: without autocast, a row per image, and not of a divided network."""

import copy
import logging

import pytest
import torch
from image_set_helpers import class_tree
from task_helpers import make_config

from cast.data.image_sets import open_image_set
from cast.train.distributed import Processes, setup
from cast.train.features import FeatureBatches
from cast.train.tasks import make_task

COUNT = 10


@pytest.fixture
def images(tmp_path):
    return open_image_set(class_tree(tmp_path / "set", classes=2, per_class=COUNT // 2))


def make_batches(images, progress=False, **settings):
    values = {"model": "vit_conv_small", "img_size": 16, "augment": False, "batch": 4, "workers": 0}
    config = make_config("probe", **values | settings)
    with setup("cpu") as processes:
        assert isinstance(processes, Processes)
        return FeatureBatches(config, make_task(config, 2), images, copy.copy(images), processes, COUNT // 4, progress)


def test_both_sets_are_made_before_the_first_step_and_told_of(images, capsys):
    data = make_batches(images, progress=True)
    next(data.training(0))
    assert capsys.readouterr().err.count(f"features of {COUNT} images are on cpu") == 2
    data.task = None
    assert len(joined(data.evaluation())[0]) == COUNT


def joined(batches):
    batches = list(batches)
    return torch.cat([b.images[:, 0] for b in batches]), torch.cat([b.targets for b in batches])


def test_features_do_not_know_of_autocast(images):
    """The loop takes figures under autocast, and trains on what is made outside of it."""
    data = make_batches(images)
    plain, targets = joined(data.evaluation())
    again = make_batches(images)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = joined(again.evaluation())
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(found, plain)
    assert targets.tolist() == [0] * 5 + [1] * 5
    training = next(data.training(0)).images
    assert training.shape == (4, 1, 48)
    assert not training.requires_grad
    assert {tuple(row.tolist()) for row in training[:, 0]} <= {tuple(row.tolist()) for row in plain}


def test_indices_are_sent_without_waiting(images, monkeypatch):
    sent = []
    monkeypatch.setattr("cast.train.features.send", lambda x, device: sent.append(x.tolist()) or x.to(device))
    data = make_batches(images)
    count = len(list(data.training(0)))
    assert len(sent) == count
    assert {len(x) for x in sent} == {4}


def test_broken_images_leave_as_many_to_train_on(images, caplog):
    whole = joined(make_batches(images).evaluation())[0]
    for broken in (3, 4):
        with open(images.name(broken), "w") as file:
            file.write("no image")
    data = make_batches(images, skip_broken=True)
    with caplog.at_level(logging.WARNING, "cast"):
        features, targets = data._features(images, replace_broken=True)
    assert torch.allclose(features, whole[[0, 1, 2, 5, 5, 5, 6, 7, 8, 9]], atol=1e-6)
    assert targets.tolist() == [0] * 3 + [1] * 7
    assert len(list(data.training(0))) == make_batches(images).last_step  # two steps in each epoch
    assert "the next image takes its place" in caplog.text

    held_out = make_batches(images, skip_broken=True)
    with caplog.at_level(logging.WARNING, "cast"):
        found, targets = joined(held_out.evaluation())
    assert torch.allclose(found, whole[[0, 1, 2, 5, 6, 7, 8, 9]], atol=1e-6)
    assert targets.tolist() == [0] * 3 + [1] * 5
    assert "it is left out" in caplog.text


def test_nothing_but_broken_images(images):
    for i in range(COUNT):
        with open(images.name(i), "w") as file:
            file.write("no image")
    with pytest.raises(ValueError, match="got none that can be read"):
        list(make_batches(images, skip_broken=True).evaluation())


def test_a_divided_network_is_refused():
    with pytest.raises(ValueError, match="expected augment=True with fsdp"):
        make_config("probe", fsdp=True, augment=False)
    assert make_config("probe", fsdp=True).augment
