"""The kernels of segment_mean through their launchers: on a GPU, or in Triton's interpreter."""

import pytest
import torch
from conftest import KERNEL_DEVICE
from gpu_checks import (
    assert_devices_agree,
    assert_graph_replays,
    assert_no_synchronisation,
    assert_second_stream_agrees,
    needs_gpu,
    needs_second_gpu,
)
from torch.autograd import gradgradcheck

pytest.importorskip("triton", reason="kernels need triton")

from cast_kernels import segment_mean
from cast_kernels.kernels import segment_mean as kernels
from cast_kernels.kernels import segment_mean_rows, segment_mean_upsampled
from cast_kernels.segment_mean import segment_mean_backward_ref, segment_mean_ref
from cast_kernels.testing import assert_accurate, segment_mean_oracle

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = ["channels last", "channels first", "cropped"]
SHAPES = [(1, (1, 1), 1, 1), (2, (5, 13), 3, 7), (1, (8, 9), 130, 16), (2, (7, 7), 5, 1), (1, (2, 2), 4, 50)]
FINE = [  # grid of x, of labels
    ((3, 4), (9, 11)),
    ((1, 1), (5, 3)),
    ((2, 7), (16, 7)),
    ((6, 5), (3, 2)),
    ((18, 3), (37, 5)),  # more cells than one block of weights, more pixels than one tile
]
MODES = ["nearest", "bilinear", "bicubic"]


def inputs(B, grid, C, S, dtype=torch.float32, label_grid=None, layout="channels last", low=-1):
    g = torch.Generator().manual_seed(B * 100 + C)
    x = torch.randn(B, *grid, C, generator=g).to(dtype)
    labels = torch.randint(low, S + 1, (B, *(label_grid or grid)), generator=g)  # one too low, one too high
    return in_layout(x.to(KERNEL_DEVICE), layout), labels.to(KERNEL_DEVICE)


def in_layout(x, layout):
    """The same values at other strides; "cropped" has gaps after each row and each pixel."""
    if layout == "channels first":
        return x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    if layout == "cropped":
        wide = torch.full((x.shape[0], x.shape[1] + 2, x.shape[2] + 3, x.shape[3] + 1), torch.nan, device=x.device)
        view = wide.to(x.dtype)[:, 1:-1, 2:-1, :-1]
        return view.copy_(x)
    return x


def assert_like_reference(x, labels, S, add=None, interpolation=None, add_interpolation=None):
    mean, count = kernels.forward(x, labels, S, add, interpolation, add_interpolation)
    exact = segment_mean_oracle(x, labels, S, interpolation)
    if add is not None:
        exact += segment_mean_oracle(add.expand(len(x), -1, -1, -1), labels, S, add_interpolation)
    plain, plain_count = segment_mean_ref(x, labels, S, add, interpolation, add_interpolation)
    assert mean.dtype == plain.dtype
    assert_accurate(mean, exact, plain)
    assert torch.equal(count, plain_count)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_oracle(shape, dtype, poison):
    assert_like_reference(*inputs(*shape, dtype), shape[-1])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("add_layout", "batch"), [(None, 1), ("channels last", 1), ("cropped", 2)])
def test_layouts(layout, add_layout, batch, poison):
    x, labels = inputs(2, (6, 5), 19, 4, torch.bfloat16, layout=layout)
    add = None if add_layout is None else inputs(batch, (6, 5), 19, 4, layout=add_layout)[0]
    assert_like_reference(x, labels.mT.contiguous().mT, 4, add)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
@pytest.mark.parametrize("mode", [None, "bilinear"])
def test_label_dtypes(dtype, mode):
    x, labels = inputs(2, (5, 6), 3, 7, low=0, label_grid=(9, 8) if mode else None)
    assert_like_reference(x, labels.to(dtype), 7, interpolation=mode)


def test_images_ordered_in_tiles(monkeypatch, poison):
    monkeypatch.setattr(segment_mean_rows, "SORTED_AT_ONCE", 0)
    assert_like_reference(*inputs(1, (35, 37), 2, 40), 40)  # 1295 pixels, two tiles; S + 1 fills two blocks


