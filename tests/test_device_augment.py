"""Views of whole batches: Pillow's operations to the rounding, drawn as published, without asking the device."""

import itertools
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter
from scipy.stats import kstest

from cast.data import augment
from cast.data import device_image_ops as ops
from cast.data.device_augment import (
    DeviceCenterCrop,
    DeviceCropAndFlip,
    DeviceDeit,
    DeviceMocoViews,
    draw_boxes,
    draw_jitter,
    make_device_transform,
)
from cast.train.config import MocoConfig, ProbeConfig, SupervisedConfig

TRANSFORMS = [
    DeviceMocoViews(16),
    DeviceCropAndFlip(16),
    DeviceCropAndFlip(16, resample="bicubic"),
    DeviceDeit(16),
    DeviceCenterCrop(16),
]
ENHANCE = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def photos(count=4, side=40, noise=10.0):
    """Smooth pictures with some grain, uint8 [count, 3, side, side]."""
    y, x = np.mgrid[:side, :side]
    rng = np.random.default_rng(7)
    waves = [[np.sin(x / a + y / b + c) for a, b, c in rng.uniform(3, 12, (3, 3))] for _ in range(count)]
    pixels = 128 + 100 * np.array(waves) + rng.normal(0, noise, (count, 3, side, side))
    return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))


def to_pil(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def from_pil(images):
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def off(result, images):
    """Largest and mean difference to Pillow's results; values have to be whole numbers of bytes."""
    result = result.cpu()
    assert torch.equal(result, result.to(torch.uint8).to(result.dtype))
    difference = (result.double() - from_pil(images).double()).abs()
    return difference.max().item(), difference.mean().item()


def often(happened, of, probability):
    return abs(int(happened) - of * probability) <= 4.5 * (of * probability * (1 - probability)) ** 0.5


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [16, 40, 57])
def test_crops_are_resized_and_mirrored_as_by_pillow(resample, size, device):
    images = torch.cat([photos(), torch.randint(0, 256, (1, 3, 40, 40), generator=seeded(), dtype=torch.uint8)])
    boxes = torch.tensor([[0, 0, 40, 40], [3, 9, 30, 31], [39, 5, 1, 2], [20, 0, 11, 14], [7, 6, 33, 30]])
    flips = torch.tensor([False, True, True, False, True])
    result = ops.resize_boxes(images.to(device), boxes.float().to(device), flips.to(device), size, resample)
    expected = []
    for image, (left, top, width, height), flip in zip(images, boxes.tolist(), flips, strict=True):
        crop = to_pil(image).crop((left, top, left + width, top + height))
        view = crop.resize((size, size), Image.Resampling[resample.upper()])
        expected.append(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else view)
    largest, mean = off(result, expected)
    assert largest <= 1
    assert mean < 0.02


def test_gray_is_pillows_exactly(device):
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=seeded(), dtype=torch.uint8)
    images[0, :, 0, 0] = 255
    gray = ops.to_gray(images.float().to(device)).expand(-1, 3, -1, -1)
    assert off(gray, [to_pil(image).convert("L").convert("RGB") for image in images]) == (0, 0)


def jittered(image, factors, hue, order):
    for op in order:
        if op == 3:
            image = augment.shift_hue(image, hue / 255) if hue else image
        else:
            image = ENHANCE[op](image).enhance(factors[op])
    return image


@pytest.mark.parametrize("op", range(3))
def test_blends_are_pillows(op, device):
    images = photos(7)
    chosen = torch.tensor([0.6, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4])
    factors = torch.tensor([[1.0, 1.0, 1.0, 0.0]]).repeat(7, 1)
    factors[:, op] = chosen
    order = torch.arange(4).expand(7, 4)
    result = ops.color_jitter(images.float().to(device), factors.to(device), order.to(device))
    expected = [ENHANCE[op](to_pil(x)).enhance(f) for x, f in zip(images, chosen.tolist(), strict=True)]
    largest, mean = off(result, expected)
    assert largest <= 1
    assert mean < 0.01
    assert torch.equal(result[3].cpu(), images[3].float())


