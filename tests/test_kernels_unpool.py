import itertools

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

from cast_kernels import unpool, unpool_concat
from cast_kernels.kernels import unpool as kernels
from cast_kernels.testing import assert_accurate, max_error, unpool_oracle

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZES = [  # segments and channels of each level
    ((1, 1), (1, 1)),
    ((5,), (3,)),
    ((13, 3), (5, 7)),
    ((70, 68), (0, 130)),
    ((33, 1), (2, 8)),
    ((196, 64, 32, 16), (8, 24, 8, 8)),
    ((40, 20, 15, 9, 7, 5, 3), (3, 1, 5, 4, 2, 7, 1)),  # more levels than one launch takes, twice
]


def inputs(sizes, channels, dtype=torch.float32, B=2, low=-1, device=KERNEL_DEVICE, seed=0):
    g = torch.Generator().manual_seed(seed)
    levels = [torch.randn(B, n, c, generator=g).to(device, dtype) for n, c in zip(sizes, channels, strict=True)]
    parents = [torch.randint(low, k + 1, (B, n), generator=g).to(device) for n, k in itertools.pairwise(sizes)]
    grad = torch.randn(B, sizes[0], sum(channels), generator=g).to(device, dtype)
    return levels, parents, grad


def adjoint(levels, parents, grad):
    """The levels' gradients by autograd through the oracle, in the dtype of ``grad``."""
    leaves = [x.double().requires_grad_() for x in levels]
    return torch.autograd.grad(unpool_oracle(leaves, parents), leaves, grad.double())


def plain(x, labels, K):
    total = x.new_zeros(x.shape[0], K + 1, x.shape[2])
    index = torch.where((labels >= 0) & (labels < K), labels, K)
    return total.scatter_add(1, index[..., None].expand(-1, -1, x.shape[2]), x)[:, :K]


def backward(levels, parents, grad):
    return kernels.backward(grad, parents, [x.shape[1] for x in levels], [x.shape[2] for x in levels])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("sizes", "channels"), SIZES)
def test_forward_copies(sizes, channels, dtype, poison):
    levels, parents, _ = inputs(sizes, channels, dtype)
    result = kernels.forward(levels, parents)
    assert result.dtype == dtype
    assert max_error(result, unpool_oracle(levels, parents)) == 0.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("sizes", "channels"), SIZES)
def test_backward_is_the_adjoint(sizes, channels, dtype, poison):
    levels, parents, grad = inputs(sizes, channels, dtype)
    exact = adjoint(levels, parents, grad)
    chain, offset = None, 0
    for level, (found, expected) in enumerate(zip(backward(levels, parents, grad), exact, strict=True)):
        part = grad[..., offset : offset + channels[level]]
        offset += channels[level]
        assert found.dtype == dtype
        if level == 0:
            assert torch.equal(found, part)
            continue
        table = parents[level - 1]
        if chain is None:
            chain = table
        else:
            known = (chain >= 0) & (chain < sizes[level - 1])
            chain = torch.where(known, table.gather(1, torch.where(known, chain, 0)), -1)
        assert_accurate(found, expected, plain(part, chain, sizes[level]), times=3)


def test_float32_products_are_exact():
    """Three bfloat16 parts hold all 24 bits, small and large."""
    grad = torch.randn(1, 40, 3, generator=torch.Generator().manual_seed(0)) * 2.0 ** torch.arange(-60, 60, 3)[:, None]
    parents = torch.arange(40)[None]
    (_, found) = kernels.backward(grad.to(KERNEL_DEVICE), [parents.to(KERNEL_DEVICE)], [40, 40], [0, 3])
    assert torch.equal(found.cpu(), grad)


def test_parents_far_out_of_range():
    levels, parents, grad = inputs((13, 4, 3), (1, 5, 2))
    parents[0][0, 3], parents[1][1, 0], parents[0][1, 2] = 4, 2**40, -(2**63)
    assert max_error(kernels.forward(levels, parents), unpool_oracle(levels, parents)) == 0.0
    for found, exact in zip(backward(levels, parents, grad), adjoint(levels, parents, grad), strict=True):
        assert_accurate(found, exact, exact.float())


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_strides(layout):
    levels, parents, grad = inputs((13, 4), (5, 6))
    if layout == "transposed":
        change = [x.mT.contiguous().mT for x in (*levels, grad)]
        parents = [p.T.contiguous().T for p in parents]
    elif layout == "sliced":
        change = [torch.cat([x, x], 1)[:, x.shape[1] :] for x in (*levels, grad)]
    else:
        change = [x[:1].expand_as(x) for x in (*levels, grad)]
    *views, grad = change
    assert max_error(kernels.forward(views, parents), unpool_oracle(views, parents)) == 0.0
    for found, exact in zip(backward(views, parents, grad), adjoint(views, parents, grad), strict=True):
        assert found.is_contiguous()
        assert_accurate(found, exact, exact.float())


