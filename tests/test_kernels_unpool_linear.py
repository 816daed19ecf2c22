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

from cast_kernels import unpool_linear
from cast_kernels.kernels import unpool_linear as kernels
from cast_kernels.testing import assert_accurate, max_error
from cast_kernels.unpool_linear import unpool_sum_backward_ref, unpool_sum_ref

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZES = [(1, 1), (13, 3), (70, 68), (33, 1, 7), (196, 64, 32, 16), (40, 20, 15, 9, 7), (40, 20, 15, 9, 7, 5, 3, 2, 2)]


def inputs(sizes, C, dtype=torch.float32, B=2, device=KERNEL_DEVICE, seed=0):
    g = torch.Generator().manual_seed(seed)
    levels = [torch.randn(B, n, C, generator=g).to(device, dtype) for n in sizes]
    parents = [torch.randint(-1, k + 1, (B, n), generator=g).to(device) for n, k in itertools.pairwise(sizes)]
    return levels, parents, torch.randn(B, sizes[0], C, generator=g).to(device, dtype)


def exact_gradients(levels, parents, grad):
    return unpool_sum_backward_ref(grad.double(), parents, [x.shape[1] for x in levels[1:]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", [1, 37, 520])
@pytest.mark.parametrize("sizes", SIZES)
def test_forward(sizes, C, dtype, poison):
    levels, parents, _ = inputs(sizes, C if len(sizes) < 6 else min(C, 37), dtype)
    result = kernels.forward(levels, parents)
    assert result.dtype == dtype
    assert_accurate(result, unpool_sum_ref([x.double() for x in levels], parents), unpool_sum_ref(levels, parents))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
def test_backward(sizes, dtype, poison):
    levels, parents, grad = inputs(sizes, 11, dtype)
    found = kernels.backward(grad, parents, [x.shape[1] for x in levels[1:]])
    plain = unpool_sum_backward_ref(grad, parents, [x.shape[1] for x in levels[1:]])
    for result, exact, simple in zip(found, exact_gradients(levels, parents, grad), plain, strict=True):
        assert result.dtype == dtype
        assert_accurate(result, exact, simple, times=3)


def test_parents_far_out_of_range():
    levels, parents, _ = inputs((13, 4, 3), 5)
    parents[0][0, 3], parents[1][1, 0], parents[0][1, 2] = 4, 2**40, -(2**63)
    assert_accurate(kernels.forward(levels, parents), unpool_sum_ref(levels, parents), unpool_sum_ref(levels, parents))


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_strides(layout):
    levels, parents, grad = inputs((13, 4, 3), 6)
    if layout == "transposed":
        change = [x.mT.contiguous().mT for x in (*levels, grad)]
        parents = [p.T.contiguous().T for p in parents]
    elif layout == "sliced":
        change = [torch.cat([x, x], 1)[:, x.shape[1] :] for x in (*levels, grad)]
    else:
        change = [x[:1].expand_as(x) for x in (*levels, grad)]
    *views, grad = change
    assert max_error(kernels.forward(views, parents), unpool_sum_ref(views, parents)) <= 1e-6
    for found, exact in zip(
        kernels.backward(grad, parents, [4, 3]), exact_gradients(views, parents, grad), strict=True
    ):
        assert max_error(found, exact) <= 1e-5


@pytest.mark.parametrize(("B", "sizes"), [(0, (3, 2)), (2, (0, 2)), (2, (3, 0))])
def test_nothing(B, sizes, poison):
    levels, parents, grad = inputs(sizes, 4, B=B)
    assert max_error(kernels.forward(levels, parents), unpool_sum_ref(levels, parents)) == 0.0
    assert [x.shape for x in kernels.backward(grad, parents, sizes[1:])] == [levels[1].shape]


def test_one_level_is_copied():
    (level,), _, grad = inputs((5,), 3)
    assert torch.equal(kernels.forward([level], []), level)
    kernels.forward([level], []).zero_()
    assert (level != 0).any()
    assert kernels.backward(grad, [], []) == []


class TestOnTheGpu:
    pytestmark = needs_gpu

    def case(self, seed=0, device="cuda", sizes=(196, 64, 32), dtype=torch.bfloat16):
        levels, parents, grad = inputs(sizes, 96, dtype, B=3, device=device, seed=seed)
        return *levels, *parents, grad, torch.ones(96, 3 * 96, dtype=dtype, device=device) / 16

    def run(self, *case):
        *levels, weight = [x.detach().requires_grad_() for x in (*case[:3], case[6])]
        out = unpool_linear(levels, case[3:5], weight)
        return out, *torch.autograd.grad(out, (*levels, weight), case[5])

    def test_public_function_launches_the_kernels(self, monkeypatch):
        calls = []
        forward, backward = kernels.forward, kernels.backward
        monkeypatch.setattr(kernels, "forward", lambda *a: calls.append("forward") or forward(*a))
        monkeypatch.setattr(kernels, "backward", lambda *a: calls.append("backward") or backward(*a))
        self.run(*self.case())
        assert calls == ["forward", "backward"]
        self.run(*self.case(dtype=torch.float64))  # the reference's
        assert len(calls) == 2

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
        self.run(*self.case(sizes=(37, 9, 4)))
