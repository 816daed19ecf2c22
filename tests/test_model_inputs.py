"""What goes into a model: images in all forms, normalisation, superpixels made of them, and what is refused."""

import dataclasses

import pytest
import torch
from small_model import grid_labels, make_model, make_variant, photo
from torch import nn

from cast import SuperpixelConfig
from cast.models import inputs
from cast_kernels import seeds, seeds_count


def test_uint8_is_normalised_inside():
    model = make_model(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    image, labels = photo(2, 64, 64), grid_labels(2, 64, 64)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    expected = model((image.float() / 255 - mean) / std, labels, 16)
    assert torch.equal(model(image, labels, 16), expected)
    assert torch.equal(model(image.permute(0, 2, 3, 1), labels, 16), expected)
    assert torch.equal(model(image.permute(0, 2, 3, 1).contiguous(), labels, 16), expected)


def test_half_precision_rounds_a_normalised_pixel_once():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    reference = make_model()
    exact = (levels.double() / 255 - reference.image_mean.double()) / reference.image_std.double()
    for dtype in (torch.float16, torch.bfloat16):
        model = make_model().to(dtype)
        assert model.pos_embed.dtype == dtype
        seen = []
        model.stem.layers[0].register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        model(levels.repeat(1, 1, 4, 4), grid_labels(1, 64, 64), 16)
        assert seen[0].dtype == dtype
        error = (seen[0][:, :, :16, :16].double() - exact).abs()
        assert (error <= 0.51 * torch.finfo(dtype).eps * exact.abs().clamp(min=2**-6)).all(), dtype


def test_image_statistics_stay_in_float32():
    model = make_model()
    mean, std = model.image_mean.clone(), model.image_std.clone()
    for cast_to in ("half", "bfloat16", "double", "float"):
        getattr(model, cast_to)()
        assert model.image_mean.dtype == model.image_std.dtype == torch.float32
        assert torch.equal(model.image_mean, mean), cast_to
        assert torch.equal(model.image_std, std), cast_to
    wrapped = nn.Sequential(model).half()
    assert torch.equal(wrapped[0].image_std, std)
    assert wrapped[0].cls_token.dtype == torch.float16


def test_double_normalises_in_double():
    model = make_model()
    image = photo(1, 64, 64)
    exact = (image.double() / 255 - model.image_mean.double()) / model.image_std.double()
    found = inputs.normalise(image, model.image_mean, model.image_std, torch.float64)
    assert found.dtype == torch.float64
    assert torch.equal(found, exact)


def test_superpixels_come_from_the_image():
    model = make_model()
    image = photo(2, 64, 96)
    labels = model.superpixels(image)
    count = seeds_count(64, 96, round(25 * 64 * 96 / 64**2))
    assert labels.dtype == torch.int32
    assert labels.shape == (2, 64, 96)
    assert labels.min() >= 0
    assert labels.max() < count
    assert torch.equal(model(image), model(image, labels))
    assert torch.equal(model(image), model(image, labels, count))
    out = model.forward_hierarchy(image)
    assert torch.equal(out.hierarchy.superpixels, labels)
    assert out.hierarchy.num_segments[0] == count
    assert torch.equal(model.superpixels(image.permute(0, 2, 3, 1)), labels)


def test_superpixels_follow_the_settings():
    options = {"bins": 6, "order": "sequential", "iterations": 3, "prior": 4, "num_levels": 3, "double_step": True}
    settings = SuperpixelConfig(num_superpixels=30, **options)
    image = torch.randint(0, 256, (1, 3, 128, 96), dtype=torch.uint8)
    expected = seeds(image, 90, **options)  # 3 times the area
    assert torch.equal(make_model(superpixels=settings).superpixels(image), expected)
    for name in ("bins", "iterations", "prior", "num_levels", "double_step"):
        plain = dataclasses.replace(settings, **{name: getattr(SuperpixelConfig(), name)})  # None: the default of SEEDS
        assert not torch.equal(make_model(superpixels=plain).superpixels(image), expected), name


def test_superpixels_by_default_and_fast():
    image = photo(1, 128, 96)
    expected = {quality: seeds(image, 75, bins=5, order="parallel", quality=quality) for quality in ("best", "fast")}
    settings = SuperpixelConfig(num_superpixels=25, bins=5)
    assert torch.equal(make_model(superpixels=settings).superpixels(image), expected["best"])
    fast = dataclasses.replace(settings, quality="fast")
    assert torch.equal(make_model(superpixels=fast).superpixels(image), expected["fast"])
    assert not torch.equal(expected["best"], expected["fast"])
    assert torch.equal(make_model(superpixels=fast).superpixels(image, stride=8), expected["fast"][:, ::8, ::8])


def test_published_settings():
    assert SuperpixelConfig(9).as_published() == SuperpixelConfig(9, order="sequential", iterations=20)
    fast = SuperpixelConfig(9, bins=5, quality="fast")
    assert fast.as_published() == SuperpixelConfig(9, bins=5, order="sequential", iterations=15)
    assert fast.as_published().as_published() == fast.as_published()
    assert fast.count(64, 64, 16) == 16


def test_superpixels_of_a_normalised_image_are_those_of_the_image():
    model = make_model()
    image = photo(2, 64, 64)
    normalised = inputs.normalise(image, model.image_mean, model.image_std, torch.float32)
    assert torch.equal(model.superpixels(normalised), model.superpixels(image))
    torch.testing.assert_close(model(normalised), model(image))


def test_back_to_uint8_rounds_and_clamps():
    model = make_model()
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    normalised = inputs.normalise(levels, model.image_mean, model.image_std, torch.float32)
    assert torch.equal(inputs.to_uint8(normalised, model.image_mean, model.image_std), levels)
    beyond = inputs.to_uint8(torch.tensor([-90.0, 90.0]).view(1, 1, 1, 2), model.image_mean, model.image_std)
    assert beyond[0, 0, 0].tolist() == [0, 255]


def test_number_of_superpixels_can_be_asked_for():
    model = make_model()
    image = photo(1, 64, 64)
    out = model.forward_hierarchy(image, num_superpixels=64)
    count = seeds_count(64, 64, 64)
    assert out.hierarchy.num_segments[0] == count > seeds_count(64, 64, 25)
    assert torch.equal(out.hierarchy.superpixels, model.superpixels(image, 64))
    again = model.forward_hierarchy(image, model.superpixels(image, 64), num_superpixels=64)
    assert torch.equal(again.logits, out.logits)


def test_too_few_superpixels_say_so():
    model = make_model()
    with pytest.raises(ValueError, match=r"num_clusters\[0\] = 16 superpixels, got 4 for an image of 32 x 32"):
        model(torch.randn(1, 3, 32, 32), grid_labels(1, 32, 32), 4)


@pytest.mark.parametrize(
    ("image", "labels", "error", "message"),
    [
        (torch.zeros(1, 3, 60, 64), (1, 60, 64), ValueError, "multiples of 8"),
        (torch.zeros(1, 3, 0, 64), (1, 0, 64), ValueError, "multiples of 8"),
        (torch.zeros(1, 4, 64, 64), (1, 64, 64), ValueError, r"\[B, 3, H, W\]"),
        (torch.zeros(1, 64, 64, 3), (1, 64, 64), ValueError, "in uint8 also"),
        (torch.zeros(3, 64, 64), (3, 64, 64), ValueError, r"\[B, 3, H, W\]"),
        (torch.zeros(1, 5, 64, 64, dtype=torch.uint8), (1, 64, 64), ValueError, r"\(1, 5, 64, 64\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.int64), (1, 64, 64), TypeError, "uint8 or floating point"),
        (torch.zeros(2, 3, 64, 64), (1, 64, 64), ValueError, r"labels \[2, H, W\]"),
        (torch.zeros(1, 3, 64, 64), (64, 64), ValueError, r"labels \[1, H, W\]"),
    ],
)
def test_rejects_bad_input(image, labels, error, message):
    with pytest.raises(error, match=message):
        make_model()(image, torch.zeros(labels, dtype=torch.int64), 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda image, labels: (image.numpy(), labels, 16), "image to be a torch.Tensor, got numpy.ndarray"),
        (lambda image, labels: (image.tolist(), labels, 16), r"image to be a torch.Tensor, got builtins.list"),
        (lambda image, labels: (image, labels.numpy(), 16), "labels to be a torch.Tensor, got numpy.ndarray"),
        (lambda image, labels: (image, labels, "16"), "num_segments to be an int, got str"),
        (lambda image, labels: (image, labels, 16.0), "num_segments to be an int, got float"),
        (lambda image, labels: (image, labels, True), "num_segments to be an int, got bool"),
    ],
)
def test_rejects_what_is_no_tensor_or_number(arguments, message):
    with pytest.raises(TypeError, match=message):
        make_model()(*arguments(torch.zeros(1, 3, 64, 64), grid_labels(1, 64, 64)))