def test_few_large_segments_are_summed_in_lanes(poison):
    x, labels = inputs(1, (20, 23), 3, 1, layout="channels first")
    assert_like_reference(x, labels, 1)
    assert_like_reference(x.contiguous(), labels, 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("grid", "label_grid"), FINE)
def test_interpolation(grid, label_grid, mode, poison):
    x, labels = inputs(2, grid, 3, 4, label_grid=label_grid)
    assert_like_reference(x, labels, 4, interpolation=mode)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_interpolation_of_layouts(layout, dtype, poison):
    x, labels = inputs(1, (3, 4), 17, 5, dtype, (8, 9), layout)
    add, _ = inputs(1, (3, 4), 17, 5)
    assert_like_reference(x, labels, 5, add, "bilinear", "bilinear")


@pytest.mark.parametrize(("add_grid", "mode"), [((9, 8), None), ((2, 3), "nearest"), ((4, 3), "bicubic")])
def test_maps_on_two_grids(add_grid, mode, poison):
    x, labels = inputs(2, (3, 4), 5, 6, torch.float16, label_grid=(9, 8))
    add, _ = inputs(1, add_grid, 5, 6, torch.float16)
    assert_like_reference(x, labels, 6, add, "bilinear", mode)


@pytest.mark.parametrize(("mode", "capacity"), [("bilinear", 8), ("bicubic", 1)])
def test_lists_that_do_not_hold_all_cells(monkeypatch, capacity, mode, poison):
    monkeypatch.setattr(segment_mean_upsampled, "_capacity", lambda *_: capacity)
    x, labels = inputs(2, (18, 4), 5, 3, torch.bfloat16, label_grid=(20, 9), layout="cropped")
    labels[0, 5:] = 0
    add, _ = inputs(1, (18, 4), 5, 3)
    assert_like_reference(x, labels, 3, add, mode, mode)
    wide = inputs(2, (18, 4), 5, 3, torch.bfloat16, label_grid=(20, 9))[0]
    assert_like_reference(wide, labels, 3, inputs(2, (20, 9), 5, 3)[0], mode, None)


@pytest.mark.parametrize("mode", [None, "bilinear", "bicubic"])
def test_nan_and_infinity_stay_in_their_segment(mode):
    x, labels = inputs(1, (4, 4), 3, 2, label_grid=(8, 8) if mode else None, low=0)
    labels[:] = 0
    labels[:, labels.shape[1] - 1] = 1
    x[0, 0, 0], x[0, 0, 3] = torch.nan, torch.inf
    mean, _ = kernels.forward(x, labels, 2, interpolation=mode)
    assert mean[0, 0].isnan().all()
    assert mean[0, 1].isfinite().all()


def test_labels_out_of_range_touch_nothing(poison):
    x, labels = inputs(1, (4, 4), 3, 2, low=0)
    labels[:] = 0
    labels[0, 0, 0], labels[0, 1, 1], labels[0, 2, 2] = -(2**31), 2, 2**40
    x[labels != 0] = torch.nan
    mean, count = kernels.forward(x, labels, 2)
    assert mean.isfinite().all()
    assert count.tolist() == [[13.0, 0.0]]
    fine = labels.repeat_interleave(2, 1)
    mean, count = kernels.forward(x.nan_to_num(), fine, 2, interpolation="nearest")
    assert count.tolist() == [[26.0, 0.0]]
    grad = kernels.backward(torch.ones_like(mean), fine, count, [1, 4, 4, 3], "nearest", torch.float32, False)
    assert torch.equal(grad[..., 0] != 0, labels == 0)


def test_constant_features_are_kept_and_empty_segments_are_zero():
    _, labels = inputs(2, (9, 7), 1, 90)
    mean, count = kernels.forward(torch.full((2, 9, 7, 3), 4.0, device=KERNEL_DEVICE), labels, 90)
    assert torch.equal(mean, 4.0 * (count > 0).float()[..., None].expand_as(mean))
    assert (count == 0).any()


