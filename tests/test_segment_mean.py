import pytest
import torch
from torch.autograd import gradcheck

from cast_kernels import segment_mean
from cast_kernels.segment_mean import segment_mean_ref
from cast_kernels.testing import assert_accurate, max_error, segment_mean_oracle

op = torch.ops.cast_kernels.segment_mean.default
SHAPES = [  # B, (H, W), C, S
    (1, (1, 1), 1, 1),
    (2, (5, 13), 3, 7),
    (3, (8, 9), 48, 16),
    (2, (7, 7), 5, 1),
    (1, (2, 2), 4, 50),
    (0, (3, 3), 2, 4),
]
FINE = [
    ((3, 4), (9, 11)),
    ((1, 1), (5, 3)),
    ((4, 4), (4, 4)),
    ((2, 7), (16, 7)),
    ((6, 5), (3, 2)),
]  # grid of x, of labels
INTERPOLATIONS = ["nearest", "bilinear", "bicubic"]


def inputs(B, grid, C, S, dtype=torch.float64, label_grid=None, device="cpu", low=-1, high=None):
    g = torch.Generator().manual_seed(B * 100 + C)
    x = torch.randn(B, *grid, C, generator=g, dtype=torch.float64)
    labels = torch.randint(low, high or S + 1, (B, *(label_grid or grid)), generator=g)  # one too low, one too high
    return x.to(device, dtype), labels.to(device)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_oracle(shape, dtype, device, poison):
    x, labels = inputs(*shape, dtype, device=device)
    mean, count = segment_mean(x, labels, shape[-1])
    exact = segment_mean_oracle(x, labels, shape[-1])
    member = labels.flatten(1)[..., None] == torch.arange(shape[-1], device=device)
    plain = (member.to(dtype).mT @ x.flatten(1, 2)) / member.sum(1).clamp(min=1)[..., None]
    assert mean.dtype == dtype
    assert count.dtype == torch.float32
    assert_accurate(mean, exact, plain)
    assert torch.equal(count, member.sum(1).float())


def test_float64_is_exact():
    x, labels = inputs(3, (17, 5), 11, 9)
    assert max_error(segment_mean(x, labels, 9)[0], segment_mean_oracle(x, labels, 9)) < 1e-14


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("grid", "label_grid"), FINE)
def test_interpolation_is_that_of_torch(grid, label_grid, interpolation):
    x, labels = inputs(2, grid, 3, 4, label_grid=label_grid)
    mean, _ = segment_mean(x, labels, 4, interpolation=interpolation)
    assert max_error(mean, segment_mean_oracle(x, labels, 4, interpolation)) < 1e-14


@pytest.mark.parametrize("batch", [None, 1, 2])
@pytest.mark.parametrize("add_interpolation", [None, *INTERPOLATIONS])
def test_add_is_averaged_too(batch, add_interpolation):
    x, labels = inputs(2, (3, 4), 5, 6, label_grid=(9, 8))
    grid = (9, 8) if add_interpolation is None else (2, 3)
    add, _ = inputs(batch or 1, grid, 5, 6)
    mean, _ = segment_mean(
        x, labels, 6, add=add if batch else add[0], interpolation="bilinear", add_interpolation=add_interpolation
    )
    exact = segment_mean_oracle(x, labels, 6, "bilinear")
    exact += segment_mean_oracle(add.expand(2, *grid, 5), labels, 6, add_interpolation)
    assert max_error(mean, exact) < 1e-14


def test_tokens_are_a_map_of_height_one():
    x, labels = inputs(2, (5, 6), 3, 7)
    add, _ = inputs(2, (5, 6), 3, 7)
    mean, count = segment_mean(x.flatten(1, 2), labels.flatten(1), 7, add=add.flatten(1, 2))
    expected, expected_count = segment_mean(x, labels, 7, add=add)
    assert torch.equal(mean, expected)
    assert torch.equal(count, expected_count)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
