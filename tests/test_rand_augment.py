"""RandAugment: each operation does what its name says and equals timm's, and they are drawn as published."""

import pickle
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from PIL.Image import Resampling
from timm.data import auto_augment

from cast.data import rand_augment
from cast.data.rand_augment import FILL, OPS, RandAugment, apply_op
from cast.models.config import IMAGENET_MEAN

GEOMETRIC = ["Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"]
SIGNED = [*GEOMETRIC, "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing"]


def rng(seed=0):
    return np.random.default_rng(seed)


def picture(width=20, height=20):
    return Image.fromarray(rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("level", [0.0, 3.7, 9.0, 9.99])  # at 10, today's Pillow refuses timm's posterization
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_equals_timm(monkeypatch, name, level, sign, resample):
    image = picture(31, 23)
    monkeypatch.setattr(auto_augment.random, "random", lambda: 0.9 if sign < 0 else 0.1)  # > 0.5 negates
    hparams = {"img_mean": FILL, "interpolation": Resampling[resample.upper()]}
    expected = auto_augment.AugmentOp(name, prob=1.0, magnitude=level, hparams=hparams)(image)
    assert np.array_equal(pixels(apply_op(name, image, level, sign, resample)), pixels(expected))


def test_operations_are_timms_increasing_ones():
    assert sorted(OPS) == sorted(auto_augment._RAND_INCREASING_TRANSFORMS)
    assert tuple(round(255 * x) for x in IMAGENET_MEAN) == FILL


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (20, 13)])
def test_size_and_mode_are_kept(name, size):
    for level in (0.0, 10.0):
        for sign in (1, -1):
            result = apply_op(name, picture(*size), level, sign)
            assert (result.size, result.mode) == (size, "RGB")


@pytest.mark.parametrize("name", [*SIGNED, "SolarizeIncreasing", "SolarizeAdd"])
def test_level_0_changes_nothing(name):
    assert np.array_equal(pixels(apply_op(name, picture(), 0.0)), pixels(picture()))


def test_operations_by_value():
    image, values = picture(), pixels(picture())
    assert np.array_equal(pixels(apply_op("Invert", image, 5.0)), 255 - values)
    for level, threshold in ((2.5, 192), (5.0, 128), (10.0, 0)):
        expected = np.where(values < threshold, values, 255 - values)
        assert np.array_equal(pixels(apply_op("SolarizeIncreasing", image, level)), expected)
    for level, added in ((5.0, 55), (10.0, 110)):
        expected = np.where(values < 128, values + added, values)
        assert np.array_equal(pixels(apply_op("SolarizeAdd", image, level)), expected)
    for level, step in ((0.0, 16), (2.5, 32), (9.9, 128), (10.0, 256)):  # 4, 3, 1 and 0 bits are left
        expected = values // step * step
        assert np.array_equal(pixels(apply_op("PosterizeIncreasing", image, level)), expected)


def test_contrast_is_stretched_and_equalized():
    image = Image.fromarray(np.linspace(100, 140, 400).astype(np.uint8).reshape(20, 20)).convert("RGB")
    assert image.getextrema() == ((100, 140),) * 3
    assert apply_op("AutoContrast", image, 5.0).getextrema() == ((0, 255),) * 3
    quarters = Image.fromarray(np.repeat(np.uint8([100, 110, 120, 130]), 2**14).reshape(256, 256)).convert("RGB")
    equalized = pixels(apply_op("Equalize", quarters, 5.0))
    assert np.unique(equalized).tolist() == [0, 85, 171, 255]


def test_enhancements():
    image, values = picture(), pixels(picture())
    for sign, factor in ((1, 1.9), (-1, 0.1)):
        brightness = pixels(apply_op("BrightnessIncreasing", image, 10.0, sign))
        assert abs(brightness - np.minimum(factor * values, 255)).max() <= 1
    for name, spread in (
        ("ContrastIncreasing", lambda x: x.std()),
        ("ColorIncreasing", lambda x: x.std(axis=2).mean()),
        ("SharpnessIncreasing", lambda x: abs(np.diff(x, axis=1)).mean()),
    ):
        less, more = (spread(pixels(apply_op(name, image, 9.0, sign))) for sign in (-1, 1))
        assert less < 0.8 * spread(values)
        assert more > 1.02 * spread(values)