def test_hue_is_pillows(device):
    shifts = torch.tensor([-25, -13, -1, 0, 1, 7, 25])
    images = torch.randint(0, 256, (7, 3, 64, 64), generator=seeded(), dtype=torch.uint8)
    images[:, 1:, 0] = images[:, :1, 0]  # a row of gray
    result = ops.shift_hue(images.float().to(device), ops.per_image(shifts.float().to(device)))
    largest, mean = off(result, [jittered(to_pil(x), (), s, [3]) for x, s in zip(images, shifts.tolist(), strict=True)])
    assert mean < 0.01
    assert largest <= 7  # a step of the hue, where float32 falls on its other side
    assert torch.equal(result[3].cpu(), images[3].float())


def test_every_order_of_jitter(device):
    orders = torch.tensor(list(itertools.permutations(range(4))))
    images = photos(24, noise=5.0)
    factors, _ = draw_jitter(24, seeded(1))
    factors = factors.float()
    result = ops.color_jitter(images.float().to(device), factors.to(device), orders.to(device))
    expected = [
        jittered(to_pil(image), f[:3], int(f[3]), order)
        for image, f, order in zip(images, factors.tolist(), orders.tolist(), strict=True)
    ]
    _, mean = off(result, expected)
    assert mean < 0.1
    other, _ = draw_jitter(24, seeded(2))
    moved = ops.color_jitter(images.float().to(device), other.to(device), orders.to(device))
    assert off(moved, expected)[1] > 5  # the bound above is one of agreement


def test_blur_is_pillows(device):
    # not 1 and 2, whose weights of 1/6 and 1/10 often give half a level, which the two round differently
    sigma = torch.tensor([0.0, 0.1, 0.3, 0.7, 1.03, 1.4, 1.7, 1.99], dtype=torch.float64)
    images = photos(8)
    result = ops.gaussian_blur(images.float().to(device), ops.blur_boxes(sigma).to(device))
    blurred = [to_pil(x).filter(ImageFilter.GaussianBlur(s)) for x, s in zip(images, sigma.tolist(), strict=True)]
    largest, mean = off(result, blurred)
    assert largest <= 1
    assert mean < 0.02
    assert torch.equal(result[0].cpu(), images[0].float())


