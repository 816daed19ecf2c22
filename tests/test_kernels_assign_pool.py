import pytest
import torch
import torch.nn.functional as F
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

from cast_kernels import assign_pool
from cast_kernels.assign_pool import assign_pool_backward_ref, assign_pool_ref
from cast_kernels.kernels import assign_pool as kernels
from cast_kernels.kernels import assign_pool_backward, assign_pool_backward_split
from cast_kernels.testing import assert_accurate, assign_pool_oracle, max_error

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
HALVES = DTYPES[1:]
SHAPES = [  # B, N, K, C, D
    (1, 1, 1, 1, 1),
    (1, 1, 1, 8, 8),
    (2, 63, 17, 8, 24),
    (2, 63, 17, 5, 20),  # rows that are not aligned are split
    (3, 65, 1, 48, 8),
    (2, 23, 23, 8, 8),
    (2, 196, 64, 24, 96),
    (1, 300, 20, 40, 72),  # too many tokens for one program
    (1, 80, 71, 40, 136),  # too many clusters
    (1, 300, 130, 12, 48),  # both, in several tiles, and z as wide as the pools make it
]
SPLIT = [  # B, N, K, C, D
    (2, 63, 17, 5, 20),
    (1, 300, 20, 40, 72),
    (1, 80, 71, 40, 136),
    (2, 67, 67, 3, 7),
    (1, 257, 1, 8, 3),
]
WHOLE = [(1, 1, 1, 8, 8), (2, 63, 17, 8, 24), (3, 65, 1, 48, 8), (2, 23, 23, 8, 8), (2, 130, 64, 40, 56)]


def inputs(B, N, K, C, D, dtype=torch.float32, device=KERNEL_DEVICE, seed=0):
    g = torch.Generator().manual_seed(seed)
    u, z = torch.randn(B, N, C, generator=g), torch.randn(B, N, D, generator=g)
    centroids = torch.stack([torch.randperm(N, generator=g)[:K] for _ in range(B)])
    return u.to(device, dtype), centroids.to(device), z.to(device, dtype)


def output_grads(B, N, K, C, D, dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    return [torch.randn(*size, generator=g).to(KERNEL_DEVICE, dtype) for size in ((B, N, K), (B, K, D))]


def plain(u, centroids, z, kappa):
    unit = F.normalize(u, dim=-1)
    index = centroids.clamp(min=0)[..., None].expand(-1, -1, u.shape[-1])
    logits = kappa * unit @ (unit.gather(1, index) * (centroids >= 0)[..., None]).mT
    share = logits.softmax(-1)
    return logits, share.mT @ z / share.sum(1)[..., None]


def assert_forward(arguments, kappa):
    found = kernels.forward(*arguments, kappa)
    exact = assign_pool_oracle(*arguments, kappa)
    for result, oracle, simple in zip(found, exact, plain(*arguments, kappa), strict=False):
        assert result.dtype == arguments[0].dtype
        assert_accurate(result, oracle, simple)
    assert_chosen(found[2], exact[0], kappa)


def assert_chosen(parents, logits, kappa):
    chosen = logits.gather(2, parents[..., None])[..., 0]
    assert (logits.amax(-1) - chosen <= 1e-6 * kappa).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kappa", [5.0, 0.1, 40.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward(shape, kappa, dtype, poison):
    arguments = inputs(*shape, dtype)
    found, exact = kernels.forward(*arguments, kappa), assign_pool_oracle(*arguments, kappa)
    for result, oracle, simple in zip(found, exact, plain_error(shape, kappa, dtype), strict=False):
        assert result.dtype == dtype
        rounding = torch.finfo(dtype).eps * oracle.abs().max().item()
        assert max_error(result, oracle) <= 2 * simple + rounding
    assert_chosen(found[2], exact[0], kappa)


def plain_error(shape, kappa, dtype):
    """Largest errors of plain PyTorch over four draws: of one draw, at kappa = 40, they may be small by luck."""
    errors = []
    for seed in range(4):
        arguments = inputs(*shape, dtype, seed=seed)
        pairs = zip(plain(*arguments, kappa), assign_pool_oracle(*arguments, kappa), strict=True)
        errors.append([max_error(simple, oracle) for simple, oracle in pairs])
    return [max(worst) for worst in zip(*errors, strict=True)]


@pytest.mark.parametrize("dtype", HALVES)
def test_columns_are_shared_out(dtype, monkeypatch, poison):
    """A small batch divides z among programs, the last of which gets less."""
    monkeypatch.setattr(kernels, "processors", lambda device: 3)
    assert_forward(inputs(2, 40, 9, 24, 648, dtype), 5.0)


@pytest.mark.parametrize("kappa", [0.1, 40.0])
@pytest.mark.parametrize("shape", [(2, 63, 17, 8, 24), (1, 300, 20, 40, 72)])
def test_shares_of_a_token_sum_to_one(shape, kappa):
    """So the pooled values, each as often as its cluster weighs, sum to what the tokens sum to."""
    u, centroids, z = inputs(*shape)
    logits, pooled, _ = kernels.forward(u, centroids, z, kappa)
    weight = logits.double().softmax(-1).sum(1)
    torch.testing.assert_close((weight[..., None] * pooled).sum(1), z.double().sum(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 63, 17, 8, 24), (1, 300, 20, 40, 72)])
