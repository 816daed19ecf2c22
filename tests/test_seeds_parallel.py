"""Order "parallel" of seeds: against its definition written a second way, and what it promises of every superpixel."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seeds_parallel_oracle import parallel_seeds

from cast_kernels import _ext, rgb_to_lab, seeds, seeds_count, superpixel_metrics, testing
from cast_kernels.seeds_golden import SEEDS_GOLDEN_SIZE, SEEDS_PARALLEL_GOLDEN

OP = torch.ops.cast_kernels.seeds_parallel.default
BLOCKS, HALVES, QUARTERS, WIDE, NARROW = range(5)


def noise(height, width, seed):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def two_colours(height, width, seed):
    return noise(height, width, seed) // 128 * 255


def constant(height, width, seed):
    return np.full((height, width, 3), seed % 256, np.uint8)


def gradient(height, width, seed):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y + seed) % 256], -1).astype(np.uint8)


def checkerboard(height, width, seed):
    y, x = np.mgrid[:height, :width] // (1 + seed % 7)
    return np.repeat(((x + y) % 2 * 255).astype(np.uint8)[..., None], 3, 2)


def discs(height, width, seed):
    return testing.synthetic_image(height, width, seed)[0].numpy()


MAKERS = [noise, two_colours, constant, gradient, checkerboard, discs]


def native(function, image, request, steps=None, *, bins=15, lab=True, stride=1, **options):
    """Call ``seeds_literal`` or ``seeds_parallel`` of the extension; labels [H, W] of one image [H, W, 3]."""
    height, width, _ = image.shape
    pixels = torch.from_numpy(np.ascontiguousarray(image))
    labels = torch.full((-(-height // stride), -(-width // stride)), -1, dtype=torch.int32)
    getattr(_ext.load(), function)(
        pixels.data_ptr(),
        labels.data_ptr(),
        batch=1,
        height=height,
        width=width,
        image_stride=0,
        row_stride=3 * width,
        column_stride=3,
        channel_stride=1,
        num_superpixels=request,
        steps=_ext.load().seeds_steps("best") if steps is None else steps,
        bins=bins,
        lab=lab,
        stride=stride,
        **options,
    )
    return labels


def literal(image, request, steps=None, *, shuffle=0, **options):
    return native("seeds_literal", image, request, steps, shuffle=shuffle, **options)


def fast_path(image, request, steps=None, *, threads=1, **options):
    return native("seeds_parallel", image, request, steps, threads=threads, **options)


def rgb_bins(image, bins=15):
    first, second, third = np.moveaxis(image.astype(np.int64) * bins // 256, -1, 0)
    return (first * bins + second) * bins + third


# The definition, written a second way
@pytest.mark.parametrize("maker", MAKERS, ids=lambda m: m.__name__)
@pytest.mark.parametrize(("size", "request_"), [((13, 15), 1), ((19, 26), 12)], ids=str)
def test_equals_the_oracle(maker, size, request_):
    image = maker(*size, seed=sum(size))
    for quality in ("best", "fast"):
        steps = _ext.load().seeds_steps(quality)
        expected = parallel_seeds(rgb_bins(image), request_, steps)
        found = seeds(torch.from_numpy(image)[None], request_, quality=quality, color="rgb")[0].numpy()
        assert np.array_equal(found, expected), quality
        assert np.array_equal(literal(image, request_, steps, lab=False).numpy(), expected)


@pytest.mark.parametrize("kind", [BLOCKS, HALVES, QUARTERS, WIDE, NARROW])
def test_each_kind_of_sweep_equals_the_oracle(kind):
    """Limits so tight that they bind, and few bins, so that ties occur."""
    image = discs(52, 47, 5)
    steps = [(kind, 3, 90, 110)]
    expected = parallel_seeds(rgb_bins(image, 3), 20, steps)
    assert len(np.unique(expected)) == seeds_count(52, 47, 20)
    assert np.array_equal(fast_path(image, 20, steps, bins=3, lab=False).numpy(), expected)
    assert np.array_equal(literal(image, 20, steps, bins=3, lab=False).numpy(), expected)


def test_sums_beyond_32_bits_equal_the_oracle():
    image = noise(1200, 1200, 0) // 4 + discs(1200, 1200, 1) // 2
    steps = [(BLOCKS, 2, 20, 300)]
    facts = _ext.load().seeds_schedule_facts(1200, 1200, 10, steps)
    assert facts["wide_sums"]
    assert facts["most_pixels"] > 65535  # 32-bit counts
    expected = parallel_seeds(rgb_bins(image), 10, steps)
    assert not np.array_equal(expected, parallel_seeds(rgb_bins(image), 10, []))
    assert np.array_equal(fast_path(image, 10, steps, lab=False).numpy(), expected)


@pytest.mark.parametrize("maker", [constant, two_colours, gradient], ids=lambda m: m.__name__)
def test_ties_of_sums_beyond_32_bits_move_nothing(maker):
    """Fits of exactly the same share, as of one colour, with 64-bit sums; the noise of two colours has other ones."""
    image = maker(1200, 1200, 3) // 128 * 127
    steps = [(BLOCKS, 1, 20, 300)]
    expected = parallel_seeds(rgb_bins(image), 10, steps)
    assert np.array_equal(expected, parallel_seeds(rgb_bins(image), 10, [])) or maker is not constant
    assert np.array_equal(fast_path(image, 10, steps, lab=False).numpy(), expected)
    assert np.array_equal(literal(image, 10, steps, lab=False).numpy(), expected)


@pytest.mark.parametrize(("options", "expected"), SEEDS_PARALLEL_GOLDEN.items(), ids=str)
def test_golden_checksums(options, expected, device):
    image = testing.synthetic_image(*SEEDS_GOLDEN_SIZE)
    assert testing.checksum(seeds(image.to(device), **dict(options))) == expected


# One result, whatever the order of the work, the instruction set, the threads, the batch, the layout
@pytest.mark.parametrize("maker", MAKERS, ids=lambda m: m.__name__)
def test_the_order_of_decisions_and_moves_does_not_matter(maker):
    for size, request, bins in [((64, 75), 60, 15), ((50, 41), 25, 4), ((120, 96), 300, 15)]:
        image = maker(*size, seed=7)
        expected = literal(image, request, bins=bins)
        for shuffle in (1, 2, 3):
            assert torch.equal(literal(image, request, bins=bins, shuffle=shuffle), expected)


SIZES = [  # size, request, bins: each of the three widths of labels and counts; teams of one and of several
    ((13, 13), 1, 15),
    ((97, 131), 60, 15),
    ((64, 63), 20, 40),
    ((14, 400), 100, 15),
    ((300, 260), 700, 15),
    ((420, 400), 10, 5),
]


@pytest.mark.parametrize(("size", "request_", "bins"), SIZES, ids=str)
def test_instruction_sets_and_threads_agree(size, request_, bins, monkeypatch):
    facts = _ext.load().seeds_schedule_facts(*size, request_, _ext.load().seeds_steps("best"))
    assert (facts["most_pixels"] > 65535) == (size == (420, 400))
    levels = _ext.load().build_info()["simd"]
    for maker in (discs, noise):
        image = maker(*size, seed=3)
        expected = literal(image, request_, bins=bins)
        tried = []
        for level in levels:
            monkeypatch.setenv("CAST_KERNELS_SIMD", level)
            try:
                _ext.load().build_info()
            except ValueError:
                continue  # this CPU does not have it
            for threads in (1, 3):
                assert torch.equal(fast_path(image, request_, bins=bins, threads=threads), expected), (level, threads)
            tried.append(level)
        assert "scalar" in tried


def test_threads_and_batch_do_not_matter(device):
    small = torch.cat([testing.synthetic_image(60, 81, seed) for seed in range(5)]).to(device)
    large = torch.cat([testing.synthetic_image(300, 290, seed) for seed in range(2)]).to(device)
    threads = torch.get_num_threads()
    try:
        for images, request in ((small, 40), (large, 120)):
            torch.set_num_threads(1)
            alone = torch.cat([seeds(images[i : i + 1], request) for i in range(len(images))])
            for count in (1, 2, 4, 16):
                torch.set_num_threads(count)
                assert torch.equal(seeds(images, request), alone)
    finally:
        torch.set_num_threads(threads)


def test_layouts_and_strides(device, poison):
    last = torch.cat([testing.synthetic_image(45, 70, seed) for seed in range(2)]).to(device)
    expected = seeds(last, 30)
    first = last.permute(0, 3, 1, 2)
    wide = torch.zeros(4, 90, 140, 4, dtype=torch.uint8, device=device)
    wide[::2, ::2, ::2, :3] = last
    for view in (first, first.contiguous(), wide[::2, ::2, ::2, :3], last.transpose(1, 2).contiguous().transpose(1, 2)):
        assert torch.equal(seeds(view, 30), expected)
    repeated = last[:1].expand(3, -1, -1, -1)
    assert torch.equal(seeds(repeated, 30), expected[:1].expand(3, -1, -1))


@pytest.mark.parametrize("order", ["parallel", "sequential"])
@pytest.mark.parametrize("stride", [1, 2, 3, 8, 17, 100])
def test_stride_takes_every_nth_label(order, stride, device, poison):
    for size in ((64, 64), (61, 83), (300, 260)):
        image = testing.synthetic_image(*size).to(device)
        found = seeds(image, 40, order=order, stride=stride)
        assert torch.equal(found, seeds(image, 40, order=order)[:, ::stride, ::stride])
        assert found.is_contiguous()


def test_lab_is_the_conversion_of_rgb_to_lab(device):
    image = testing.synthetic_image(64, 64).to(device)
    assert torch.equal(seeds(image, 40), seeds(rgb_to_lab(image), 40, color="rgb"))
    assert not torch.equal(seeds(image, 40), seeds(image, 40, color="rgb"))


def test_parallel_and_best_are_the_defaults(device):
    image = testing.synthetic_image(64, 64).to(device)
    best = seeds(image, 40, order="parallel", quality="best")
    assert torch.equal(seeds(image, 40), best)
    assert not torch.equal(seeds(image, 40, quality="fast"), best)
    assert not torch.equal(seeds(image, 40, order="sequential"), best)


# What every superpixel is promised to be
def assert_partition(labels, count):
    found = superpixel_metrics(labels)
    assert labels.unique().tolist() == list(range(count))
    assert found["components"] == count


@settings(max_examples=60, deadline=None)
@given(
    maker=st.sampled_from(MAKERS),
    height=st.integers(13, 70),
    width=st.integers(13, 70),
    seed=st.integers(0, 1000),
    density=st.floats(0, 1),
    bins=st.integers(1, 40),
    quality=st.sampled_from(["best", "fast"]),
    color=st.sampled_from(["lab", "rgb"]),
)
def test_all_labels_are_there_each_in_one_piece(maker, height, width, seed, density, bins, quality, color):
    image = maker(height, width, seed)
    request = 1 + int(density * height * width / 36)
    try:
        count = seeds_count(height, width, request)
    except ValueError:
        return  # refused: test_refuses_impossible_grids
    labels = seeds(torch.from_numpy(image)[None], request, bins=bins, quality=quality, color=color)[0]
    assert_partition(labels, count)
    steps = _ext.load().seeds_steps(quality)
    assert torch.equal(labels, literal(image, request, steps, bins=bins, lab=color == "lab", shuffle=1 + seed))


def test_areas_on_photos(shared_folder):
    """99 % of the superpixels have 0.33 to 1.75 times the mean area."""
    cv2 = pytest.importorskip("cv2")
    unusual, total = 0, 0
    for path in sorted((shared_folder("data") / "photos" / "images").glob("*.jpg"))[::4]:
        image = torch.from_numpy(np.ascontiguousarray(cv2.imread(str(path))[..., ::-1]))[None]
        for quality, bins in (("best", 15), ("fast", 5)):
            labels = seeds(image, 260, quality=quality, bins=bins)
            assert_partition(labels[0], seeds_count(*image.shape[1:3], 260))
            area = labels.flatten().bincount() / (labels.numel() / (labels.max() + 1))
            unusual += ((area < 0.33) | (area > 1.75)).sum().item()
            total += len(area)
    assert unusual <= 0.01 * total


def test_quality_on_photos(shared_folder):
    """Against OpenCV's order at its 20 iterations: means over 10 photos from which the schedules were not chosen."""
    from bench.superpixel_quality import METRICS, measure, photos

    gaps = {"best": [], "fast": []}
    for number, (_, image, truth) in enumerate(photos(shared_folder("data") / "bsds500", 224, 2)):
        if number % 5 != 1:
            continue
        peer = measure(seeds(image, 196, order="sequential"), image, truth)
        for quality, found in gaps.items():
            ours = measure(seeds(image, 196, quality=quality), image, truth)
            assert ours["split"] == ours["empty"] == 0
            found.append([ours[name] - peer[name] for name in METRICS])
    for quality, found in gaps.items():
        gap = dict(zip(METRICS, np.mean(found, 0), strict=True))
        assert gap["BR"] > 0, quality
        assert gap["UE"] < 0, quality
        assert gap["ASA"] > 0, quality
        assert gap["EV"] > 0.005, quality
        assert gap["CO"] > -0.005, quality