@pytest.mark.parametrize(("B", "grid", "C"), [(0, (3, 3), 2), (2, (0, 3), 2), (2, (3, 3), 0)])
def test_empty_tensors(B, grid, C):
    x, labels = inputs(B, grid, C, 4)
    mean, count = kernels.forward(x, labels, 4)
    assert mean.shape == (B, 4, C)
    assert torch.equal(mean, torch.zeros_like(mean))
    member = labels.flatten(1)[..., None] == torch.arange(4, device=labels.device)
    assert torch.equal(count, member.sum(1).float())
    grad = kernels.backward(mean, labels, count, [B, *grid, C], None, torch.float32, False)
    assert grad.shape == x.shape


def assert_like_reference_backward(shape, label_grid, S, mode, dtype, channels_first=False, labels_batch=None):
    B = labels_batch or shape[0]
    _, labels = inputs(B, shape[1:3], shape[3], S, label_grid=label_grid)
    count = segment_mean_ref(labels[..., None].float(), labels, S)[1]
    grad_mean = torch.randn(B, S, shape[3], generator=torch.Generator().manual_seed(0)).to(KERNEL_DEVICE, dtype)
    rest = (list(shape), mode, dtype, channels_first)
    grad = kernels.backward(grad_mean, labels, count, *rest)
    plain = segment_mean_backward_ref(grad_mean, labels, count, *rest)
    exact = segment_mean_backward_ref(grad_mean.double(), labels, count, *rest[:2], torch.float64, channels_first)
    assert grad.dtype == dtype
    assert grad.stride() == plain.stride()
    assert_accurate(grad, exact, plain, times=3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_backward(shape, dtype, poison):
    B, grid, C, S = shape
    assert_like_reference_backward((B, *grid, C), None, S, None, dtype)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("grid", "label_grid"), FINE)
def test_backward_of_interpolation(grid, label_grid, mode, poison):
    assert_like_reference_backward((2, *grid, 3), label_grid, 4, mode, torch.float32)


@pytest.mark.parametrize("mode", [None, "bilinear"])
@pytest.mark.parametrize("images", [2, 16])
def test_gradient_of_a_shared_map(monkeypatch, images, mode, poison):
    monkeypatch.setattr(kernels, "IMAGES_PER_SUM", images)
    for first in (False, True):
        fine = (7, 9) if mode else None
        assert_like_reference_backward((1, 4, 5, 6), fine, 5, mode, torch.bfloat16, first, labels_batch=5)


def test_backward_reads_any_strides():
    _, labels = inputs(2, (5, 6), 3, 4)
    count = segment_mean_ref(labels[..., None].float(), labels, 4)[1]
    spread = torch.tensor(0.5, device=KERNEL_DEVICE).expand(2, 4, 3)
    for mode, shape in ((None, [2, 5, 6, 3]), ("bilinear", [2, 2, 3, 3])):
        rest = (labels.mT.contiguous().mT, count, shape, mode, torch.float32, True)
        expected = kernels.backward(spread.contiguous(), *rest)
        assert torch.equal(kernels.backward(spread, *rest), expected)


@pytest.mark.parametrize("mode", [None, "bicubic"])
def test_runs_are_bitwise_equal(mode):
    B, grid = (2, (28, 28)) if KERNEL_DEVICE == "cuda" else (1, (6, 7))
    fine = tuple(4 * size for size in grid) if mode and KERNEL_DEVICE == "cuda" else (9, 11) if mode else None
    x, labels = inputs(B, grid, 33, 5, label_grid=fine)

    def run():
        mean, count = kernels.forward(x, labels, 5, None, mode)
        return mean, kernels.backward(mean, labels, count, list(x.shape), mode, x.dtype, False)

    first = run()
    for _ in range(20 if KERNEL_DEVICE == "cuda" else 2):
        assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))


def test_an_image_does_not_depend_on_its_batch():
    x, labels = inputs(2, (7, 8), 5, 6, label_grid=(13, 17))
    both, _ = kernels.forward(x, labels, 6, interpolation="bilinear")
    alone, _ = kernels.forward(x[1:], labels[1:], 6, interpolation="bilinear")
    assert torch.equal(both[1:], alone)


