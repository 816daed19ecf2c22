import importlib

import pytest
import torch

from cast_kernels import _ext, rgb_to_lab, testing
from cast_kernels.rgb_to_lab import rgb_to_lab_ref

OP = torch.ops.cast_kernels.rgb_to_lab.default


@pytest.fixture(scope="module")
def all_colours():
    """Every 8-bit RGB colour once, [1, 4096, 4096, 3]."""
    value = torch.arange(2**24)
    return torch.stack([value & 255, value >> 8 & 255, value >> 16], -1).to(torch.uint8).view(1, 4096, 4096, 3)


@pytest.fixture(scope="module")
def opencv_lab(all_colours):
    cv2 = pytest.importorskip("cv2")
    return torch.from_numpy(cv2.cvtColor(all_colours[0].numpy(), cv2.COLOR_RGB2LAB))[None]


def test_equals_opencv_for_all_colours(all_colours, opencv_lab, device):
    assert torch.equal(rgb_to_lab(all_colours.to(device)).cpu(), opencv_lab)


def test_reference_equals_opencv_for_all_colours(all_colours, opencv_lab, device):
    for rgb, lab in zip(all_colours[0].split(512), opencv_lab[0].split(512), strict=True):  # spares memory
        assert torch.equal(rgb_to_lab_ref(rgb[None].to(device)).cpu(), lab[None])


def test_equals_the_reference_for_all_colours(all_colours, device):
    """Guards the native code where OpenCV is absent."""
    for rgb in all_colours[0].split(512):
        images = rgb[None].to(device)
        assert torch.equal(rgb_to_lab(images), rgb_to_lab_ref(images))


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((0, 0, 0), (0, 128, 128)),
        ((255, 255, 255), (255, 128, 128)),
        ((255, 0, 0), (136, 208, 195)),
        ((0, 255, 0), (224, 42, 211)),
        ((0, 0, 255), (82, 207, 20)),
    ],
)
def test_known_colours(rgb, lab, device):
    image = torch.tensor(rgb, dtype=torch.uint8, device=device).view(1, 1, 1, 3)
    assert rgb_to_lab(image).flatten().tolist() == list(lab)


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_layouts_and_strides(batch, device, poison):
    last = torch.cat([testing.synthetic_image(17, 23, seed) for seed in range(3)])[:batch].to(device)
    expected = rgb_to_lab_ref(last)
    first = last.permute(0, 3, 1, 2)
    wide = torch.zeros(batch, 17, 46, 4, dtype=torch.uint8, device=device)
    wide[:, :, ::2, :3] = last
    assert torch.equal(rgb_to_lab(last), expected)
    assert torch.equal(rgb_to_lab(wide[:, :, ::2, :3]), expected)
    assert torch.equal(rgb_to_lab(first), expected.permute(0, 3, 1, 2))
    assert torch.equal(rgb_to_lab(first.contiguous()), expected.permute(0, 3, 1, 2))
    assert rgb_to_lab(first).is_contiguous()


def test_channels_last_win_where_both_fit(device):
    image = testing.synthetic_image(3, 8, 1).to(device)[:, :, :3]
    both = image.expand(2, 3, 3, 3)
    assert torch.equal(rgb_to_lab(both)[1], rgb_to_lab_ref(image)[0])


def test_opcheck(device):
    image = testing.synthetic_image(5, 7).to(device)
    for view in (image, image.permute(0, 3, 1, 2), image[:, ::2], image[:0]):
        torch.library.opcheck(OP, (view,))


def test_compile_fullgraph(device):
    image = testing.synthetic_image(13, 11).to(device)
    compiled = torch.compile(lambda t: rgb_to_lab(t).float().sum(), fullgraph=True, backend="aot_eager", dynamic=True)
    for view in (image, image[:, :7].expand(3, -1, -1, -1)):
        assert compiled(view) == rgb_to_lab_ref(view).float().sum()


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ([[1]], TypeError, "torch.Tensor"),
        (torch.zeros(1, 4, 4, 3), TypeError, "uint8"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), ValueError, "add a dimension"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), ValueError, "add a dimension"),
        (torch.zeros(1, 4, 4, 4, dtype=torch.uint8), ValueError, r"\[B, H, W, 3\]"),
        (torch.zeros(4, 4, dtype=torch.uint8), ValueError, r"\[B, H, W, 3\]"),
    ],
)
def test_rejects_bad_image(image, error, message):
    with pytest.raises(error, match=message):
        rgb_to_lab(image)


@pytest.mark.parametrize("capability", [(7, 5), (10, 0)])
def test_a_gpu_that_the_extension_has_no_code_for_runs_the_reference(capability, pretend_gpu):
    """Asking for it would fail."""
    page = importlib.import_module("cast_kernels.rgb_to_lab")  # the name in the package is the function
    pretend_gpu(capability, ["80-real", "90-real"])
    image = testing.synthetic_image(5, 7)
    assert torch.equal(page._rgb_to_lab_cuda(image), rgb_to_lab_ref(image))


def test_missing_driver_is_a_readable_error():
    """The module of a CUDA build loads without a driver; only a launch fails, by name."""
    native = _ext.load()
    if native.build_info()["cuda"] is None:
        pytest.skip("the extension was built without nvcc")
    if torch.cuda.is_available():
        pytest.skip("this machine has a driver")
    layout = {"groups": 1, "pixels": 1, "group_stride": 3, "pixel_stride": 3, "channel_stride": 1}
    with pytest.raises(RuntimeError, match="rgb_to_lab: CUDA launch failed"):
        native.rgb_to_lab_cuda(0, 0, **layout, stream=0)