def test_pooling_is_the_adjoint_of_its_gradient(shape):
    u, centroids, z = inputs(*shape)
    _, grad = output_grads(*shape)
    _, pooled, _ = kernels.forward(u, centroids, z, 5.0)
    none = torch.zeros(*u.shape[:2], shape[2]).to(u)
    _, grad_z = assign_pool_backward.backward(u, centroids, z, 5.0, none, grad)
    torch.testing.assert_close((pooled.double() * grad).sum(), (grad_z.double() * z).sum(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 33, 8, 8, 16), (1, 270, 8, 8, 16)])
def test_views(shape, dtype):
    """Tokens behind a class token, and transposed ones."""
    u, centroids, z = inputs(*shape, dtype)
    expected = kernels.forward(u, centroids, z, 5.0)
    behind = [torch.cat([x[:, :1], x], 1)[:, 1:] for x in (u, z)]
    across = [x.mT.contiguous().mT for x in (u, z)]
    for a, b in (behind, across):
        found = kernels.forward(a, centroids.T.contiguous().T, b, 5.0)
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 9, 4, 8, 8), (1, 270, 4, 8, 8)])
def test_centroids_out_of_range_have_cosine_zero(shape, dtype):
    u, centroids, z = inputs(*shape, dtype)
    centroids[0, 1:] = torch.tensor([-1, shape[1], 2**40])
    logits, pooled, _ = kernels.forward(u, centroids, z, 40.0)
    assert (logits[0, :, 1:] == 0).all()
    assert (logits[0, :, 0] != 0).all()
    assert pooled.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [9, 270])
def test_a_cluster_that_no_token_is_near_keeps_its_mean(N, dtype):
    """Its shares are all exp(-40), far below half precision's numbers."""
    u, centroids, z = inputs(1, N, 2, 8, 8, dtype)
    u[:] = u[0, :1]
    centroids[0] = torch.tensor([0, -1])
    _, pooled, _ = kernels.forward(u, centroids, z, 40.0)
    mean = z.double().mean(1, keepdim=True).expand_as(pooled)
    assert_accurate(pooled, mean, assign_pool_ref(u, centroids, z, 40.0)[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [9, 270])
def test_zero_and_unbounded_tokens(dtype, N):
    u, centroids, z = inputs(1, N, 4, 8, 8, dtype)
    u[0, 5] = 0.0
    if dtype == torch.float16:
        u *= 1e4 / u.abs().max()
    else:
        u[0, 6] = 1e25
    logits, pooled, _ = kernels.forward(u, torch.tensor([[5, 6, 7, 8]]).to(centroids), z, 5.0)
    assert (logits[0, 5] == 0).all()
    assert (logits[0, :, 0] == 0).all()
    assert logits.isfinite().all()
    assert pooled.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 8])