@pytest.mark.parametrize("mode", [None, "bilinear"])
@pytest.mark.parametrize("channels_first", [False, True])
def test_opcheck_of_the_backward(mode, channels_first, device):
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 5, (2, 5, 6), generator=g).to(device)
    grad_mean = torch.randn(2, 4, 3, generator=g).to(device).requires_grad_()
    shape = [1, 3, 4, 3] if mode else [2, 5, 6, 3]
    count = torch.full((2, 4), 3.0, device=device)
    op = torch.ops.cast_kernels.segment_mean_backward.default
    torch.library.opcheck(op, (grad_mean, labels, count, shape, mode, torch.float32, channels_first))


@pytest.mark.parametrize("mode", [None, "bicubic"])
def test_gradient_of_the_gradient(mode):
    g = torch.Generator().manual_seed(0)
    x, add = (torch.randn(B, 3, 4, 2, generator=g, dtype=torch.float64, requires_grad=True) for B in (2, 1))
    labels = torch.randint(-1, 4, (2, 5, 6) if mode else (2, 3, 4), generator=g)
    assert gradgradcheck(
        lambda x, add: segment_mean(x, labels, 3, add=add, interpolation=mode, add_interpolation=mode)[0], (x, add)
    )


class TestOnTheGpu:
    pytestmark = needs_gpu

    def run(self, x, labels, add, mode):
        leaves = [t.detach().requires_grad_() for t in (x, add)]
        mean, count = segment_mean(leaves[0], labels, 20, add=leaves[1], interpolation=mode, add_interpolation=mode)
        return mean, count, *torch.autograd.grad(mean.float().square().sum(), leaves)

    def case(self, mode, seed=0, device="cuda"):
        g = torch.Generator().manual_seed(seed)
        x, add = (torch.randn(B, 14, 14, 96, generator=g).to(device, torch.bfloat16) for B in (3, 1))
        labels = torch.randint(-1, 21, (3, 56, 56) if mode else (3, 14, 14), generator=g).to(device)
        return x, labels, add, mode

    @pytest.mark.parametrize("mode", [None, "bilinear"])
    def test_public_function_launches_the_kernels(self, monkeypatch, mode):
        calls = []
        forward, backward = kernels.forward, kernels.backward
        monkeypatch.setattr(kernels, "forward", lambda *a: calls.append("forward") or forward(*a))
        monkeypatch.setattr(kernels, "backward", lambda *a: calls.append("backward") or backward(*a))
        x, labels, add, mode = self.case(mode)
        self.run(x, labels, add, mode)
        assert calls == ["forward", "backward", "backward"]
        self.run(x.double(), labels, add.double(), mode)  # float64 is the reference's
        segment_mean(x, labels, 20_000, interpolation=mode)  # and so are very many segments
        assert len(calls) == 3

    @pytest.mark.parametrize("mode", [None, *MODES])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_standard_shape(self, mode, dtype):
        x, _ = inputs(4, (28, 28), 384, 196, dtype)
        rows = torch.arange(224 if mode else 28, device="cuda") * 14 // (224 if mode else 28)
        labels = (rows[:, None] * 14 + rows).int().expand(4, -1, -1)
        assert_like_reference(x, labels, 196, None, mode)

    @pytest.mark.parametrize("mode", [None, "bilinear"])
    def test_no_synchronisation(self, mode):
        assert_no_synchronisation(self.run, self.case(mode))

    @pytest.mark.parametrize("mode", [None, "bicubic"])
    def test_cuda_graph(self, mode):
        assert_graph_replays(self.run, self.case(mode), self.case(mode, seed=1))

    @pytest.mark.parametrize("mode", [None, "bilinear"])
    def test_second_stream(self, mode):
        assert_second_stream_agrees(self.run, self.case(mode))

    @needs_second_gpu
    @pytest.mark.parametrize("mode", [None, "bilinear"])
    def test_second_device(self, mode):
        assert_devices_agree(self.run, self.case(mode), self.case(mode, device="cuda:1"))

    @pytest.mark.sanitize
    @pytest.mark.parametrize("mode", [None, *MODES])
    def test_small_for_the_sanitizer(self, monkeypatch, mode):
        self.run(*self.case(mode))
        monkeypatch.setattr(segment_mean_rows, "SORTED_AT_ONCE", 0)
        monkeypatch.setattr(segment_mean_upsampled, "_capacity", lambda *_: 4)
        self.run(*self.case(mode))