@pytest.mark.parametrize(("name", "axis"), [("TranslateXRel", 1), ("TranslateYRel", 0)])
def test_translation_is_by_up_to_45_percent(name, axis):
    values = np.moveaxis(pixels(picture()), axis, 0)
    left = np.moveaxis(pixels(apply_op(name, picture(), 10.0, 1)), axis, 0)
    right = np.moveaxis(pixels(apply_op(name, picture(), 10.0, -1)), axis, 0)
    assert np.array_equal(left[:11], values[9:])
    assert np.array_equal(right[9:], values[:11])
    assert (left[11:] == FILL).all()
    assert (right[:9] == FILL).all()


def test_rotation_and_shears_move_pixels_the_right_way():
    """A bright spot 20 pixels right of and below the middle ends where the formulas put it."""
    values = np.zeros((81, 81, 3), np.uint8)
    values[58:63, 58:63] = 255

    def where(name):
        y, x = np.nonzero(pixels(apply_op(name, Image.fromarray(values), 10.0))[..., 0] > 200)
        return x.mean() - 40, y.mean() - 40

    cos, sin = np.cos(np.pi / 6), 0.5
    assert where("Rotate") == pytest.approx((20 * cos + 20 * sin, 20 * cos - 20 * sin), abs=0.7)
    assert where("ShearX") == pytest.approx((20 - 0.3 * 60, 20), abs=0.7)  # from the top edge
    assert where("ShearY") == pytest.approx((20, 20 - 0.3 * 60), abs=0.7)


@pytest.fixture
def calls(monkeypatch):
    """Operations that only record their name, strength and filter."""
    found = []

    def recorder(name):
        return lambda image, strength, resample: found.append((name, strength, resample)) or image

    monkeypatch.setattr(rand_augment, "OPS", {name: recorder(name) for name in OPS})
    return found


def test_draws_are_as_published(calls):
    image, generator = picture(), rng()
    counts = []
    for _ in range(1000):
        before = len(calls)
        RandAugment()(image, generator)
        counts.append(len(calls) - before)
    for number, share in ((0, 0.25), (1, 0.5), (2, 0.25)):
        assert abs(counts.count(number) - 1000 * share) < 65
    per_name = Counter(name for name, _, _ in calls)
    assert set(per_name) == set(OPS)
    assert min(per_name.values()) > 30  # 67 on average
    assert max(per_name.values()) < 105
    strengths = np.array([strength for _, strength, _ in calls])
    assert abs((strengths > 0).mean() - 0.5) < 0.08
    levels = 10 * abs(strengths)
    assert levels.max() == 10.0  # cut there: one in 44
    assert abs(np.median(levels) - 9.0) < 0.1
    assert abs(levels[levels < 9].mean() - (9 - 0.5 * (2 / np.pi) ** 0.5)) < 0.1  # half a normal distribution
    assert {resample for _, _, resample in calls} == {Resampling.BICUBIC}


def test_filter_can_be_random(calls):
    generator = rng()
    for _ in range(200):
        RandAugment(resample="random")(picture(), generator)
    bicubic = sum(resample is Resampling.BICUBIC for _, _, resample in calls)
    assert abs(bicubic / len(calls) - 0.5) < 0.17
    assert {resample for _, _, resample in calls} == {Resampling.BICUBIC, Resampling.BILINEAR}


def test_levels_are_cut_at_0_and_do_not_vary_without_a_deviation(calls):
    generator = rng()
    for _ in range(100):
        RandAugment(0.1, 3.0)(picture(), generator)
    levels = [abs(strength) for _, strength, _ in calls]
    assert min(levels) == 0.0
    assert 0.25 < levels.count(0.0) / len(levels) < 0.75
    calls.clear()
    for _ in range(20):
        RandAugment(6.0, 0.0)(picture(), generator)
    assert {abs(strength) for _, strength, _ in calls} == {0.6}


def test_same_generator_same_image():
    transform = pickle.loads(pickle.dumps(RandAugment()))
    results = [pixels(transform(picture(), rng(seed))) for seed in range(12)]
    again = [pixels(RandAugment()(picture(), rng(seed))) for seed in range(12)]
    assert all(map(np.array_equal, results, again))
    assert len({result.tobytes() for result in results}) > 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"magnitude": -1.0}, r"expected the magnitude of RandAugment in \[0, 10\], got -1.0"),
        ({"magnitude": float("nan")}, r"\[0, 10\], got nan"),
        ({"std": float("inf")}, "expected a finite deviation of RandAugment's magnitude >= 0, got inf"),
        ({"resample": "nearest"}, "expected resample 'bilinear', 'bicubic' or 'random', got 'nearest'"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandAugment(**arguments)