# Sizes without a look at the data
def test_no_image_uses_more_bins_than_the_bound():
    """Of all 2^24 colours."""
    channel = torch.arange(256, dtype=torch.uint8)
    lab = rgb_to_lab(torch.cartesian_prod(channel, channel, channel).view(1, 4096, 4096, 3)).view(-1, 3).int()
    reached = ((lab[:, 0] << 16) + (lab[:, 1] << 8) + lab[:, 2]).bincount().nonzero()[:, 0].numpy()
    reached = np.stack([reached >> 16, reached >> 8 & 255, reached & 255], -1)
    bound = _ext.load().seeds_max_bins
    for bins in (2, 15, 40):
        used = np.count_nonzero(np.bincount(rgb_bins(reached, bins)))
        assert bound(4096, 4096, bins, True) == used
        assert bound(4096, 4096, bins, False) == bins**3
        assert bound(2, 3, bins, True) == min(6, used)


def test_more_used_bins_than_bytes_count():
    """Noise with 40 bins: every pixel has a bin of its own, far above what photos use."""
    image = noise(90, 90, 0)
    assert np.unique(rgb_bins(image, 40)).size > 7000
    assert torch.equal(fast_path(image, 80, bins=40, lab=False), literal(image, 80, bins=40, lab=False, shuffle=3))


