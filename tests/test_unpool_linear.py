import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

from cast_kernels import unpool_concat, unpool_linear
from cast_kernels.testing import assert_accurate, max_error, unpool_oracle

op = torch.ops.cast_kernels.unpool_sum.default
SIZES = [  # segments and channels of each level
    ((1, 1), (1, 1)),
    ((13, 3), (5, 7)),
    ((5,), (3,)),
    ((9, 4, 2), (1, 0, 2)),
    ((196, 64, 32, 16), (8, 24, 8, 8)),
    ((40, 20, 15, 9, 7, 5, 3), (3, 1, 5, 4, 2, 7, 1)),
]


def inputs(sizes, channels, M=6, B=2, dtype=torch.float64, device="cpu", low=-1):
    g = torch.Generator().manual_seed(sizes[0])
    levels = [torch.randn(B, n, c, generator=g, dtype=torch.float64) for n, c in zip(sizes, channels, strict=True)]
    parents = [torch.randint(low, k + 1, (B, n), generator=g).to(device) for n, k in itertools.pairwise(sizes)]
    weight = torch.randn(M, sum(channels), generator=g, dtype=torch.float64) / max(1, sum(channels)) ** 0.5
    bias = torch.randn(M, generator=g, dtype=torch.float64)
    return [x.to(device, dtype) for x in levels], parents, weight.to(device, dtype), bias.to(device, dtype)


def after_concat(levels, parents, weight, bias):
    return F.linear(unpool_concat(levels, parents), weight, bias)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("sizes", "channels"), SIZES)
def test_equals_the_layer_after_the_concatenation(sizes, channels, dtype, device, poison):
    levels, parents, weight, bias = inputs(sizes, channels, dtype=dtype, device=device)
    result = unpool_linear(levels, parents, weight, bias)
    assert result.dtype == dtype
    exact = unpool_oracle(levels, parents) @ weight.double().mT + bias.double()
    if dtype == torch.float64:
        assert max_error(result, exact) <= 1e-14
        return
    # a rounding a level, of parts that are as large as the sum
    assert_accurate(result, exact, after_concat(levels, parents, weight, bias), times=1 + len(levels))


def test_no_bias_and_no_known_parent():
    levels, parents, weight, bias = inputs((13, 3), (5, 7))
    table = [torch.full_like(parents[0], -1)]
    found = unpool_linear(levels, table, weight)
    torch.testing.assert_close(found, F.linear(levels[0], weight[:, :5]))
    torch.testing.assert_close(unpool_linear(levels, table, weight, bias), found + bias)


def test_fewer_operations():
    levels, parents, weight, bias = inputs((196, 64, 32, 16), (8, 8, 8, 8))
    counts = []
    for function in (unpool_linear, after_concat):
        with FlopCounterMode(display=False) as counter:
            function(levels, parents, weight, bias)
        counts.append(counter.get_total_flops())
    assert counts[1] / counts[0] == pytest.approx(4 * 196 / (196 + 64 + 32 + 16))


def test_gradients():
    levels, parents, weight, bias = inputs((7, 4, 3), (2, 1, 2), M=2)
    leaves = [x.requires_grad_() for x in (*levels, weight, bias)]

    def call(*leaves):
        return unpool_linear(leaves[:3], parents, *leaves[3:])

    assert gradcheck(call, leaves)
    assert gradgradcheck(lambda *x: call(*x).square(), leaves)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gradient_is_summed_in_float32(dtype, device):
    """Ones added up in half precision stop growing at 2048 (float16) or 256 (bfloat16)."""
    levels = [torch.zeros(1, n, 1, dtype=dtype, device=device, requires_grad=True) for n in (5001, 1)]
    parents = [torch.zeros(1, 5001, dtype=torch.int64, device=device)]
    unpool_linear(levels, parents, torch.ones(1, 2, dtype=dtype, device=device)).sum().backward()
    assert levels[1].grad.item() == torch.tensor(5001.0).to(dtype).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "requires_grad"])
def test_opcheck(layout, dtype, device):
    levels, parents, _, _ = inputs((7, 4, 3), (2, 2, 2), dtype=dtype, device=device)
    grad = torch.ones_like(levels[0])
    if layout == "transposed":
        *levels, grad = [x.mT.contiguous().mT for x in (*levels, grad)]
    *levels, grad = [x.requires_grad_(layout == "requires_grad") for x in (*levels, grad)]
    torch.library.opcheck(op, (levels, parents))
    torch.library.opcheck(torch.ops.cast_kernels.unpool_sum_backward.default, (grad, parents, [4, 3]))


@pytest.mark.parametrize("K", [1, 4])
def test_compile_fullgraph(K, device):
    levels, parents, weight, bias = inputs((13, K), (1, 5), dtype=torch.float32, device=device)
    leaves = [x.requires_grad_() for x in (*levels, weight, bias)]

    def loss(*leaves):
        return unpool_linear(leaves[:2], parents, *leaves[2:]).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for grad, expected in zip(
        torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(loss(*leaves), leaves), strict=True
    ):
        torch.testing.assert_close(grad, expected)


def test_autocast_acts_as_on_a_linear_layer(device):
    levels, parents, weight, bias = inputs((13, 3), (5, 7), dtype=torch.float32, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        result = unpool_linear([x.bfloat16() for x in levels], parents, weight, bias)
        plain = after_concat([x.bfloat16() for x in levels], parents, weight, bias)
    assert result.dtype == plain.dtype == torch.bfloat16
    assert max_error(result, plain) < 0.05


def test_result_owns_its_memory():
    levels, _, weight, _ = inputs((5,), (3,), M=3)
    unpool_linear(levels, [], weight).zero_()
    assert (levels[0] != 0).any()


def test_runs_are_bitwise_equal(device):
    levels, parents, weight, bias = inputs((196, 64, 32), (8, 8, 8), dtype=torch.float32, device=device)
    leaves = [x.requires_grad_() for x in levels]
    runs = [torch.autograd.grad(unpool_linear(leaves, parents, weight, bias).square().sum(), leaves) for _ in range(20)]
    assert all(torch.equal(a, b) for run in runs for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.zeros(4, 6)}, ValueError, r"weight \[M, 5\]"),
        ({"weight": torch.zeros(4, 5, 1, 1)}, ValueError, r"weight \[M, 5\]"),
        ({"weight": torch.zeros(4, 5).long()}, TypeError, "weight in float32"),
        ({"weight": torch.zeros(4, 5).double()}, ValueError, "one dtype"),
        ({"bias": torch.zeros(5)}, ValueError, r"bias \[4\]"),
        ({"bias": [0.0] * 4}, TypeError, "bias to be a torch.Tensor"),
        ({"parents": []}, ValueError, "fewer than levels"),
        ({"parents": [torch.zeros(2, 6).long()]}, ValueError, "for 5 segments"),
    ],
)
def test_rejects_bad_input(change, error, message):
    arguments = {
        "levels": [torch.zeros(2, 5, 3), torch.zeros(2, 4, 2)],
        "parents": [torch.zeros(2, 5).long()],
        "weight": torch.zeros(4, 5),
        "bias": torch.zeros(4),
    }
    with pytest.raises(error, match=message):
        unpool_linear(**(arguments | change))
