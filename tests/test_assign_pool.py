import pytest
import torch
from torch.autograd import gradcheck

from cast_kernels import assign_pool
from cast_kernels.testing import assert_accurate, assign_pool_oracle, max_error

op = torch.ops.cast_kernels.assign_pool.default
SHAPES = [  # B, N, K, C, D
    (1, 1, 1, 1, 1),
    (2, 63, 17, 5, 20),
    (3, 65, 1, 48, 7),
    (2, 23, 23, 3, 3),
    (2, 196, 64, 24, 96),
    (0, 4, 2, 3, 5),
]


def inputs(B, N, K, C, D, dtype=torch.float64, device="cpu"):
    g = torch.Generator().manual_seed(N)
    u, z = (
        torch.randn(B, N, C, generator=g, dtype=torch.float64),
        torch.randn(B, N, D, generator=g, dtype=torch.float64),
    )
    centroids = torch.stack([torch.randperm(N, generator=g)[:K] for _ in range(B)]) if B else torch.zeros(0, K).long()
    return u.to(device, dtype), centroids.to(device), z.to(device, dtype)


def plain(u, centroids, z, kappa):
    """What a user would write in the dtype of the inputs."""
    unit = torch.nn.functional.normalize(u, dim=-1)
    logits = kappa * unit @ unit.gather(1, centroids[..., None].expand(-1, -1, u.shape[-1])).mT
    share = logits.softmax(-1)
    return logits, share.mT @ z / share.sum(1)[..., None]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kappa", [5.0, 0.1, 40.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_oracle(shape, kappa, dtype, device, poison):
    u, centroids, z = inputs(*shape, dtype, device)
    logits, pooled, parents = assign_pool(u, centroids, z, kappa=kappa)
    exact = assign_pool_oracle(u, centroids, z, kappa)
    assert logits.dtype == pooled.dtype == dtype
    assert parents.dtype == torch.int64
    for result, oracle, simple in zip((logits, pooled), exact, plain(u, centroids, z, kappa), strict=True):
        assert_accurate(result, oracle, simple)
    chosen = exact[0].gather(2, parents[..., None])[..., 0]
    assert (exact[0].amax(-1) - chosen <= 1e-6 * kappa).all()


def test_float64_is_exact():
    arguments = inputs(2, 63, 17, 5, 20)
    for result, oracle in zip(assign_pool(*arguments), assign_pool_oracle(*arguments, 5.0), strict=False):
        assert max_error(result, oracle) < 1e-13


def test_parents_take_the_lowest_cluster_on_ties():
    u = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]])
    _, _, parents = assign_pool(u, torch.tensor([[1, 0, 2]]), u)
    assert parents.tolist() == [[0, 0, 2]]


def test_zero_tokens_have_cosine_zero_and_finite_gradients():
    u, centroids, z = inputs(2, 9, 4, 3, 5)
    u[0, 2] = 0.0
    u[1, centroids[1, 0]] = 0.0
    logits, pooled, _ = assign_pool(u.requires_grad_(), centroids, z.requires_grad_())
    assert (logits[0, 2] == 0).all()
    assert (logits[1, :, 0] == 0).all()
    (logits.sum() + pooled.square().sum()).backward()
    assert u.grad.isfinite().all()
    assert z.grad.isfinite().all()


def test_centroids_out_of_range_have_cosine_zero():
    u, _, z = inputs(1, 9, 4, 3, 5)
    logits, _, _ = assign_pool(u, torch.tensor([[2, -1, 9, 2**40]]), z)
    assert (logits[0, :, 1:] == 0).all()
    assert (logits[0, :, 0] != 0).all()


def test_pooling_constants_returns_them():
    u, centroids, _ = inputs(2, 30, 7, 4, 1)
    _, pooled, _ = assign_pool(u, centroids, torch.full((2, 30, 3), 2.5, dtype=torch.float64))
    torch.testing.assert_close(pooled, torch.full((2, 7, 3), 2.5, dtype=torch.float64))


def test_scale_of_u_does_not_matter():
    u, centroids, z = inputs(2, 30, 7, 4, 3)
    for scale in (1e-100, 1e100):
        torch.testing.assert_close(assign_pool(u * scale, centroids, z)[1], assign_pool(u, centroids, z)[1])


def test_norms_that_float32_cannot_square_count_as_zero():
    u, centroids, z = inputs(2, 30, 7, 4, 3, torch.float32)
    for scale in (1e-30, 1e25):
        logits, pooled, _ = assign_pool(u * scale, centroids, z)
        assert (logits == 0).all()
        assert pooled.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_logits_never_exceed_kappa(dtype):
    """Without a clamp rounding takes the cosine of a token with itself past 1."""
    g = torch.Generator().manual_seed(0)
    u = torch.randn(1, 500, 7, generator=g, dtype=torch.float64).to(dtype)
    logits, _, _ = assign_pool(u, torch.arange(500)[None], u, kappa=5.0)
    assert logits.abs().max() <= 5.0


