import itertools

import pytest
import torch
from torch.autograd import gradcheck

from cast_kernels import unpool, unpool_concat
from cast_kernels.testing import max_error, unpool_oracle

op = torch.ops.cast_kernels.unpool_concat.default
SIZES = [((1, 1), (1, 1)), ((13, 3), (5, 7)), ((196, 64, 32, 16), (8, 8, 8, 8)), ((9, 4, 2), (1, 3, 2)), ((5,), (3,))]


def inputs(sizes, channels, B=2, dtype=torch.float64, device="cpu", low=0):
    g = torch.Generator().manual_seed(sizes[0])
    levels = [torch.randn(B, n, c, generator=g, dtype=torch.float64) for n, c in zip(sizes, channels, strict=True)]
    parents = [torch.randint(low, k, (B, n), generator=g) for n, k in itertools.pairwise(sizes)]
    return [x.to(device, dtype) for x in levels], [p.to(device) for p in parents]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("sizes", "channels"), SIZES)
def test_concat_matches_oracle(sizes, channels, dtype, device, poison):
    levels, parents = inputs(sizes, channels, dtype=dtype, device=device)
    result = unpool_concat(levels, parents)
    assert result.dtype == dtype
    assert max_error(result, unpool_oracle(levels, parents)) == 0.0


@pytest.mark.parametrize("B", [0, 1, 3])
def test_unpool_is_a_gather(B, device):
    (_, coarse), (parents,) = inputs((13, 4), (1, 5), B, device=device)
    assert torch.equal(unpool(coarse, parents), coarse.gather(1, parents[..., None].expand(-1, -1, 5)))


def test_parents_out_of_range_give_zeros_here_and_above():
    levels, parents = inputs((13, 4, 3), (1, 5, 2), low=-1)
    parents[0][0, 3], parents[1][1, 0] = 4, 2**40
    result = unpool_concat(levels, parents)
    assert max_error(result, unpool_oracle(levels, parents)) == 0.0
    assert (result[0, 3, 1:] == 0).all()


def test_gradient_is_the_adjoint():
    (fine, coarse), (parents,) = inputs((13, 4), (5, 5))
    (grad,) = torch.autograd.grad(unpool(coarse.requires_grad_(), parents), coarse, fine)
    torch.testing.assert_close((grad * coarse).sum(), (fine * unpool(coarse, parents)).sum())


@pytest.mark.parametrize("low", [0, -1])
def test_gradcheck(low):
    levels, parents = inputs((7, 4, 3), (2, 1, 2), low=low)
    assert gradcheck(lambda *x: unpool_concat(x, parents), [x.requires_grad_() for x in levels])
    assert gradcheck(lambda x: unpool(x, parents[0]), levels[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gradient_is_summed_in_float32(dtype, device):
    """Ones added up in half precision stop growing at 2048 (float16) or 256 (bfloat16)."""
    coarse = torch.zeros(1, 1, 1, dtype=dtype, device=device, requires_grad=True)
    parents = torch.zeros(1, 5001, dtype=torch.int64, device=device)
    unpool(coarse, parents).backward(torch.ones(1, 5001, 1, dtype=dtype, device=device))
    assert coarse.grad.item() == torch.tensor(5001.0).to(dtype).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "requires_grad"])
def test_opcheck(layout, dtype, device):
    levels, parents = inputs((7, 4, 3), (2, 3, 2), dtype=dtype, device=device)
    if layout == "transposed":
        levels = [x.mT.contiguous().mT for x in levels]
    torch.library.opcheck(op, ([x.requires_grad_(layout == "requires_grad") for x in levels], parents))


@pytest.mark.parametrize("K", [1, 4])
def test_compile_fullgraph(K, device):
    (_, coarse), (parents,) = inputs((13, K), (1, 5), dtype=torch.float32, device=device)
    compiled = torch.compile(lambda x: unpool(x, parents).square().sum(), fullgraph=True, backend="aot_eager")
    (grad,) = torch.autograd.grad(compiled(coarse.requires_grad_()), coarse)
    (expected,) = torch.autograd.grad(unpool(coarse, parents).square().sum(), coarse)
    assert torch.equal(grad, expected)


def test_autocast_does_not_lower_the_precision(device):
    levels, parents = inputs((13, 4, 3), (5, 6, 2), dtype=torch.float32, device=device)
    leaves = [x.requires_grad_() for x in levels]
    expected = unpool_concat(leaves, parents)
    gradients = torch.autograd.grad(expected.square().sum(), leaves)
    with torch.autocast(device, dtype=torch.bfloat16):
        found = unpool_concat(leaves, parents)
        grads = torch.autograd.grad(found.square().sum(), leaves)
    assert torch.equal(found, expected)
    assert all(torch.equal(a, b) for a, b in zip(grads, gradients, strict=True))


def test_runs_are_bitwise_equal(device):
    levels, parents = inputs((196, 64, 32), (8, 16, 8), dtype=torch.float32, device=device)
    leaves = [x.requires_grad_() for x in levels]
    runs = [torch.autograd.grad(unpool_concat(leaves, parents).square().sum(), leaves) for _ in range(20)]
    assert all(torch.equal(a, b) for run in runs for a, b in zip(run, runs[0], strict=True))


def test_result_owns_its_memory():
    levels, _ = inputs((5,), (3,))
    unpool_concat(levels, []).zero_()
    assert (levels[0] != 0).any()


@pytest.mark.parametrize(
    ("levels", "parents", "error", "message"),
    [
        ([], [], ValueError, "fewer than levels"),
        ([torch.zeros(2, 5, 3)], [torch.zeros(2, 5).long()], ValueError, "1 levels, 1 tables"),
        ([torch.zeros(2, 5, 3), torch.zeros(1, 4, 3)], [torch.zeros(2, 5).long()], ValueError, "one batch"),
        ([torch.zeros(2, 5, 3), torch.zeros(2, 4, 3).double()], [torch.zeros(2, 5).long()], ValueError, "dtype"),
        ([torch.zeros(2, 5, 3), torch.zeros(2, 4, 3)], [torch.zeros(2, 5)], TypeError, "int64"),
        ([torch.zeros(2, 5, 3), torch.zeros(2, 4, 3)], [torch.zeros(2, 6).long()], ValueError, "for 5 segments"),
        ([torch.zeros(2, 5, 3).long()], [], TypeError, r"levels\[0\] in float32"),
    ],
)
def test_concat_rejects_bad_input(levels, parents, error, message):
    with pytest.raises(error, match=message):
        unpool_concat(levels, parents)


@pytest.mark.parametrize(
    ("coarse", "parents", "error", "message"),
    [
        (torch.zeros(2, 5), torch.zeros(2, 7).long(), ValueError, r"\[B, K, C\]"),
        (torch.zeros(2, 5, 3), torch.zeros(3, 7).long(), ValueError, r"\[2, N\]"),
        (torch.zeros(2, 5, 3), torch.zeros(2, 7), TypeError, "int64"),
        (torch.zeros(2, 5, 3), [[0, 1], [1, 0]], TypeError, "parents to be a torch.Tensor"),
        (torch.zeros(2, 5, 3).long(), torch.zeros(2, 7).long(), TypeError, "coarse in float32"),
    ],
)
def test_rejects_bad_input(coarse, parents, error, message):
    with pytest.raises(error, match=message):
        unpool(coarse, parents)