@pytest.mark.parametrize(("size", "request_"), [((224, 224), 196), ((97, 131), 60), ((13, 29), 10), ((300, 500), 40)])
def test_no_superpixel_outgrows_the_bound(size, request_):
    steps = _ext.load().seeds_steps("best")
    most = _ext.load().seeds_schedule_facts(*size, request_, steps)["most_pixels"]
    for maker in MAKERS:
        area = fast_path(maker(*size, seed=2), request_, steps).flatten().bincount()
        assert area.max().item() <= most


def test_cells_are_halved_while_none_becomes_empty():
    facts = _ext.load().seeds_schedule_facts
    steps = _ext.load().seeds_steps("best")
    assert facts(224, 224, 196, steps)["grids"] == 3
    assert facts(224, 224, 196, steps)["sweeps"] == 19
    assert facts(13, 13, 1, steps)["grids"] == 2  # of 3 and 4 pixels: 1 and 2 after the first halving
    assert facts(13, 13, 1, steps)["sweeps"] == 18


@pytest.mark.parametrize(
    "steps",
    [
        [(5, 1, 40, 160)],
        [(WIDE, 1, 40, 160), (BLOCKS, 1, 40, 160)],
        [(BLOCKS, -1, 40, 160)],
        [(BLOCKS, 1, 101, 160)],
        [(BLOCKS, 1, 40, 99)],
    ],
)
def test_refuses_steps_that_are_none(steps):
    with pytest.raises(ValueError, match=r"sweep|percent"):
        _ext.load().seeds_schedule_facts(64, 64, 20, steps)


