import functools
import math

import numpy as np
import pytest
import torch

from cast_kernels import _ext, rgb_to_lab, seeds_count, testing
from cast_kernels import seeds as seeds_in_any_order
from cast_kernels.seeds_golden import SEEDS_GOLDEN, SEEDS_GOLDEN_SIZE

OP = torch.ops.cast_kernels.seeds_sequential.default

seeds = functools.partial(seeds_in_any_order, order="sequential")

OPTIONS = [
    {"num_superpixels": 200},
    {"num_superpixels": 220, "bins": 5, "iterations": 15},
    {"num_superpixels": 100, "prior": 0, "iterations": 3},
    {"num_superpixels": 100, "prior": 1, "bins": 1, "iterations": 4},
    {"num_superpixels": 150, "prior": 3, "num_levels": 2, "double_step": True},
    {"num_superpixels": 50, "prior": 4, "num_levels": 3, "bins": 8, "color": "rgb"},
    {"num_superpixels": 60, "prior": 5, "num_levels": 4, "iterations": 1, "double_step": True},
    {"num_superpixels": 20, "num_levels": 5, "bins": 20, "iterations": 7},
    {"num_superpixels": 30, "iterations": 0},
]
SIZES = [(64, 64), (101, 67), (41, 160), (224, 224)]


def noise(height, width, seed):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def binary(height, width, seed):
    return noise(height, width, seed) // 128 * 255


def blocky(height, width, seed):
    edge = 2 + seed % 9
    small = noise(height // edge + 1, width // edge + 1, seed)
    return np.ascontiguousarray(small.repeat(edge, 0).repeat(edge, 1)[:height, :width])


def gradient(height, width, seed):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y + seed) % 256], -1).astype(np.uint8)


def discs(height, width, seed):
    return testing.synthetic_image(height, width, seed)[0].numpy()


MAKERS = [noise, binary, blocky, gradient, discs]


def opencv(image, num_superpixels, bins=15, prior=2, iterations=20, num_levels=1, double_step=False, color="lab"):
    """Labels [H, W] and the count that OpenCV gives."""
    cv2 = pytest.importorskip("cv2")
    height, width, _ = image.shape
    segmenter = cv2.ximgproc.createSuperpixelSEEDS(
        width, height, 3, num_superpixels, num_levels, prior, bins, double_step
    )
    segmenter.iterate(cv2.cvtColor(image, cv2.COLOR_RGB2LAB) if color == "lab" else image, iterations)
    return torch.from_numpy(segmenter.getLabels()), segmenter.getNumberOfSuperpixels()


def assert_equals_opencv(image, num_superpixels, **options):
    labels = seeds(torch.from_numpy(image)[None], num_superpixels, **options)  # first: raises where OpenCV would crash
    expected, count = opencv(image, num_superpixels, **options)
    different = (labels[0] != expected).sum().item()
    assert different == 0, f"{different} of {expected.numel()} labels differ for {options}"
    assert seeds_count(*image.shape[:2], num_superpixels, options.get("num_levels", 1)) == count


# Equality with OpenCV
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("maker", MAKERS, ids=lambda m: m.__name__)
def test_equals_opencv(maker, size, options, poison):
    assert_equals_opencv(maker(*size, seed=sum(size)), **options)


@pytest.mark.parametrize("folder", ["photos", "bsds500"])
def test_equals_opencv_on_photos(shared_folder, folder):
    """Native sizes, each photo with the next set of options."""
    cv2 = pytest.importorskip("cv2")
    paths = sorted((shared_folder("data") / folder / "images").glob("*.jpg"))[:: 2 if folder == "photos" else 4]
    assert len(paths) >= 18
    for number, path in enumerate(paths):
        image = np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])
        assert_equals_opencv(image, **OPTIONS[number % len(OPTIONS)])


