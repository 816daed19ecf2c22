"""Schedules: the recorded figures of the published code, and a few of them by hand."""

import json
import math

import pytest

from cast.train.schedules import deit_learning_rate, moco_learning_rate, moco_momentum, probe_learning_rate

DEIT = {"base": 1e-3, "epochs": 300, "warmup_epochs": 5, "warmup_lr": 1e-6, "min_lr": 1e-5}


@pytest.fixture(scope="module")
def recorded(shared_folder):
    return json.loads((shared_folder("fixtures") / "fixtures" / "schedules.json").read_text())


def same(found, expected):
    return math.isclose(found, expected, rel_tol=1e-12, abs_tol=1e-20)


@pytest.mark.parametrize("name", ["moco_in1k", "moco_in100", "moco_coco"])
def test_moco_is_as_recorded(recorded, name):
    run = recorded[name]
    for point in run["points"]:
        epoch = point["epoch"]
        rate = moco_learning_rate(epoch, base=run["lr"], epochs=run["epochs"], warmup_epochs=run["warmup_epochs"])
        # near the end 1 + cos(x) has lost the digits that float64 has in x
        assert math.isclose(rate, point["lr"], rel_tol=1e-12, abs_tol=1e-16 * run["lr"]), epoch
        assert same(moco_momentum(epoch, start=0.99, epochs=run["epochs"]), point["momentum"]), epoch


@pytest.mark.parametrize("name", ["lincls_in1k", "lincls_in100"])
def test_probe_is_as_recorded(recorded, name):
    run = recorded[name]
    for point in run["points"]:
        assert same(probe_learning_rate(point["epoch"], base=run["init_lr"], epochs=90), point["lr"]), point["epoch"]


def test_deit_is_as_recorded(recorded):
    for epoch, rate in recorded["deit_cosine"]["lr"].items():
        assert same(deit_learning_rate(int(epoch), **DEIT), rate), epoch


def test_moco_by_hand():
    options = {"base": 2.0, "epochs": 100, "warmup_epochs": 10}
    for epoch, rate in ((0, 0.0), (2.5, 0.5), (10, 2.0), (55, 1.0), (32.5, 1.0 + math.sqrt(0.5)), (100, 0.0)):
        assert moco_learning_rate(epoch, **options) == pytest.approx(rate, abs=1e-15)
    for epoch, momentum in ((0, 0.99), (50, 0.995), (100, 1.0), (100 / 3, 0.9925)):
        assert moco_momentum(epoch, start=0.99, epochs=100) == pytest.approx(momentum, abs=1e-15)


def test_a_run_that_only_warms_up():
    options = {"base": 2.0, "epochs": 4, "warmup_epochs": 4}
    assert moco_learning_rate(3.5, **options) == 1.75
    assert moco_learning_rate(4.0, **options) == 0.0


def test_probe_moves_once_an_epoch():
    for epoch, rate in ((0, 8.0), (0.99, 8.0), (1, 8.0 * 0.5 * (1 + math.cos(math.pi / 4))), (2.5, 4.0)):
        assert probe_learning_rate(epoch, base=8.0, epochs=4) == pytest.approx(rate)
    assert probe_learning_rate(0.5, base=8.0, epochs=4, warmup_epochs=2) == pytest.approx(2.0)


def test_deit_is_an_epoch_late():
    rates = [deit_learning_rate(e, **DEIT) for e in (0, 1, 1.9, 2, 5)]
    assert rates == pytest.approx([1e-6, 1e-6, 1e-6, 2.008e-4, 8.002e-4])
    assert deit_learning_rate(151, **DEIT) == pytest.approx((1e-3 + 1e-5) / 2)
    assert deit_learning_rate(0, **DEIT | {"warmup_epochs": 0}) == 1e-3
    assert deit_learning_rate(299, **DEIT) > DEIT["min_lr"]
