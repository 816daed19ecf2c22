"""Random views on Pillow images: equal to torchvision's operations, and drawn as published."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision.transforms as tv
from PIL import Image, ImageFilter
from scipy.stats import kstest
from torchvision.transforms import functional as tvf

from cast.data import augment
from cast.data.augment import CenterCrop, CropAndFlip, DeitAugment, MocoViews, make_transform
from cast.train.config import MocoConfig, ProbeConfig, SupervisedConfig

TRANSFORMS = [MocoViews(16), CropAndFlip(16), CropAndFlip(16, resample="bicubic"), DeitAugment(16), CenterCrop(16)]
RESAMPLING = {"bilinear": tv.InterpolationMode.BILINEAR, "bicubic": tv.InterpolationMode.BICUBIC}


def rng(seed=0):
    return np.random.default_rng(seed)


def photo(width=70, height=50):
    """Smooth colours with some grain, made here."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + 1), np.cos(y / 7), np.sin((x + 2 * y) / 11)]
    noise = rng(1).normal(0, 12, (height, width, 3))
    return Image.fromarray((128 + 90 * np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8))


def often(happened, of, probability):
    """Whether a count is within 4.5 deviations of the binomial distribution."""
    return abs(happened - of * probability) <= 4.5 * (of * probability * (1 - probability)) ** 0.5


class Scripted:
    """A generator whose uniform numbers lie at given shares of their ranges, and whose permutation is given."""

    def __init__(self, shares, order):
        self.shares, self.order = iter(shares), order

    def uniform(self, low, high):
        return low + (high - low) * next(self.shares)

    def permutation(self, count):
        assert count == len(self.order)
        return np.array(self.order)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_bytes_depend_on_the_generator_alone(transform):
    image = photo()
    views = transform(image, rng(3))
    assert views.shape == (2 if isinstance(transform, MocoViews) else 1, 3, 16, 16)
    assert views.dtype == torch.uint8
    assert views.is_contiguous()
    assert torch.equal(views, pickle.loads(pickle.dumps(transform))(np.asarray(image), rng(3)))
    assert torch.equal(views, transform(image, rng(4))) == isinstance(transform, CenterCrop)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 1), (16, 16), (80, 5)])
def test_any_image_works(transform, size):
    gray = Image.new("L", size, 80)
    for seed in range(5):
        views = transform(gray, rng(seed))
        assert views.shape[1:] == (3, 16, 16)
        assert torch.equal(views, transform(gray.convert("RGB"), rng(seed)))


def test_transparency_is_laid_on_white():
    image = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    assert CenterCrop(8)(image).unique().tolist() == [255]


@pytest.mark.parametrize("size", [(100, 100), (131, 70), (20, 300), (3, 2)])
def test_crops_stay_inside_and_within_the_allowed_shapes(size):
    width, height = size
    generator = rng()
    for _ in range(300):
        left, top, right, bottom = augment.crop_box(width, height, (0.08, 1.0), generator)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        w, h = right - left, bottom - top
        assert 3 / 4 * (h - 0.51) - 0.51 <= w <= 4 / 3 * (h + 0.51) + 0.51