@pytest.mark.parametrize(("size", "request_"), [(224, 196), (512, 1024)])
def test_equals_opencv_at_the_sizes_of_the_models(shared_folder, size, request_):
    cv2 = pytest.importorskip("cv2")
    for path in sorted((shared_folder("data") / "photos" / "images").glob("*.jpg"))[: 12 if size == 224 else 3]:
        image = cv2.resize(cv2.imread(str(path))[..., ::-1], (size, size), interpolation=cv2.INTER_AREA)
        assert_equals_opencv(image, request_)
        assert_equals_opencv(image, request_, bins=5, iterations=15)


@pytest.mark.parametrize("seed", range(12))
def test_equals_opencv_at_random(seed):
    """Random sizes down to the smallest, random options; ten runs each."""
    rng = np.random.default_rng(seed)
    runs = 0
    while runs < 10:
        height, width = (int(v) for v in np.exp(rng.uniform(math.log(7), math.log(150), 2)))
        request = int(rng.integers(1, 11 + height * width // 36))
        options = {
            "bins": int(rng.integers(1, 25)),
            "prior": int(rng.integers(0, 6)),
            "iterations": int(rng.integers(0, 21)),
            "num_levels": int(rng.integers(1, 6)),
            "double_step": bool(rng.integers(2)),
            "color": ("lab", "rgb")[rng.integers(2)],
        }
        try:
            seeds_count(height, width, request, options["num_levels"])
        except ValueError:
            continue  # OpenCV would hang or crash: see test_refuses_impossible_grids
        assert_equals_opencv(MAKERS[rng.integers(5)](height, width, int(rng.integers(1000))), request, **options)
        runs += 1


def test_sums_beyond_float_precision():
    """Blocks of 90,000 pixels: the products of counts pass 2^24 and the order of OpenCV's sum may matter."""
    image = noise(1200, 1200, 0) // 4 + discs(1200, 1200, 1) // 2
    assert_equals_opencv(image, 10, iterations=1, num_levels=3)


@pytest.mark.parametrize(("options", "expected"), SEEDS_GOLDEN.items(), ids=str)
def test_golden_checksums(options, expected, device):
    """Equality with OpenCV, also where it is not installed: the recorded labels were equal to its own."""
    image = testing.synthetic_image(*SEEDS_GOLDEN_SIZE)
    assert testing.checksum(seeds(image.to(device), **dict(options))) == expected


def test_golden_checksums_are_those_of_opencv():
    image = testing.synthetic_image(*SEEDS_GOLDEN_SIZE)[0].numpy()
    for options, expected in SEEDS_GOLDEN.items():
        assert testing.checksum(opencv(image, **dict(options))[0]) == expected


# The count and the sizes that are refused
@pytest.mark.parametrize(
    ("height", "width", "request_", "count"),
    [
        (224, 224, 196, 196),
        (512, 512, 1024, 1024),
        (512, 512, 196, 169),
        (224, 224, 576, 484),
        (224, 224, 1024, 784),
        (224, 224, 1, 4),
        (64, 64, 196, 100),
        (333, 500, 196, 150),
        (321, 481, 200, 150),
        (481, 321, 200, 160),
        (13, 13, 1, 4),
    ],
)
def test_count(height, width, request_, count):
    assert seeds_count(height, width, request_) == count


def test_count_equals_the_native_grid():
    """The Python arithmetic and that of csrc agree on the count and on what is refused."""
    native = _ext.load().seeds_count
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(5000):
        height, width = (int(v) for v in np.exp(rng.uniform(0, math.log(3000), 2)))
        request = int(np.exp(rng.uniform(0, math.log(1 + height * width))))
        levels = int(rng.integers(1, 40))
        try:
            count = native(height, width, request, levels)
        except ValueError:
            refused += 1
            with pytest.raises(ValueError, match="cannot divide"):
                seeds_count(height, width, request, levels)
        else:
            assert seeds_count(height, width, request, levels) == count, (height, width, request, levels)
    assert 500 < refused < 4500


@pytest.mark.parametrize(
    ("height", "width", "request_"),
    [
        (16, 2000, 100),  # no row, or no column: OpenCV crashes
        (2000, 16, 100),
        (1, 224, 196),
        (224, 1, 196),
        (12, 12, 200),  # blocks below one pixel: OpenCV hangs
        (30, 30, 2000),
        (224, 224, 100000),
        (2, 2, 1),
        (10, 10, 100),  # superpixels of one pixel: OpenCV crashes, or returns one label
        (5, 5, 1),
        (40, 40, 1600),
        (3, 3, 1),
        (224, 224, 50176),
        (14, 14, 196),
        (41, 264, 16),  # no whole superpixel: OpenCV crashes
        (1, 1, 1),
        (12, 12, 1),  # superpixels of 4 x 4 pixels: OpenCV leaves some without a pixel
        (56, 56, 196),
        (224, 224, 3136),
        (4000, 4000, 200000),  # more labels than 16 bits hold
    ],
)
def test_refuses_impossible_grids(height, width, request_):
    image = torch.zeros(1, height, width, 3, dtype=torch.uint8)
    for batch in (image, image[:0]):
        with pytest.raises(ValueError, match=rf"cannot divide an image of {height} x {width} pixels"):
            seeds(batch, request_)
    with pytest.raises(ValueError, match=rf"cannot divide an image of {height} x {width} pixels"):
        seeds_count(height, width, request_)


@pytest.mark.parametrize("maker", MAKERS, ids=lambda m: m.__name__)
def test_every_label_is_there_down_to_the_smallest(maker):
    for size, request in [((13, 13), 1), ((13, 27), 20), ((37, 49), 48), ((64, 64), 110), ((96, 80), 200)]:
        labels = seeds(torch.from_numpy(maker(*size, seed=3))[None], request)
        assert labels.unique().tolist() == list(range(seeds_count(*size, request)))


def test_refuses_empty_images():
    for shape in [(1, 0, 8, 3), (1, 8, 0, 3), (0, 0, 0, 3)]:
        with pytest.raises(ValueError, match="cannot divide"):
            seeds(torch.zeros(shape, dtype=torch.uint8), 10)


# Same labels whatever the instruction set, the threads, the layout
@pytest.mark.parametrize("size", [(13, 13), (13, 15), (8, 40), (40, 8), (64, 63), (97, 131), (33, 200)], ids=str)
def test_instruction_sets_agree(size, monkeypatch):
    image = torch.from_numpy(np.stack([noise(*size, 1), discs(*size, 1), binary(*size, 1)]))
    scalar, *others = _ext.load().build_info()["simd"]
    assert scalar == "scalar"
    monkeypatch.setenv("CAST_KERNELS_SIMD", "scalar")
    request = max(1, size[0] * size[1] // 80)
    expected = [seeds(image, request, prior=prior) for prior in (0, 2, 5)]
    tried = []
    for level in others:
        monkeypatch.setenv("CAST_KERNELS_SIMD", level)
        try:
            labels = [seeds(image, request, prior=prior) for prior in (0, 2, 5)]
        except ValueError as error:
            if "this CPU does not support it" not in str(error):
                raise
            continue
        tried.append(level)
        assert all(torch.equal(a, b) for a, b in zip(labels, expected, strict=True)), level
    if not tried:
        pytest.skip("this CPU has the scalar instruction set alone")


def test_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv("CAST_KERNELS_SIMD", "sse9")
    with pytest.raises(ValueError, match="CAST_KERNELS_SIMD"):
        seeds(torch.zeros(1, 16, 16, 3, dtype=torch.uint8), 10)


def test_build_info_names_the_level_in_use(monkeypatch):
    info = _ext.load().build_info()
    assert info["simd_used"] in info["simd"]
    monkeypatch.setenv("CAST_KERNELS_SIMD", "scalar")
    assert _ext.load().build_info()["simd_used"] == "scalar"


def test_threads_and_batch_do_not_matter(device):
    image = torch.cat([testing.synthetic_image(60, 81, seed) for seed in range(7)]).to(device)
    alone = torch.cat([seeds(image[i : i + 1], 40) for i in range(7)])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5, 16):
            torch.set_num_threads(count)
            assert torch.equal(seeds(image, 40), alone)
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


def test_channels_last_win_where_both_fit():
    with pytest.raises(ValueError, match="3 x 21 pixels"):  # not 21 x 3; no image of 3 rows can be divided
        seeds(torch.zeros(1, 3, 21, 3, dtype=torch.uint8), 10)


def test_empty_batch(device):
    labels = seeds(torch.zeros(0, 32, 32, 3, dtype=torch.uint8, device=device), 10)
    assert labels.shape == (0, 32, 32)
    assert labels.dtype == torch.int32


def test_lab_is_the_conversion_of_rgb_to_lab(device):
    image = testing.synthetic_image(64, 64).to(device)
    assert torch.equal(seeds(image, 40), seeds(rgb_to_lab(image), 40, color="rgb"))


def test_every_label_is_there(device):
    """Superpixels of 6 pixels and more: labels 0 to N - 1, none missing, the frame a copy of its neighbours."""
    image = torch.from_numpy(np.stack([maker(96, 120, 3) for maker in MAKERS])).to(device)
    labels = seeds(image, 120)
    count = seeds_count(96, 120, 120)
    assert labels.dtype == torch.int32
    assert labels.is_contiguous()
    for one in labels:
        assert one.unique().tolist() == list(range(count))
    assert torch.equal(labels[:, :, 0], labels[:, :, 1])
    assert torch.equal(labels[:, -1, 1:-1], labels[:, -2, 1:-1])


def test_no_iterations_leave_whole_blocks():
    labels = seeds(testing.synthetic_image(64, 64), 64, iterations=0)[0]
    blocks = labels.view(16, 4, 16, 4)
    assert (blocks == blocks[:, :1, :, :1]).all()


# As an op
def test_opcheck(device):
    image = testing.synthetic_image(16, 18).to(device)
    for view in (image, image.permute(0, 2, 1, 3), image[:0], image.expand(2, -1, -1, -1)):
        torch.library.opcheck(OP, (view, 10, 15, 2, 2, 1, False, True, 1))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph(device, dynamic):
    def model(image):
        labels = seeds(image, 40, iterations=4)
        return labels + 1, torch.zeros(seeds_count(*image.shape[1:3], 40))

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in [(50, 60), (64, 47)]:
        image = testing.synthetic_image(*size).to(device)
        for found, expected in zip(compiled(image), model(image), strict=True):
            assert torch.equal(found, expected)


def test_compiled_call_refuses_impossible_grids():
    compiled = torch.compile(lambda t: seeds(t, 200), fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match="cannot divide"):
        compiled(torch.zeros(1, 12, 12, 3, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"image": [[1]]}, TypeError, "torch.Tensor"),
        ({"image": torch.zeros(1, 32, 32, 3)}, TypeError, "uint8"),
        ({"image": torch.zeros(32, 32, 3, dtype=torch.uint8)}, ValueError, "add a dimension"),
        ({"image": torch.zeros(1, 32, 32, 4, dtype=torch.uint8)}, ValueError, r"\[B, H, W, 3\]"),
        ({"num_superpixels": 0}, ValueError, "num_superpixels"),
        ({"num_superpixels": 20.0}, TypeError, "num_superpixels"),
        ({"bins": 0}, ValueError, "bins"),
        ({"bins": 41}, ValueError, "bins"),
        ({"prior": -1}, ValueError, "prior"),
        ({"prior": 6}, ValueError, "prior"),
        ({"iterations": -1}, ValueError, "iterations"),
        ({"iterations": True}, TypeError, "iterations"),
        ({"num_levels": 0}, ValueError, "num_levels"),
        ({"double_step": 1}, TypeError, "double_step"),
        ({"color": "hsv"}, ValueError, "color"),
    ],
)
def test_rejects_bad_input(change, error, message):
    arguments = {"image": torch.zeros(1, 32, 32, 3, dtype=torch.uint8), "num_superpixels": 20} | change
    with pytest.raises(error, match=message):
        seeds(**arguments)


@pytest.mark.parametrize("arguments", [(0, 5, 5), (5, 0, 5), (5, 5, 0), (5, 5, 5, 0), (5.0, 5, 5), (5, 5, "5")])
def test_count_rejects_bad_input(arguments):
    with pytest.raises((TypeError, ValueError), match="expected"):
        seeds_count(*arguments)