def test_parents_take_the_lowest_cluster_on_ties(dtype, width):
    u = torch.zeros(1, 3, width, dtype=dtype, device=KERNEL_DEVICE)
    u[0, :, 0] = torch.tensor([1.0, 2.0, -4.0])
    centroids = torch.tensor([[1, 0, 2, 2]], device=KERNEL_DEVICE)
    assert kernels.forward(u, centroids, u, 5.0)[2].tolist() == [[0, 0, 2]]


@pytest.mark.parametrize("K", [80, 20])
def test_ties_between_tiles_of_clusters(K):
    u = torch.ones(1, 300, 8, device=KERNEL_DEVICE)
    assert (kernels.forward(u, torch.zeros(1, K, dtype=torch.int64, device=KERNEL_DEVICE), u, 5.0)[2] == 0).all()


def assert_backward(shape, kappa, dtype):
    u, centroids, z = inputs(*shape, dtype)
    if shape[2] > 2:
        centroids[:, 1] = centroids[:, 0]  # a token of two clusters
        centroids[0, 2] = -1
    grads = output_grads(*shape, dtype)
    found = assign_pool_backward.backward(u, centroids, z, kappa, *grads)
    results = {}
    for name, t in (("exact", torch.float64), ("plain", dtype)):
        leaves = [x.detach().to(t).requires_grad_() for x in (u, z)]
        results[name] = torch.autograd.grad(
            plain(leaves[0], centroids, leaves[1], kappa), leaves, [x.to(t) for x in grads]
        )
    for result, exact, simple in zip(found, results["exact"], results["plain"], strict=True):
        assert result.dtype == dtype
        # plain float16 overflows at kappa = 40: there 1.5 % of the largest is allowed, what bfloat16 errs elsewhere
        finite = torch.where(simple.isfinite(), simple, exact + 0.005 * exact.abs().max())
        assert_accurate(result, exact, finite, times=3)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kappa", [5.0, 40.0])