def test_crops_are_distributed_as_defined():
    generator = rng()
    boxes = np.array([augment.crop_box(1000, 1000, (0.1, 0.5), generator) for _ in range(500)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    low = np.log(3 / 4)
    for values, start, length in (
        (w * h / 1e6, 0.1, 0.4),  # at half the area every aspect fits: nothing is drawn again
        (np.log(w / h), low, -2 * low),
        (boxes[:, 0] / (1000 - w), 0, 1),
        (boxes[:, 1] / (1000 - h), 0, 1),
    ):
        assert kstest(values, "uniform", (start, length)).pvalue > 1e-3


def test_every_place_is_as_likely():
    generator = rng()
    boxes = np.array([augment.crop_box(10, 10, (0.1, 0.3), generator) for _ in range(2000)])
    for axis in range(2):
        places = boxes[boxes[:, axis + 2] - boxes[:, axis] == 4, axis]
        assert set(places) == set(range(7))
        assert all(often((places == i).sum(), len(places), 1 / 7) for i in range(7))


@pytest.mark.parametrize("size", [(10, 1000), (1000, 10), (100, 90)])
def test_fallback_is_the_centre_as_in_torchvision(size):
    image = Image.new("RGB", size)
    top, left, height, width = tv.RandomResizedCrop.get_params(image, (50.0, 50.0), (3 / 4, 4 / 3))  # never fits
    assert augment.crop_box(*size, (50.0, 50.0), rng()) == (left, top, left + width, top + height)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_crop_is_resized_as_by_torchvision(resample):
    image = photo()
    for seed in range(10):
        left, top, right, bottom = augment.crop_box(*image.size, (0.08, 1.0), rng(seed))
        expected = tvf.resized_crop(image, top, left, bottom - top, right - left, [24, 24], RESAMPLING[resample])
        result = augment.random_resized_crop(image, rng(seed), 24, (0.08, 1.0), resample)
        assert np.array_equal(np.asarray(result), np.asarray(expected))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
@pytest.mark.parametrize("shares", [(0, 1, 0, 1), (1, 0, 1, 0), (0.7, 0.4, 0.9, 0.2)])
def test_jitter_is_torchvisions_operations_in_order(order, shares):
    factors = [0.6 + 0.8 * shares[0], 0.6 + 0.8 * shares[1], 0.8 + 0.4 * shares[2], -0.1 + 0.2 * shares[3]]
    expected = photo()
    for op in order:
        adjust = (tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation, tvf.adjust_hue)[op]
        expected = adjust(expected, factors[op])
    assert np.array_equal(np.asarray(augment.color_jitter(photo(), Scripted(shares, order))), np.asarray(expected))


def test_flip_mirrors_half_of_the_images():
    image = Image.fromarray(np.repeat(np.arange(16, dtype=np.uint8)[None, :, None], 16, 0).repeat(3, 2))
    views = torch.cat([CropAndFlip(16, (1.0, 1.0))(image, rng(seed)) for seed in range(300)])
    rows = views[:, 0, 0].long()
    flipped = rows[:, 0] == 15
    assert torch.equal(rows[~flipped], torch.arange(16).expand_as(rows[~flipped]))
    assert torch.equal(rows[flipped], torch.arange(15, -1, -1).expand_as(rows[flipped]))
    assert often(int(flipped.sum()), 300, 0.5)


def test_solarization_is_of_the_second_view_and_gray_of_both():
    white = Image.new("RGB", (8, 8), (255, 255, 255))  # at least 153 after jitter, so at most 102 when solarized
    dark = torch.stack([MocoViews(8)(white, rng(seed)) for seed in range(300)]).amax((2, 3, 4)) <= 102
    assert not dark[:, 0].any()
    assert often(int(dark[:, 1].sum()), 300, 0.2)

    red = Image.new("RGB", (8, 8), (200, 60, 40))
    views = torch.stack([MocoViews(8)(red, rng(seed)) for seed in range(300)]).int()
    gray = (views.amax(2) == views.amin(2)).all(-1).all(-1)
    assert often(int(gray[:, 0].sum()), 300, 0.2)
    assert often(int(gray[:, 1].sum()), 300, 0.2)


def test_blur_is_of_the_first_view_and_rarely_of_the_second(monkeypatch):
    sigmas = []
    monkeypatch.setattr(ImageFilter, "GaussianBlur", lambda sigma: sigmas.append(sigma) or ImageFilter.BoxBlur(0))
    gray = Image.new("RGB", (8, 8), (128, 128, 128))
    views = MocoViews(8)
    for seed in range(300):
        views._view(gray, rng(seed), *augment.MOCO_VIEWS[0])
    assert len(sigmas) == 300
    assert kstest(sigmas, "uniform", (0.1, 1.9)).pvalue > 1e-3
    sigmas.clear()
    for seed in range(300):
        views._view(gray, rng(seed), *augment.MOCO_VIEWS[1])
    assert often(len(sigmas), 300, 0.1)


def test_jitter_is_applied_to_most_images():
    gray = Image.new("RGB", (8, 8), (100, 100, 100))  # only brightness changes it, and solarization of the other view
    values = np.array([int(MocoViews(8)(gray, rng(seed))[0].max()) for seed in range(600)])
    assert 60 <= values.min() < values.max() <= 140
    changed = values[values != 100] / 100
    assert often(len(changed), 600, 0.8 * 79 / 80)  # one factor in 80 rounds to the same byte
    assert kstest(changed, "uniform", (0.6, 0.8)).pvalue > 1e-4


def test_deit_without_rand_augment_is_crop_and_flip():
    image = photo()
    for seed in range(5):
        expected = CropAndFlip(24, (0.2, 1.0), "bicubic")(image, rng(seed))
        assert torch.equal(DeitAugment(24, (0.2, 1.0), magnitude=0.0)(image, rng(seed)), expected)
    differ = [not torch.equal(DeitAugment(24)(image, rng(s)), DeitAugment(24, magnitude=0.0)(image, rng(s)))
              for s in range(40)]  # fmt: skip
    assert 10 <= sum(differ) < 40  # three in four, less the operations that happen to change nothing


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(70, 50), (33, 90), (32, 32), (7, 9)])
def test_center_crop_is_torchvisions(resample, size):
    image = photo(*size)
    expected = tvf.center_crop(tvf.resize(image, 32 * 256 // 224, RESAMPLING[resample]), [32, 32])
    assert np.array_equal(CenterCrop(32, resample)(image)[0].permute(1, 2, 0).numpy(), np.asarray(expected))


def test_each_task_gets_its_transform():
    moco = MocoConfig(img_size=64, crop_scale=(0.2, 0.9))
    supervised = SupervisedConfig(img_size=64, crop_scale=(0.3, 1), rand_augment=7, rand_augment_std=0.25)
    probe = ProbeConfig(img_size=64, crop_scale=(0.4, 1))
    assert make_transform(moco, train=True) == make_transform(moco, train=False) == MocoViews(64, (0.2, 0.9))
    assert make_transform(supervised, train=True) == DeitAugment(64, (0.3, 1), 7.0, 0.25)
    assert make_transform(supervised, train=False) == CenterCrop(64, "bicubic")
    assert make_transform(probe, train=True) == CropAndFlip(64, (0.4, 1), "bilinear")
    assert make_transform(probe, train=False) == CenterCrop(64, "bilinear")
    assert make_transform(ProbeConfig(img_size=64, augment=False), train=True) == CenterCrop(64, "bilinear")
    with pytest.raises(ValueError, match="expected a task that is moco, supervised or probe, got 'other'"):
        make_transform(SimpleNamespace(task="other"), train=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MocoViews(0), "expected img_size >= 1, got 0"),
        (lambda: CropAndFlip(16, (0.0, 1.0)), r"expected crop_scale .* got \(0.0, 1.0\)"),
        (lambda: DeitAugment(16, (0.9, 0.5)), r"expected crop_scale .* got \(0.9, 0.5\)"),
        (lambda: DeitAugment(16, magnitude=11.0), r"magnitude of RandAugment in \[0, 10\], got 11.0"),
        (lambda: DeitAugment(16, std=-1.0), "deviation of RandAugment's magnitude >= 0, got -1.0"),
        (lambda: CropAndFlip(16, resample="nearest"), "expected resample 'bilinear' or 'bicubic', got 'nearest'"),
        (lambda: CenterCrop(16, "lanczos"), "expected resample 'bilinear' or 'bicubic', got 'lanczos'"),
        (lambda: CenterCrop(17), "multiple of 8, got 17"),
        (lambda: CenterCrop(16)(np.zeros((4, 4, 3))), r"expected an image as uint8 \[H, W, 3\], got float64"),
        (lambda: MocoViews(16)(np.zeros((4, 4), np.uint8), rng()), r"uint8 \[H, W, 3\], got uint8 \[4, 4\]"),
        (lambda: CenterCrop(16)(Image.new("RGB", (1, 17))), "too narrow"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