def test_large_half_precision_tokens_do_not_overflow():
    u, centroids, z = inputs(2, 30, 7, 64, 3, torch.float16)
    logits, pooled, _ = assign_pool(u * 1e4, centroids, z)
    assert logits.isfinite().all()
    assert pooled.isfinite().all()


@pytest.mark.parametrize("repeated", [False, True])
def test_gradcheck(repeated):
    u, centroids, z = inputs(2, 7, 3, 4, 5)
    if repeated:
        centroids[:, 1] = centroids[:, 0]
    assert gradcheck(lambda u, z: assign_pool(u, centroids, z)[:2], (u.requires_grad_(), z.requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_is_accurate(dtype, device):
    u, centroids, z = inputs(2, 65, 9, 16, 24, dtype, device)
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(shape, generator=g).to(device, dtype) for shape in ((2, 65, 9), (2, 9, 24))]
    grads = {}
    for name, function, t in (("op", assign_pool, dtype), ("plain", plain, dtype), ("exact", plain, torch.float64)):
        leaves = [x.detach().to(t).requires_grad_() for x in (u, z)]
        arguments = (leaves[0], centroids, leaves[1])
        outputs = function(*arguments)[:2] if name == "op" else function(*arguments, 5.0)
        grads[name] = torch.autograd.grad(outputs, leaves, [w.to(t) for w in weights])
    for result, exact, simple in zip(grads["op"], grads["exact"], grads["plain"], strict=True):
        assert result.dtype == dtype
        assert_accurate(result, exact, simple, times=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "requires_grad"])
def test_opcheck(layout, dtype, device):
    u, centroids, z = inputs(2, 9, 4, 3, 5, dtype, device)
    if layout == "transposed":
        u, z = u.mT.contiguous().mT, z.mT.contiguous().mT
    u.requires_grad_(layout == "requires_grad")
    torch.library.opcheck(op, (u, centroids, z, 5.0))


@pytest.mark.parametrize("K", [1, 4])
def test_compile_fullgraph(K, device):
    u, centroids, z = inputs(2, 9, K, 3, 5, torch.float32, device)

    def loss(u, z):
        logits, pooled, parents = assign_pool(u, centroids, z)
        return logits.sum() + pooled.square().sum() + parents.sum()

    leaves = (u.requires_grad_(), z.requires_grad_())
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for grad, expected in zip(
        torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(loss(*leaves), leaves), strict=False
    ):
        assert torch.equal(grad, expected)


def test_autocast_does_not_lower_the_precision(device):
    u, centroids, z = inputs(2, 30, 7, 16, 20, torch.float32, device)
    leaves = (u.requires_grad_(), z.requires_grad_())
    expected = assign_pool(u, centroids, z)
    gradients = torch.autograd.grad(expected[1].square().sum(), leaves)
    with torch.autocast(device, dtype=torch.bfloat16):
        result = assign_pool(u, centroids, z)
        for found, grad in zip(torch.autograd.grad(result[1].square().sum(), leaves), gradients, strict=True):
            assert torch.equal(found, grad)
    for found, right in zip(result, expected, strict=True):
        assert torch.equal(found, right)


def test_runs_are_bitwise_equal(device):
    u, centroids, z = inputs(2, 196, 64, 32, 48, torch.float32, device)
    leaves = (u.requires_grad_(), z.requires_grad_())
    runs = [torch.autograd.grad(assign_pool(u, centroids, z)[1].square().sum(), leaves) for _ in range(20)]
    assert all(torch.equal(a, b) for run in runs for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"u": torch.zeros(2, 5)}, ValueError, r"u \[B, N, C\]"),
        ({"u": torch.zeros(2, 5, 3, dtype=torch.int32)}, TypeError, "u in float32"),
        ({"z": torch.zeros(2, 4, 3)}, ValueError, r"z \[B, N, D\]"),
        ({"z": torch.zeros(2, 5, 3).double()}, ValueError, "one dtype"),
        ({"centroids": torch.zeros(2, 3, dtype=torch.int32)}, TypeError, "int64"),
        ({"centroids": [[0, 1], [0, 1]]}, TypeError, "centroids to be a torch.Tensor"),
        ({"kappa": "5"}, TypeError, "kappa to be a number"),
        ({"centroids": torch.zeros(1, 3, dtype=torch.int64)}, ValueError, r"\[2, K\]"),
        ({"centroids": torch.zeros(2, 0, dtype=torch.int64)}, ValueError, "at least one"),
        ({"kappa": 0.0}, ValueError, "kappa"),
        ({"kappa": 40.5}, ValueError, "kappa"),
        ({"kappa": float("nan")}, ValueError, "kappa"),
    ],
)
def test_rejects_bad_input(change, error, message):
    arguments = {"u": torch.zeros(2, 5, 3), "centroids": torch.zeros(2, 3).long(), "z": torch.zeros(2, 5, 4)} | change
    with pytest.raises(error, match=message):
        assign_pool(**arguments)