# As an op
@pytest.mark.parametrize(
    ("height", "width", "request_"), [(16, 2000, 100), (12, 12, 200), (0, 8, 1), (4000, 4000, 200000)]
)
def test_refuses_impossible_grids(height, width, request_):
    for batch in (1, 0):
        with pytest.raises(ValueError, match=rf"cannot divide an image of {height} x {width} pixels"):
            seeds(torch.zeros(batch, height, width, 3, dtype=torch.uint8), request_)


def test_empty_batch(device):
    labels = seeds(torch.zeros(0, 33, 32, 3, dtype=torch.uint8, device=device), 10, stride=4)
    assert labels.shape == (0, 9, 8)
    assert labels.dtype == torch.int32


def test_opcheck(device):
    image = testing.synthetic_image(16, 18).to(device)
    for view in (image, image.permute(0, 2, 1, 3), image[:0], image.expand(2, -1, -1, -1)):
        torch.library.opcheck(OP, (view, 10, "fast", 15, True, 3))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph(device, dynamic):
    def model(image):
        return seeds(image, 40, quality="fast", stride=2) + 1, torch.zeros(seeds_count(*image.shape[1:3], 40))

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in [(50, 60), (64, 47)]:
        image = testing.synthetic_image(*size).to(device)
        for found, expected in zip(compiled(image), model(image), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"order": "random"}, ValueError, "'parallel', 'sequential'"),
        ({"quality": "good"}, ValueError, "'best', 'fast'"),
        (
            {"order": "sequential", "quality": "best"},
            ValueError,
            'quality=.best. is not an option of order="sequential"',
        ),
        ({"prior": 2}, ValueError, 'prior=2 is not an option of order="parallel"'),
        ({"iterations": 0}, ValueError, "iterations=0"),
        ({"num_levels": 1}, ValueError, "num_levels=1"),
        ({"double_step": False}, ValueError, "double_step=False"),
        ({"bins": 0}, ValueError, "bins"),
        ({"bins": 41}, ValueError, "bins"),
        ({"stride": 0}, ValueError, "stride"),
        ({"stride": 2.0}, TypeError, "stride"),
        ({"color": "hsv"}, ValueError, "color"),
        ({"image": torch.zeros(1, 32, 32, 3)}, TypeError, "uint8"),
    ],
)
def test_rejects_bad_input(change, error, message):
    arguments = {"image": torch.zeros(1, 32, 32, 3, dtype=torch.uint8), "num_superpixels": 20} | change
    with pytest.raises(error, match=message):
        seeds(**arguments)
