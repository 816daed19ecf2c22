"""Mixup, CutMix, smoothing and erasing: against slow rewrites, in both orders, and what is drawn."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from small_model import photo
from task_helpers import POOLED, PUBLISHED, generator, make_batch, make_config

from cast.models.compat import published_bytes
from cast.train import mixing
from cast.train.mixing import Mix, MixAndErase, draw_boxes, draw_mix, erase, mix_images, mix_targets
from cast.train.supervised import SupervisedTask
from cast_kernels import seeds


def make_preparation(network=None, **changes):
    torch.manual_seed(0)
    config = make_config("supervised", erasing=0.7, **changes)
    return MixAndErase(config, network or SupervisedTask(config, 3).model.config, 3)


def test_no_step_makes_constants_again(monkeypatch):
    """Each would be a copy to the device that the step waits for."""
    preparation, batch = make_preparation(model="vit_conv_small"), make_batch(4)
    first = preparation(batch, generator())
    assert first.images.dtype == torch.float32
    monkeypatch.setattr(mixing.torch, "tensor", lambda *_, **__: pytest.fail("made again"))
    assert torch.equal(preparation(batch, generator()).images, first.images)


def test_what_decides_on_erasing_is_sent_without_waiting(monkeypatch):
    sent = []
    monkeypatch.setattr(mixing, "send", lambda x, device: sent.append(x.tolist()) or x.to(device))
    erase(torch.zeros(3, 3, 8, 8), np.array([[0, 2, 0, 3], [0, 0, 0, 0], [1, 5, 2, 4]]), 0)
    assert sent == [[0, 2], [[0, 2, 0, 3], [1, 5, 2, 4]]]


# 1. Rewrites, one pixel or one image at a time
def slow_mix(image, other, mix):
    """float64 images [3, H, W], not rounded."""
    if mix.box is None:
        return image * mix.share + other * (1 - mix.share)
    top, bottom, left, right = mix.box
    mixed = image.clone()
    for row in range(top, bottom):
        for column in range(left, right):
            mixed[:, row, column] = other[:, row, column]
    return mixed


def slow_normalise(image):
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (image.float() / 255 - mean[:, None, None]) / std[:, None, None]


def slow_erase(image, box, noise):
    top, bottom, left, right = box
    image = image.clone()
    for row in range(top, bottom):
        for column in range(left, right):
            image[:, row, column] = noise[:, row, column]
    return image


def slow_target(target, other, share, smoothing, classes=3):
    found = [smoothing / classes] * classes
    found[target] += (1 - smoothing) * share
    found[other] += (1 - smoothing) * (1 - share)
    return found


def spy(monkeypatch):
    """What was drawn while a batch was prepared."""
    drawn = {}

    def watch(name, function):
        def call(*args):
            drawn[name] = function(*args)
            drawn[f"{name} with"] = args
            return drawn[name]

        monkeypatch.setattr(mixing, name, call)

    for name in ("draw_mix", "draw_boxes", "erase"):
        watch(name, getattr(mixing, name))
    return drawn


@pytest.mark.parametrize("model", ["cast_small", "cast_deit_small", "vit_conv_small"])
@pytest.mark.parametrize("compat", ["", "published"])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_batch_in_either_order(monkeypatch, model, compat, kind):
    """Default: mix, superpixels, erase. As published: erase, superpixels, mix; then they are not those of the mix."""
    values = {"model": model, "compat": compat, "mixup": 0.8, "cutmix": 1.0, "mix_switch_prob": float(kind == "cutmix")}
    if model != "vit_conv_small":
        values["model_overrides"] = PUBLISHED if compat else POOLED
    preparation = make_preparation(**values)
    drawn = spy(monkeypatch)
    torch.manual_seed(1)
    batch = make_batch(5)
    found = preparation(batch, generator(7))
    mix, boxes = drawn["draw_mix"], drawn["draw_boxes"]
    assert (mix.box is not None) == (kind == "cutmix")
    assert 0 < np.count_nonzero(boxes[:, 1]) < 5  # some are erased, some are not
    noise = iter(torch.randn(5, 3, 64, 64, generator=generator(drawn["erase with"][2])))
    noises = [next(noise) if box[1] else None for box in boxes]

    settings = preparation.network.superpixels.options() if model != "vit_conv_small" else None
    for i in range(5):
        image, other = batch.images[i, 0], batch.images[4 - i, 0]
        if compat:
            first, second = (slow_erase(slow_normalise(batch.images[j, 0]), boxes[j], noises[j]) for j in (i, 4 - i))
            expected, segmented = slow_mix(first.double(), second.double(), mix).float(), None
            if settings:
                segmented = published_bytes(first[None], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "deit")
        else:
            mixed = slow_mix(image.double(), other.double(), mix).round().to(torch.uint8)
            expected, segmented = slow_erase(slow_normalise(mixed), boxes[i], noises[i]), mixed[None]
        torch.testing.assert_close(found.images[i, 0], expected, rtol=1e-6, atol=1e-6)
        target = slow_target(int(batch.targets[i]), int(batch.targets[4 - i]), mix.share, 0.1)
        torch.testing.assert_close(found.targets[i], torch.tensor(target))
        if settings:
            assert torch.equal(found.labels[i], seeds(segmented, 40, **settings)[:, ::8, ::8])
    assert (found.labels is None) == (settings is None)
    if settings and compat:
        assert settings["order"] == "sequential"
        assert settings["iterations"] == (15 if model == "cast_deit_small" else 20)


def test_without_erasing_images_stay_bytes():
    preparation = make_preparation()
    preparation = dataclasses.replace(preparation, config=dataclasses.replace(preparation.config, erasing=0.0))
    found = preparation(make_batch(4), generator())
    assert found.images.dtype == torch.uint8
    assert found.targets.dtype == torch.float32


def test_a_batch_depends_on_the_generator_alone():
    preparation = make_preparation()
    assert len(pickle.dumps(preparation)) < 4000  # for workers: no network in it
    torch.manual_seed(1)
    batch = make_batch(6)
    before = batch.images.clone()
    first = preparation(batch, generator(3))
    torch.rand(5)
    again = pickle.loads(pickle.dumps(preparation))(batch, generator(3))
    for x, y in zip(first, again, strict=True):
        assert torch.equal(x, y)
    assert torch.equal(batch.images, before)
    assert not torch.equal(preparation(batch, generator(4)).images, first.images)


# 2. Parts
def test_mixing_bytes_rounds_to_the_nearest():
    images = photo(2, 16, 16)
    expected = (images.double() * 0.3 + images.flip(0).double() * 0.7).round()
    assert (
        mix_images(images, Mix(0.3)).double() - expected
    ).abs().max() <= 1  # a tie in float32 may be none in float64
    assert ((mix_images(images, Mix(0.3)).double() - expected) != 0).float().mean() < 0.01
    assert torch.equal(mix_images(images, Mix(1.0)), images)


def test_targets():
    found = mix_targets(torch.tensor([0, 2]), 4, 0.2, 0.75)
    torch.testing.assert_close(found[0], torch.tensor([0.65, 0.05, 0.25, 0.05]))
    torch.testing.assert_close(found.sum(1), torch.ones(2))
    assert torch.equal(mix_targets(torch.tensor([1]), 3, 0.0, 1.0), torch.tensor([[0.0, 1.0, 0.0]]))


def test_how_batches_are_mixed():
    random = np.random.default_rng(0)
    config = make_config("supervised", mix_prob=0.8, mix_switch_prob=0.25)
    mixes = [draw_mix(config, 32, 24, random) for _ in range(4000)]
    plain = [m.share == 1.0 and m.box is None for m in mixes]
    cuts = [m for m in mixes if m.box is not None]
    assert np.mean(plain) == pytest.approx(0.2, abs=0.03)
    assert len(cuts) / 4000 == pytest.approx(0.8 * 0.25, abs=0.03)
    for share, (top, bottom, left, right) in cuts:
        assert 0 <= top <= bottom <= 32
        assert 0 <= left <= right <= 24
        assert share == pytest.approx(1 - (bottom - top) * (right - left) / (32 * 24))
    shares = np.array([m.share for m in mixes if m.box is None and m.share != 1.0])
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.01)  # of Beta(0.8, 0.8)


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [({"mixup": 0.0}, {"cutmix"}), ({"cutmix": 0.0}, {"mixup"}), ({"mixup": 0.0, "cutmix": 0.0}, {"none"})],
)
def test_one_kind_alone_or_none(changes, kinds):
    random, config = np.random.default_rng(0), make_config("supervised", **changes)
    mixes = [draw_mix(config, 32, 32, random) for _ in range(50)]
    assert {"cutmix" if m.box else "none" if m.share == 1.0 else "mixup" for m in mixes} == kinds


def test_a_cutmix_box_has_the_area_it_is_drawn_with():
    """Where nothing is cut off, it is 1 - share up to the rounding of its sides."""
    config = make_config("supervised", mixup=0.0)

    class Draws:
        def random(self):
            return 0.0

        def beta(self, a, b):
            return 0.75

        def integers(self, n):
            return n // 2

    assert draw_mix(config, 64, 32, Draws()) == Mix(0.75, (16, 48, 8, 24))


def test_which_rectangles_are_erased():
    height, width = 60, 40
    boxes = draw_boxes(4000, 0.25, height, width, np.random.default_rng(0))
    some = boxes[boxes[:, 1] > 0]
    assert len(some) / 4000 == pytest.approx(0.25, abs=0.03)
    top, bottom, left, right = some.T
    assert top.min() == left.min() == 0
    assert bottom.max() == height
    assert right.max() == width
    rows, columns = bottom - top, right - left
    area, aspect = rows * columns / (height * width), rows / columns
    assert 0.015 < area.min() < 0.025
    assert 0.31 < area.max() < 0.36
    assert 0.2 < aspect.min() < 0.4
    assert 2.5 < aspect.max() < 4.5
    assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.02)
    assert not draw_boxes(50, 0.0, height, width, np.random.default_rng(0)).any()
    assert draw_boxes(50, 1.0, height, width, np.random.default_rng(0))[:, 1].all()


def test_noise_is_standard_normal_and_inside():
    images = torch.full((3, 3, 64, 64), 7.0)
    boxes = np.array([[0, 64, 0, 64], [0, 0, 0, 0], [10, 20, 5, 50]])
    found = erase(images, boxes, 5)
    assert found[0].mean().abs() < 0.05
    assert found[0].std() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(found[1], images[1])
    touched = (found[2] != 7).all(0)
    assert touched[10:20, 5:50].all()
    assert touched.sum() == 10 * 45
    assert (images == 7).all()