@pytest.mark.parametrize("shape", WHOLE)
def test_backward(shape, kappa, dtype, poison):
    u, centroids, z = inputs(*shape, dtype)
    assert assign_pool_backward.takes(u, centroids, z)
    assert_backward(shape, kappa, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kappa", [5.0, 40.0])
@pytest.mark.parametrize("shape", SPLIT)
def test_backward_of_what_one_program_cannot_do(shape, kappa, dtype, poison):
    u, centroids, z = inputs(*shape, dtype)
    assert not assign_pool_backward.takes(u, centroids, z)
    assert_backward(shape, kappa, dtype)


@pytest.mark.parametrize("shape", WHOLE)
def test_float32_is_always_split(shape, poison):
    assert_backward(shape, 5.0, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_ways_of_the_backward_agree(dtype):
    """The split one takes every shape."""
    u, centroids, z = inputs(2, 40, 9, 16, 24, dtype)
    grads = output_grads(2, 40, 9, 16, 24, dtype)
    found = assign_pool_backward_split.backward(u, centroids, z, 5.0, *grads)
    expected = assign_pool_backward_ref(u, centroids, z, 5.0, *grads)
    for result, right in zip(found, expected, strict=True):
        assert (result.float() - right.float()).abs().max() <= 8 * torch.finfo(dtype).eps * right.abs().max()


def test_parts_of_the_split_backward_are_added(monkeypatch, poison):
    """A small batch cuts the sum over z's columns; the result differs by rounding alone."""
    case = inputs(1, 33, 9, 12, 200)
    grads = output_grads(1, 33, 9, 12, 200)
    alone = assign_pool_backward_split.backward(*case, 5.0, *grads)
    monkeypatch.setattr(assign_pool_backward_split, "processors", lambda device: 5)
    for a, b in zip(alone, assign_pool_backward_split.backward(*case, 5.0, *grads), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("C", "D"), [(4, 0), (0, 4)])
def test_no_columns(C, D, poison):
    u, centroids, z = inputs(2, 7, 3, C, D)
    grads = output_grads(2, 7, 3, C, D)
    for found, like in zip(assign_pool_backward.backward(u, centroids, z, 5.0, *grads), (u, z), strict=True):
        assert found.shape == like.shape
        assert found.isfinite().all()


def test_gradients_of_the_scale_of_a_loss_in_float16():
    """Products of large gradients and of tokens must not leave float16 on the way."""
    shape = (1, 270, 9, 16, 8)
    u, centroids, z = inputs(*shape, torch.float16)
    grads = [1e4 * x for x in output_grads(*shape, torch.float16)]
    found = assign_pool_backward.backward(100 * u, centroids, z, 5.0, *grads)
    exact = assign_pool_backward_ref((100 * u).double(), centroids, z.double(), 5.0, *[x.double() for x in grads])
    for result, right in zip(found, exact, strict=True):
        assert (result - right).abs().max() <= 1e-2 * right.abs().max()


@pytest.mark.parametrize("dtype", HALVES)
def test_backward_with_columns_shared_out(dtype, monkeypatch, poison):
    """Sums in another order: each of the two may be one rounding from what is exact."""
    u, centroids, z = inputs(2, 40, 9, 72, 168, dtype)
    grads = output_grads(2, 40, 9, 72, 168, dtype)
    alone = assign_pool_backward.backward(u, centroids, z, 5.0, *grads)
    monkeypatch.setattr(assign_pool_backward, "processors", lambda device: 3)
    shared = assign_pool_backward.backward(u, centroids, z, 5.0, *grads)
    for a, b in zip(alone, shared, strict=True):
        torch.testing.assert_close(a, b, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("which", [0, 1])
def test_backward_of_one_output(which):
    u, centroids, z = inputs(1, 20, 5, 16, 8, torch.float16)
    grads = [torch.randn(1, 20, 5).to(u), torch.randn(1, 5, 8).to(u)]
    grads[which] = torch.zeros(1, 1, 1).to(u).expand_as(grads[which])
    found = assign_pool_backward.backward(u, centroids, z, 5.0, *grads)
    leaves = [x.double().requires_grad_() for x in (u, z)]
    exact = torch.autograd.grad(plain(leaves[0], centroids, leaves[1], 5.0), leaves, [x.double() for x in grads])
    for result, oracle in zip(found, exact, strict=True):
        assert (result - oracle).abs().max() <= 4e-3 * oracle.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_tokens_have_no_gradient(dtype):
    u, centroids, z = inputs(1, 20, 5, 16, 8, dtype)
    u[0, 3] = 0.0
    centroids[0, 0] = 3
    grads = output_grads(1, 20, 5, 16, 8, dtype)
    grad_u, grad_z = assign_pool_backward.backward(u, centroids, z, 5.0, *grads)
    assert (grad_u[0, 3] == 0).all()
    assert grad_u.isfinite().all()
    assert grad_z.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_runs_are_bitwise_equal(dtype):
    u, centroids, z = inputs(2, 65, 9, 16, 24, dtype)
    grads = [torch.ones(2, 65, 9).to(u), torch.ones(2, 9, 24).to(u)]

    def run():
        split = assign_pool_backward_split.backward(u, centroids, z, 5.0, *grads)
        return (
            *kernels.forward(u, centroids, z, 5.0),
            *assign_pool_backward.backward(u, centroids, z, 5.0, *grads),
            *split,
        )

    first = run()
    for _ in range(20 if KERNEL_DEVICE == "cuda" else 2):
        assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "requires_grad"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_of_the_backward(layout, dtype, device):
    u, centroids, z = inputs(2, 9, 4, 3, 5, dtype, device)
    grads = [torch.ones(2, 9, 4).to(u), torch.ones(2, 4, 5).to(u)]
    tensors = [u, z, *grads]
    if layout == "transposed":
        tensors = [x.mT.contiguous().mT for x in tensors]
    u, z, *grads = [x.requires_grad_(layout == "requires_grad") for x in tensors]
    op = torch.ops.cast_kernels.assign_pool_backward.default
    torch.library.opcheck(op, (u, centroids, z, 5.0, *grads))


def test_gradient_of_the_gradient():
    u, centroids, z = inputs(1, 5, 2, 3, 2, torch.float64, "cpu")
    assert gradgradcheck(lambda u, z: assign_pool(u, centroids, z)[:2], (u.requires_grad_(), z.requires_grad_()))


class TestOnTheGpu:
    pytestmark = needs_gpu

    def case(self, dtype=torch.bfloat16, seed=0, device="cuda", shape=(3, 100, 20, 48, 96)):
        return inputs(*shape, dtype, device, seed)

    def run(self, u, centroids, z):
        u, z = (x.detach().requires_grad_() for x in (u, z))
        logits, pooled, parents = assign_pool(u, centroids, z)
        loss = logits.float().square().sum() + pooled.float().square().sum()
        return logits, pooled, parents, *torch.autograd.grad(loss, (u, z))

    def test_public_function_launches_the_kernels(self, monkeypatch):
        calls = []
        forward, backward = kernels.forward, assign_pool_backward.backward
        monkeypatch.setattr(kernels, "forward", lambda *a: calls.append("forward") or forward(*a))
        monkeypatch.setattr(assign_pool_backward, "backward", lambda *a: calls.append("backward") or backward(*a))
        self.run(*self.case())
        self.run(*self.case(torch.float32))
        assert calls == ["forward", "backward"] * 2
        self.run(*self.case(torch.float64))  # the reference's
        assert len(calls) == 4

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(("N", "K"), [(196, 64), (64, 32), (32, 16), (1024, 320)])
    def test_standard_shapes(self, N, K, dtype):
        assert_forward(inputs(4, N, K, 384, 1536, dtype), 5.0)
        assert_backward((4, N, K, 384, 1536), 5.0, dtype)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_no_synchronisation(self, dtype):
        assert_no_synchronisation(self.run, self.case(dtype))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_cuda_graph(self, dtype):
        assert_graph_replays(self.run, self.case(dtype), self.case(dtype, seed=1))

    def test_second_stream(self):
        assert_second_stream_agrees(self.run, self.case())

    @needs_second_gpu
    def test_second_device(self):
        assert_devices_agree(self.run, self.case(), self.case(device="cuda:1"))

    @pytest.mark.sanitize
    @pytest.mark.parametrize("shape", [(1, 37, 9, 16, 24), (1, 270, 70, 9, 5)])
    def test_small_for_the_sanitizer(self, shape):
        self.run(*self.case(shape=shape))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_token_in_sequence_first_memory(dtype):
    """[N, B, C] seen as [B, N, C]: with N = 1 the strides say nothing, and contiguous() keeps them."""
    u, z = (torch.randn(1, 3, width, device=KERNEL_DEVICE).to(dtype).transpose(0, 1) for width in (8, 16))
    centroids = torch.zeros(3, 1, dtype=torch.int64, device=KERNEL_DEVICE)
    logits, pooled, parents = kernels.forward(u, centroids, z, 5.0)
    assert torch.allclose(logits, torch.full_like(logits, 5.0), rtol=1e-2)
    assert torch.allclose(pooled, z, rtol=1e-2)
    assert (parents == 0).all()