def test_label_dtypes(dtype):
    x, labels = inputs(2, (5, 6), 3, 7, low=0)
    assert torch.equal(segment_mean(x, labels.to(dtype), 7)[0], segment_mean(x, labels, 7)[0])


def test_dtype_is_promoted_from_both():
    x, labels = inputs(2, (5, 6), 3, 7, torch.bfloat16)
    assert segment_mean(x, labels, 7, add=x.float())[0].dtype == torch.float32


def test_labels_out_of_range_are_ignored_even_with_nan():
    x, labels = inputs(1, (4, 4), 3, 2, torch.float32, low=0, high=2)
    x[0, 0, 0], x[0, 1, 1], x[0, 2, 2] = torch.nan, torch.inf, torch.nan
    labels[0, 0, 0], labels[0, 1, 1], labels[0, 2, 2] = -(2**31), 2, 2**31 - 1
    mean, count = segment_mean(x, labels, 2)
    assert mean.isfinite().all()
    assert count.sum() == 13


@pytest.mark.parametrize("mode", INTERPOLATIONS)
def test_one_nan_reaches_its_neighbours_alone(mode):
    x, _ = inputs(1, (4, 4), 2, 16, torch.float32)
    labels = torch.arange(64).view(1, 8, 8) // 2 % 4 + torch.arange(64).view(1, 8, 8) // 16 * 4  # 2 x 2 pixels each
    x[0, 0, 0, 0] = torch.nan
    found = segment_mean(x, labels, 16, interpolation=mode)[0].isnan()
    assert torch.equal(found, segment_mean_oracle(x, labels, 16, mode, loop=True).isnan())
    assert 0 < found.sum() < 16


def test_constant_features_are_kept_and_empty_segments_are_zero():
    _, labels = inputs(2, (9, 7), 1, 90)
    mean, count = segment_mean(torch.full((2, 9, 7, 3), 4.0), labels, 90)
    assert torch.equal(mean, 4.0 * (count > 0).float()[..., None].expand_as(mean))
    assert (count == 0).any()


def test_channels_first_without_a_copy_first():
    x, labels = inputs(2, (5, 6), 3, 7)
    view = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)  # NCHW memory
    assert torch.equal(segment_mean(view, labels, 7)[0], segment_mean(x, labels, 7)[0])


@pytest.mark.parametrize("mode", [None, *INTERPOLATIONS])
def test_gradcheck(mode):
    x, labels = inputs(2, (3, 4), 2, 3, label_grid=(3, 4) if mode is None else (7, 5))
    add, _ = inputs(1, (3, 4), 2, 3)

    def mean(x, add):
        return segment_mean(x, labels, 3, add=add, interpolation=mode, add_interpolation=mode)[0]

    assert gradcheck(mean, (x.requires_grad_(), add.requires_grad_()))


def test_half_precision_gradient(device):
    x, labels = inputs(2, (6, 7), 5, 4, torch.bfloat16, device=device)
    weight = torch.randn(2, 4, 5, device=device, dtype=torch.float64)
    segment_mean(x.requires_grad_(), labels, 4)[0].backward(weight.to(x.dtype))
    wide = x.detach().double().requires_grad_()
    segment_mean_oracle(wide, labels, 4).backward(weight.to(x.dtype).double())
    assert x.grad.dtype == torch.bfloat16
    assert_accurate(x.grad, wide.grad, wide.grad.to(x.dtype), times=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "requires_grad", "add"])
def test_opcheck(layout, dtype, device):
    x, labels = inputs(2, (3, 4), 3, 5, dtype, label_grid=(5, 6), device=device)
    if layout == "transposed":
        x, labels = x.mT.contiguous().mT, labels.mT.contiguous().mT
    add = x[:1].clone().requires_grad_() if layout == "add" else None
    x.requires_grad_(layout in ("requires_grad", "add"))
    torch.library.opcheck(op, (x, labels, 5, add, "bilinear", None if add is None else "nearest"))