def test_three_boxes_have_the_variance_of_the_blur():
    sigma = torch.linspace(0.0, 2.0, 41, dtype=torch.float64)
    boxes = ops.blur_boxes(sigma).double()
    place = torch.arange(-2, 3)
    torch.testing.assert_close(boxes.sum(1), torch.ones(41, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(3 * (boxes * place**2).sum(1), sigma**2, rtol=0, atol=1e-6)
    assert torch.equal(boxes, boxes.flip(1))
    assert (boxes.diff(dim=1)[:, :2] >= 0).all()


@pytest.mark.parametrize("side", [1, 2, 40, 500])
def test_boxes_stay_inside(side):
    left, top, width, height = draw_boxes(1000, side, (0.08, 1.0), seeded()).unbind(1)
    assert torch.equal(left, left.round())
    assert torch.equal(width, width.round())
    assert min(left.min(), top.min()) >= 0
    assert min(width.min(), height.min()) >= 1
    assert max((left + width).max(), (top + height).max()) == side
    assert (width <= 4 / 3 * (height + 0.51) + 0.51).all()
    assert (height <= 4 / 3 * (width + 0.51) + 0.51).all()


def test_boxes_are_distributed_as_on_single_images():
    left, top, width, height = draw_boxes(2000, 1000, (0.1, 0.5), seeded()).double().unbind(1)
    low = math.log(3 / 4)
    for values, start, length in (
        (width * height / 1e6, 0.1, 0.4),
        (torch.log(width / height), low, -2 * low),
        (left / (1000 - width), 0, 1),
        (top / (1000 - height), 0, 1),
    ):
        assert kstest(values.numpy(), "uniform", (start, length)).pvalue > 1e-3
    # with areas up to all of the image, where draws that do not fit are repeated, compare with the other rule
    generator = np.random.default_rng(0)
    single = np.array([augment.crop_box(300, 300, (0.08, 1.0), generator) for _ in range(2000)])
    boxes = draw_boxes(2000, 300, (0.08, 1.0), seeded(1)).numpy()
    for a, b in ((boxes[:, 2], single[:, 2] - single[:, 0]), (boxes[:, 0], single[:, 0])):
        assert kstest(a, b).pvalue > 1e-3


def test_every_place_is_as_likely():
    left, top, width, height = draw_boxes(4000, 10, (0.1, 0.3), seeded()).unbind(1)
    for start, length in ((left, width), (top, height)):
        places = start[length == 4]
        assert places.unique().tolist() == [0, 1, 2, 3, 4, 5, 6]
        assert all(often((places == i).sum(), len(places), 1 / 7) for i in range(7))


def test_no_box_fits_into_a_square_but_itself():
    assert (draw_boxes(50, 200, (1.0, 1.0), seeded())[:, 2:] >= 199).all()


def test_jitter_is_drawn_as_published():
    factors, order = draw_jitter(4000, seeded())
    none = (factors == torch.tensor([1.0, 1.0, 1.0, 0.0])).all(1)
    assert often(none.sum(), 4000, 0.2)
    rest = factors[~none].double().numpy()
    for values, half in zip(rest[:, :3].T, (0.4, 0.4, 0.2), strict=True):
        assert kstest(values, "uniform", (1 - half, 2 * half)).pvalue > 1e-3
    assert set(rest[:, 3]) == set(range(-25, 26))
    counts = torch.unique(order, dim=0, return_counts=True)[1]
    assert len(counts) == 24
    assert all(often(n, 4000, 1 / 24) for n in counts)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_bytes_depend_on_the_generator_alone(transform, device):
    images = photos(6).to(device)
    views = transform(images, seeded(3))
    assert views.shape == (6, 2 if isinstance(transform, DeviceMocoViews) else 1, 3, 16, 16)
    assert (views.dtype, views.device) == (torch.uint8, images.device)
    assert torch.equal(views, pickle.loads(pickle.dumps(transform))(images, seeded(3)))
    assert torch.equal(views, transform(images, seeded(4))) == isinstance(transform, DeviceCenterCrop)
    assert torch.equal(transform(images[:1], seeded(3))[0], views[0]) == isinstance(transform, DeviceCenterCrop)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("side", [1, 3, 16, 50])
def test_images_of_one_colour_stay_so(transform, side, device):
    """Nothing leaks in from beside a crop, from the border, or from another image."""
    colours = torch.randint(0, 256, (12, 3, 1, 1), generator=seeded(), dtype=torch.uint8).to(device)
    views = transform(colours.expand(12, 3, side, side), seeded())
    assert torch.equal(views.amin((3, 4)), views.amax((3, 4)))
    if not isinstance(transform, DeviceMocoViews):
        assert torch.equal(views[:, 0, :, 0, 0], colours.flatten(1))


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_nothing_waits_for_the_device(transform, device):
    """Tensors without values pass, so shapes do not depend on them and nothing is copied back; nor is it on a GPU."""
    images = torch.empty(4, 3, 24, 24, dtype=torch.uint8, device="meta")
    assert transform(images, seeded()).shape[2:] == (3, 16, 16)
    if device == "cuda":
        images = photos().to(device)
        torch.cuda.set_sync_debug_mode("error")
        try:
            transform(images, seeded())
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_flips_and_views_are_drawn_as_published(device):
    ramp = torch.arange(16, dtype=torch.uint8, device=device).expand(600, 3, 16, 16)
    rows = DeviceCropAndFlip(16, (1.0, 1.0))(ramp, seeded())[:, 0, 0, 0].int()
    assert often((rows[:, 0] > rows[:, -1]).sum(), 600, 0.5)

    white = torch.full((600, 3, 8, 8), 255, dtype=torch.uint8, device=device)
    dark = DeviceMocoViews(8)(white, seeded()).amax((2, 3, 4)) <= 102
    assert not dark[:, 0].any()
    assert often(dark[:, 1].sum(), 600, 0.2)

    red = torch.tensor([200, 60, 40], dtype=torch.uint8, device=device)[:, None, None].expand(600, 3, 8, 8)
    views = DeviceMocoViews(8)(red, seeded(1))
    gray = (views.amax(2) == views.amin(2)).all(-1).all(-1).sum(0)
    assert often(gray[0], 600, 0.2)
    assert often(gray[1], 600, 0.2)

    board = (torch.arange(16)[:, None] + torch.arange(16)).remainder(2).mul(40).add(60).to(torch.uint8).to(device)
    views = DeviceMocoViews(16, (1.0, 1.0))(board.expand(600, 3, 16, 16), seeded(2))
    values = (views[:, :, 0].flatten(2).sort().values.int().diff() > 0).sum(-1) + 1
    sharp = (values == 2).sum(0)  # blurred, it has other values near the border, unless sigma is close to 0.1
    assert sharp[0] < 0.1 * 600
    assert often(sharp[1], 600, 0.9)


def test_whole_views_agree_with_pillow_on_average(device):
    """Not the same draws, so compare the mean and spread of many views of one image."""
    image = photos(1, side=64)
    batch = DeviceMocoViews(16)(image.expand(400, 3, 64, 64).to(device), seeded()).cpu().double()
    single = [augment.MocoViews(16)(to_pil(image[0]), np.random.default_rng(seed)) for seed in range(400)]
    single = torch.stack(single).double()
    for statistic in (lambda x: x.mean((2, 3, 4)), lambda x: x.std((3, 4)).mean(2)):
        for view in range(2):
            assert kstest(statistic(batch)[:, view].numpy(), statistic(single)[:, view].numpy()).pvalue > 1e-3


def test_center_crop_is_the_whole_square(device):
    images = photos()
    assert torch.equal(DeviceCenterCrop(40)(images.to(device))[:, 0].cpu(), images)
    result = DeviceCenterCrop(24, "bicubic")(images.to(device), seeded())[:, 0]
    assert off(result, [to_pil(x).resize((24, 24), Image.Resampling.BICUBIC) for x in images])[0] <= 2


def test_each_task_gets_its_transform():
    moco = MocoConfig(img_size=64, crop_scale=(0.2, 0.9))
    supervised = SupervisedConfig(img_size=64, crop_scale=(0.3, 1), rand_augment=0)
    probe = ProbeConfig(img_size=64, crop_scale=(0.4, 1))
    expected = DeviceMocoViews(64, (0.2, 0.9))
    assert make_device_transform(moco, train=True) == make_device_transform(moco, train=False) == expected
    assert make_device_transform(supervised, train=True) == DeviceDeit(64, (0.3, 1))
    assert DeviceDeit(64).resample == "bicubic"
    assert make_device_transform(supervised, train=False) == DeviceCenterCrop(64, "bicubic")
    assert make_device_transform(probe, train=True) == DeviceCropAndFlip(64, (0.4, 1), "bilinear")
    assert make_device_transform(probe, train=False) == DeviceCenterCrop(64, "bilinear")
    probe = ProbeConfig(img_size=64, augment=False)
    assert make_device_transform(probe, train=True) == DeviceCenterCrop(64, "bilinear")
    with pytest.raises(ValueError, match=r'expected rand_augment = 0 with cache="device".*got 9.0'):
        make_device_transform(SupervisedConfig(), train=True)
    with pytest.raises(ValueError, match="expected a task that is moco, supervised or probe, got 'other'"):
        make_device_transform(SimpleNamespace(task="other"), train=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DeviceMocoViews(0), "expected img_size >= 1, got 0"),
        (lambda: DeviceCropAndFlip(16, (0.5, 0.4)), "expected crop_scale"),
        (lambda: DeviceCenterCrop(16, "nearest"), "expected resample 'bilinear' or 'bicubic', got 'nearest'"),
        (lambda: DeviceMocoViews(8)(torch.zeros(2, 3, 8, 8), seeded()), r"uint8 \[B, 3, R, R\], got torch.float32"),
        (lambda: DeviceCropAndFlip(8)(photos()[:, :, 1:], seeded()), r"square images.*got .*\[4, 3, 39, 40\]"),
        (lambda: DeviceCenterCrop(8)(photos()[:, :1]), r"got .*\[4, 1, 40, 40\]"),
        (
            lambda: DeviceMocoViews(8)(photos(), SimpleNamespace(device=torch.device("cuda"))),
            "expected a generator on the CPU, got one on cuda",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