@pytest.mark.parametrize(("B", "sizes", "channels"), [(0, (3, 2), (1, 2)), (2, (0, 2), (1, 2)), (2, (3, 0), (1, 2))])
def test_nothing(B, sizes, channels, poison):
    levels, parents, grad = inputs(sizes, channels, B=B)
    assert max_error(kernels.forward(levels, parents), unpool_oracle(levels, parents)) == 0.0
    for found, x in zip(backward(levels, parents, grad), levels, strict=True):
        assert found.shape == x.shape
    if sizes[0] == 0:
        assert (found == 0).all()


def test_runs_are_bitwise_equal():
    levels, parents, grad = inputs((65, 9, 3), (3, 17, 5))
    first = [kernels.forward(levels, parents), *backward(levels, parents, grad)]
    for _ in range(20 if KERNEL_DEVICE == "cuda" else 2):
        again = [kernels.forward(levels, parents), *backward(levels, parents, grad)]
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


def test_an_image_does_not_depend_on_its_batch():
    levels, parents, grad = inputs((33, 9), (0, 17))
    both = backward(levels, parents, grad)[1]
    alone = backward([x[1:] for x in levels], [p[1:] for p in parents], grad[1:])[1]
    assert torch.equal(both[1:], alone)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "requires_grad"])
def test_opcheck_of_the_backward(layout, device):
    _, parents, grad = inputs((7, 4, 3), (2, 3, 2), device=device)
    if layout == "transposed":
        grad = grad.mT.contiguous().mT
    op = torch.ops.cast_kernels.unpool_concat_backward.default
    torch.library.opcheck(op, (grad.requires_grad_(layout == "requires_grad"), parents, [7, 4, 3], [2, 3, 2]))


def test_gradient_of_the_gradient():
    levels, parents, _ = inputs((7, 4, 3), (2, 1, 2), device="cpu")
    leaves = [x.double().requires_grad_() for x in levels]
    assert gradgradcheck(lambda *x: unpool_concat(x, parents).square(), leaves)


class TestOnTheGpu:
    pytestmark = needs_gpu

    def case(self, seed=0, device="cuda", sizes=(196, 64, 32), channels=(0, 96, 24)):
        levels, parents, grad = inputs(sizes, channels, torch.bfloat16, B=3, device=device, seed=seed)
        return *levels, *parents, grad

    def run(self, *case):
        levels = [x.detach().requires_grad_() for x in case[:3]]
        out = unpool_concat(levels, case[3:5])
        return out, *torch.autograd.grad(out, levels, case[5])

    def test_public_functions_launch_the_kernels(self, monkeypatch):
        calls = []
        forward, backward = kernels.forward, kernels.backward
        monkeypatch.setattr(kernels, "forward", lambda *a: calls.append("forward") or forward(*a))
        monkeypatch.setattr(kernels, "backward", lambda *a: calls.append("backward") or backward(*a))
        self.run(*self.case())
        coarse, parents = self.case()[1].requires_grad_(), self.case()[3]
        unpool(coarse, parents).float().sum().backward()
        assert calls == ["forward", "backward"] * 2
        unpool(coarse.double(), parents)  # float64 is the reference's
        assert len(calls) == 4

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_standard_shape(self, dtype):
        levels, parents, grad = inputs((196, 64, 32, 16), (384,) * 4, dtype, B=16)
        assert max_error(kernels.forward(levels, parents), unpool_oracle(levels, parents)) == 0.0
        found, exact = backward(levels, parents, grad)[1], adjoint(levels, parents, grad)[1]
        assert_accurate(found, exact, plain(grad[..., 384:768], parents[0], 64), times=3)

    def test_no_synchronisation(self):
        assert_no_synchronisation(self.run, self.case())

    def test_cuda_graph(self):
        assert_graph_replays(self.run, self.case(), self.case(seed=1))

    def test_second_stream(self):
        assert_second_stream_agrees(self.run, self.case())

    @needs_second_gpu
    def test_second_device(self):
        assert_devices_agree(self.run, self.case(), self.case(device="cuda:1"))

    @pytest.mark.sanitize
    def test_small_for_the_sanitizer(self):
        self.run(*self.case(sizes=(37, 9, 4), channels=(3, 17, 5)))


@pytest.mark.parametrize("channels", [1, 6])
def test_one_coarse_segment_in_sequence_first_memory(channels):
    """[K, B, C] seen as [B, K, C]: with K = 1 the strides say nothing, and contiguous() keeps them."""
    coarse = torch.randn(1, 3, channels, device=KERNEL_DEVICE).transpose(0, 1)
    fine = torch.randn(5, 3, channels, device=KERNEL_DEVICE).transpose(0, 1)
    parents = [torch.zeros(3, 5, dtype=torch.int64, device=KERNEL_DEVICE)]
    for levels in ([fine, coarse], [fine, coarse.expand(3, 4, channels)[:, :1]]):
        assert max_error(kernels.forward(levels, parents), unpool_oracle(levels, parents)) == 0.0
    grad = torch.ones(1, 1, 1, device=KERNEL_DEVICE).expand(3, 5, 2 * channels)
    found = backward([fine, coarse], parents, grad)
    assert (found[1] == 5).all()
