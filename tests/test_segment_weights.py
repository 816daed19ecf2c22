"""`segment_mean` of an interpolated map on the CPU, by weights of its cells."""

import sys

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import cast_kernels
from cast_kernels.segment_mean import segment_mean_ref
from cast_kernels.testing import assert_accurate, max_error, segment_mean_oracle

MODES = ["nearest", "bilinear", "bicubic"]
GRIDS = [((3, 4), (9, 11)), ((1, 1), (5, 3)), ((4, 4), (4, 4)), ((2, 7), (16, 7)), ((6, 5), (3, 2)), ((8, 8), (61, 64))]
page = sys.modules["cast_kernels.segment_mean"]
segment_mean = cast_kernels.segment_mean


@pytest.fixture
def always(monkeypatch):
    """Small maps too: all that are interpolated."""
    monkeypatch.setattr(page, "_is_weighed", lambda shape, labels, mode: mode is not None)


@pytest.fixture
def no_reference(monkeypatch):
    def refuse(*_):
        raise AssertionError("the map was interpolated")

    monkeypatch.setattr(page, "_resize", refuse)
    monkeypatch.setattr(page, "_resize_adjoint", refuse)


def inputs(B, grid, label_grid, C, S, dtype=torch.float64):
    g = torch.Generator().manual_seed(C)
    x = torch.randn(B, C, *grid, generator=g, dtype=torch.float64).permute(0, 2, 3, 1).to(dtype)
    return x, torch.randint(-1, S + 1, (B, *label_grid), generator=g)  # one too low, one too high


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("grid", "label_grid"), GRIDS)
def test_matches_oracle(always, grid, label_grid, mode, dtype):
    x, labels = inputs(2, grid, label_grid, 5, 7, dtype)
    mean, count = segment_mean(x, labels, 7, interpolation=mode)
    exact = segment_mean_oracle(x, labels, 7, mode)
    if dtype == torch.float64:
        assert max_error(mean, exact) < 1e-14
    else:
        assert_accurate(mean, exact, segment_mean_ref(x, labels, 7, None, mode)[0])
    assert torch.equal(count, torch.stack([(labels == s).sum((1, 2)) for s in range(7)], 1).float())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_add_and_labels(always, dtype):
    x, labels = inputs(2, (3, 4), (9, 11), 5, 20)
    labels = labels.clamp(min=0)
    add, _ = inputs(1, (4, 5), (1, 1), 5, 2)
    for mode in (None, "bicubic"):
        part = add if mode else torch.randn(1, 9, 11, 5, dtype=torch.float64)
        options = {"interpolation": "bilinear", "add_interpolation": mode}
        mean, _ = segment_mean(x, labels.to(dtype).mT.contiguous().mT, 20, add=part, **options)
        torch.testing.assert_close(mean, segment_mean_ref(x, labels, 20, part, "bilinear", mode)[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("outside", [0, -1])
def test_what_is_not_finite_stays_near(always, mode, outside):
    x, _ = inputs(1, (4, 4), (8, 8), 2, 16, torch.float32)
    labels = torch.arange(64).view(1, 8, 8) // 2 % 4 + torch.arange(64).view(1, 8, 8) // 16 * 4
    x[0, 0, outside, 0] = torch.nan
    found = segment_mean(x, labels, 16, interpolation=mode)[0].isnan()
    assert torch.equal(found, segment_mean_oracle(x, labels, 16, mode, loop=True).isnan())
    assert 0 < found.sum() < 16


def test_nothing_to_average(always):
    x, labels = inputs(2, (3, 4), (9, 11), 5, 7)
    mean, count = segment_mean(x.requires_grad_(), labels.fill_(9), 7, interpolation="bicubic")
    mean.sum().backward()
    assert not mean.any()
    assert not count.any()
    assert not x.grad.any()
    assert segment_mean(x[:0], labels[:0], 7, interpolation="bicubic")[0].shape == (0, 7, 5)


@pytest.mark.parametrize("mode", MODES)
def test_gradients(always, no_reference, mode):
    x, labels = inputs(2, (3, 4), (7, 5), 2, 3)
    add, _ = inputs(1, (2, 3), (7, 5), 2, 3)

    def mean(x, add):
        return segment_mean(x, labels, 3, add=add, interpolation=mode, add_interpolation=mode)[0]

    leaves = (x.requires_grad_(), add.requires_grad_())
    assert gradcheck(mean, leaves)
    assert gradgradcheck(lambda x, add: mean(x, add).square(), leaves)


@pytest.mark.parametrize("shared", [False, True])
def test_opcheck(always, shared):
    x, labels = inputs(2, (3, 4), (9, 11), 5, 7, torch.float32)
    add = x[:1].clone().requires_grad_() if shared else None
    arguments = (x.requires_grad_(), labels, 7, add, "bicubic", "bilinear" if shared else None)
    torch.library.opcheck(torch.ops.cast_kernels.segment_mean.default, arguments)


def test_large_maps_are_never_interpolated(no_reference):
    x, labels = inputs(2, (16, 16), (128, 128), 256, 60, torch.float32)
    mean, _ = segment_mean(x.requires_grad_(), labels, 60, interpolation="bilinear")
    (grad,) = torch.autograd.grad(mean.square().sum(), x)
    assert torch.equal(mean, segment_mean(x, labels, 60, interpolation="bilinear")[0])
    assert grad.stride() == x.stride()
    torch.testing.assert_close(mean.double(), segment_mean_oracle(x, labels, 60, "bilinear"), rtol=1e-5, atol=1e-6)