@pytest.mark.parametrize("S", [1, 5])
def test_compile_fullgraph(S, device):
    x, labels = inputs(2, (5, 6), 3, S, torch.float32, device=device)
    compiled = torch.compile(
        lambda t: segment_mean(t, labels, S)[0].square().sum(), fullgraph=True, backend="aot_eager"
    )
    (grad,) = torch.autograd.grad(compiled(x.requires_grad_()), x)
    (expected,) = torch.autograd.grad(segment_mean(x, labels, S)[0].square().sum(), x)
    assert torch.equal(grad, expected)


def test_compile_does_not_recompile_for_each_size():
    torch._dynamo.reset()
    compiled = torch.compile(lambda t, y: segment_mean(t, y, 4)[0], fullgraph=True, backend="aot_eager", dynamic=True)
    for grid in ((5, 6), (9, 4), (3, 17)):
        x, labels = inputs(2, grid, 3, 4)
        with torch.compiler.set_stance("default" if grid == (5, 6) else "fail_on_recompile"):
            assert torch.equal(compiled(x, labels), segment_mean(x, labels, 4)[0])


def test_autocast_does_not_lower_the_precision(device):
    x, labels = inputs(2, (5, 6), 3, 7, torch.float32, label_grid=(11, 13), device=device)
    mean, _ = segment_mean(x.requires_grad_(), labels, 7, interpolation="bicubic")
    (grad,) = torch.autograd.grad(mean.square().sum(), x)
    with torch.autocast(device, dtype=torch.bfloat16):
        lower, _ = segment_mean(x, labels, 7, interpolation="bicubic")
        (lower_grad,) = torch.autograd.grad(lower.square().sum(), x)
    assert torch.equal(lower, mean)
    assert torch.equal(lower_grad, grad)


def test_runs_are_bitwise_equal(device):
    x, labels = inputs(2, (56, 56), 16, 20, torch.float32, device=device)
    first = segment_mean(x, labels, 20)[0]
    assert all(torch.equal(segment_mean(x, labels, 20)[0], first) for _ in range(20))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 3, 4, 5, dtype=torch.int64)}, TypeError, "x in float32"),
        ({"x": [1.0]}, TypeError, "torch.Tensor"),
        ({"x": torch.zeros(2, 3)}, ValueError, r"\[B, H, W, C\]"),
        ({"x": torch.zeros(2, 3, 4, 0)}, ValueError, "at least one pixel and channel"),
        ({"labels": torch.zeros(2, 0, 4).long(), "interpolation": "nearest"}, ValueError, "at least one pixel"),
        ({"labels": torch.zeros(2, 3, 4)}, TypeError, "labels in int32"),
        ({"labels": torch.zeros(1, 3, 4, dtype=torch.int64)}, ValueError, r"got \[2, 3, 4, 5\]"),
        ({"labels": torch.zeros(2, 6, 8, dtype=torch.int64)}, ValueError, "one grid"),
        ({"num_segments": 0}, ValueError, "num_segments >= 1"),
        ({"num_segments": 2.0}, TypeError, "num_segments"),
        ({"interpolation": "cubic"}, ValueError, "'bicubic'"),
        ({"add": torch.zeros(3, 4, 6)}, ValueError, "5 channels"),
        ({"add": torch.zeros(3, 3, 4, 5)}, ValueError, "batch of 1 or 2"),
        ({"add": torch.zeros(6, 8, 5)}, ValueError, "add and labels on one grid"),
        ({"add_interpolation": "nearest"}, ValueError, "without add"),
    ],
)
def test_rejects_bad_input(change, error, message):
    arguments = {"x": torch.zeros(2, 3, 4, 5), "labels": torch.zeros(2, 3, 4, dtype=torch.int64), "num_segments": 3}
    arguments |= change
    x, labels, num_segments = (arguments.pop(key) for key in ("x", "labels", "num_segments"))
    with pytest.raises(error, match=message):
        segment_mean(x, labels, num_segments, **arguments)


def test_reference_is_what_the_cpu_runs():
    x, labels = inputs(2, (5, 6), 3, 7)
    assert torch.equal(op(x, labels, 7, None, None, None)[0], segment_mean_ref(x, labels, 7)[0])