def test_superpixels_of_an_array_say_what_is_expected():
    with pytest.raises(TypeError, match=r"image to be a torch\.Tensor"):
        make_model().superpixels(photo(1, 64, 64).numpy())


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_need_labels(channels):
    model = make_model(in_chans=channels, mean=(0.5,) * channels, std=(0.2,) * channels)
    image = torch.randint(0, 256, (1, channels, 64, 64), dtype=torch.uint8)
    assert model(image, grid_labels(1, 64, 64), 16).shape == (1, 5)
    for call in (model, model.forward_hierarchy, model.superpixels):
        with pytest.raises(ValueError, match=rf"expected labels: .* RGB .* in_chans={channels}"):
            call(image)


def test_rejects_labels_that_are_no_integers():
    with pytest.raises(TypeError, match="float32"):
        make_model()(torch.zeros(1, 3, 64, 64), torch.zeros(1, 64, 64), 16)


@torch.no_grad()
@pytest.mark.parametrize("name", ["segmentation", "pretrain", "segmenter", None])
@pytest.mark.parametrize(("height", "width"), [(2048, 64), (48, 2048)])
def test_images_of_2048_on_a_side(name, height, width):
    """Not square, with superpixels that the model makes."""
    model = make_variant(name) if name else make_model()
    found = model.forward_hierarchy(photo(1, height, width))
    assert found.logits.isfinite().all()
    count = model.count_superpixels(height, width)
    assert found.hierarchy.num_segments == (count, 16, 8, 4)
    assert found.hierarchy.labels(0).amax() < count
    assert found.hierarchy.label_maps().shape == (1, 4, height, width)
