"""GraphPool against its definition, written out per image with plain products."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cast.layers import GraphPool
from cast.layers.graph_pool import MAX_KAPPA


def make_pool(dim=24, num_clusters=5, num_heads=12, **options):
    pool = GraphPool(dim, num_clusters, num_heads, **options).double().eval()
    for p in pool.parameters():
        nn.init.normal_(p, std=0.5)
    return pool


def farthest(points, start, k, allowed):
    """Greedy farthest points from ``start``; ties and exhausted distances go to the lowest allowed index."""
    distance, picks = (points - start).square().sum(-1), []
    for _ in range(k):
        left = [i for i in allowed if i not in picks] or [i for i in range(len(points)) if i not in picks]
        picks.append(max(left, key=lambda i: (distance[i].item() if i in allowed else -1.0, -i)))
        distance = torch.minimum(distance, (points - points[picks[-1]]).square().sum(-1))
    return torch.tensor(picks)


def expand(pool, x):
    x = F.layer_norm(x, x.shape[-1:], pool.norm1.weight, pool.norm1.bias, 1e-5)
    return F.gelu(x @ pool.fc1.weight.T + pool.fc1.bias)


def project(pool, x):
    return F.layer_norm(x, x.shape[-1:], pool.norm2.weight, pool.norm2.bias, 1e-5) @ pool.fc2.weight.T + pool.fc2.bias


def reference(pool, tokens, cls, mask):
    """One image: tokens [N, C], cls [M, C], mask [N]."""
    allowed = mask.nonzero()[:, 0].tolist()
    mean = tokens[mask].mean(0)
    if pool.normalize:
        points, start = F.normalize(tokens, dim=1), F.normalize(mean, dim=0)
    else:
        points, start = tokens, mean
    indices = farthest(points, start, pool.num_clusters, allowed)
    normed = F.layer_norm(tokens, tokens.shape[-1:], pool.norm.weight, pool.norm.bias, 1e-6)
    u = tokens + pool.attn(normed[None])[0]
    u = u - u.mean(0) + pool.bias
    unit = u / u.norm(dim=1, keepdim=True)
    logits = pool.kappa * unit @ unit[indices].T
    share = logits.softmax(1)
    pooled = share.T @ expand(pool, tokens) / share.sum(0)[:, None]
    return tokens[indices] + project(pool, pooled), cls + project(pool, expand(pool, cls)), logits, indices


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("batch", "num_tokens", "num_cls", "dim", "heads", "clusters"),
    [(1, 1, 1, 12, 12, 1), (2, 7, 0, 36, 12, 7), (3, 23, 1, 24, 4, 5), (2, 11, 3, 15, 5, 1)],
)
def test_matches_definition(batch, num_tokens, num_cls, dim, heads, clusters, normalize):
    pool = make_pool(dim, clusters, heads, kappa=3.0, normalize=normalize)
    tokens = torch.randn(batch, dim, num_tokens, dtype=torch.float64).mT  # not contiguous
    cls = torch.randn(batch, num_cls, dim, dtype=torch.float64)
    mask = torch.rand(batch, num_tokens) > 0.3
    mask[:, 0] = True
    result = pool(tokens, cls, mask)
    for b in range(batch):
        coarse, new_cls, logits, indices = reference(pool, tokens[b], cls[b], mask[b])
        assert torch.equal(result.indices[b], indices)
        torch.testing.assert_close(result.tokens[b], coarse, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(result.cls[b], new_cls, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(result.logits[b], logits, rtol=1e-10, atol=1e-10)
        assert torch.equal(result.parents[b], logits.argmax(1))


@pytest.mark.parametrize("normalize", [False, True])
def test_no_mask_is_all_valid_and_no_cls_changes_nothing_else(normalize):
    pool = make_pool(normalize=normalize)
    tokens = torch.randn(2, 9, 24, dtype=torch.float64)
    bare = pool(tokens)
    full = pool(tokens, torch.randn(2, 1, 24, dtype=torch.float64), torch.ones(2, 9, dtype=torch.bool))
    assert bare.cls is None
    assert torch.equal(bare.indices, full.indices)
    torch.testing.assert_close(bare.tokens, full.tokens, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalize", [False, True])
def test_masked_tokens_are_not_sampled_but_take_part(normalize):
    pool = make_pool(normalize=normalize)
    tokens = torch.randn(1, 12, 24, dtype=torch.float64)
    mask = torch.ones(1, 12, dtype=torch.bool)
    mask[0, [3, 8]] = False
    result = pool(tokens, mask=mask)
    assert not {3, 8} & set(result.indices[0].tolist())
    changed = tokens.clone()
    changed[0, 8] *= 50.0
    other = pool(changed, mask=mask)
    assert torch.equal(other.indices, result.indices)
    assert not torch.allclose(other.tokens, result.tokens)


def test_masked_tokens_follow_when_valid_ones_run_out():
    pool = make_pool(num_clusters=4)
    mask = torch.tensor([[False, True, False, True, False]])
    indices = pool.sample(torch.randn(1, 5, 24, dtype=torch.float64), mask)
    assert set(indices[0, :2].tolist()) == {1, 3}
    assert indices[0, 2:].tolist() == [0, 2]


def test_permutation_of_tokens_permutes_the_result():
    pool = make_pool()
    tokens = torch.randn(2, 13, 24, dtype=torch.float64)
    order = torch.randperm(13)
    first, second = pool(tokens), pool(tokens[:, order])
    assert torch.equal(order[second.indices], first.indices)
    torch.testing.assert_close(first.tokens, second.tokens, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(first.logits[:, order], second.logits, rtol=1e-10, atol=1e-10)


def test_gradients():
    pool = make_pool(dim=8, num_clusters=2, num_heads=2)
    tokens = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    cls = torch.randn(2, 1, 8, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True] * 5, [True, True, False, True, True]])
    assert torch.autograd.gradcheck(lambda t, c: pool(t, c, mask)[:3], (tokens, cls))


def test_every_parameter_but_the_centred_bias_gets_a_gradient():
    pool = make_pool()
    result = pool(torch.randn(2, 9, 24, dtype=torch.float64), torch.randn(2, 1, 24, dtype=torch.float64))
    (result.tokens.square().sum() + result.cls.square().sum()).backward()
    for name, p in pool.named_parameters():
        norm = p.grad.norm().item()
        assert (norm < 1e-10) if name == "attn.proj.bias" else (norm > 1e-3), (name, norm)


def test_dropout_follows_fc1_and_nothing_else():
    pool = make_pool(dropout=0.5)
    tokens = torch.randn(1, 9, 24, dtype=torch.float64)
    calm = pool(tokens)
    pool.train()
    first, second = pool(tokens), pool(tokens)
    assert torch.equal(first.logits, calm.logits)  # the grouping is not dropped
    assert not torch.equal(first.tokens, second.tokens)
    seen = []
    pool.dropout.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    pool(tokens)
    torch.testing.assert_close(seen[0], expand(pool, tokens), rtol=1e-10, atol=1e-10)
    assert GraphPool(24, 5).dropout.p == 0.1


def test_fresh_weights():
    pool = GraphPool(384, 8)
    assert pool.bias.std().item() == pytest.approx(0.01, rel=0.2)
    bound = 384**-0.5  # the default of nn.Linear
    assert bound * 0.99 < pool.attn.qkv.weight.abs().max().item() <= bound
    assert pool.attn.qkv.bias.abs().max() > 0


def test_compiles_to_one_graph():
    pool = make_pool().float()
    tokens, cls, mask = torch.randn(2, 9, 24), torch.randn(2, 1, 24), torch.rand(2, 9) > 0.2
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(pool(tokens, cls, mask), compiled(tokens, cls, mask), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_autocast_keeps_the_residual_in_float32():
    pool = make_pool().float()
    tokens, cls = torch.randn(2, 9, 24), torch.randn(2, 1, 24)
    plain = pool(tokens, cls)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = pool(tokens, cls)
    assert torch.equal(half.indices, plain.indices)
    assert half.tokens.dtype == half.cls.dtype == torch.float32
    torch.testing.assert_close(half.tokens, plain.tokens, rtol=0.1, atol=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype):
    result = make_pool().to(dtype)(torch.randn(2, 9, 24, dtype=dtype), torch.randn(2, 1, 24, dtype=dtype))
    assert result.tokens.dtype == result.cls.dtype == result.logits.dtype == dtype
    assert result.tokens.isfinite().all()


def test_empty_batch():
    result = make_pool()(torch.randn(0, 9, 24, dtype=torch.float64))
    assert result.tokens.shape == (0, 5, 24)
    assert result.logits.shape == (0, 9, 5)


@pytest.mark.parametrize(
    ("tokens", "cls", "mask", "message"),
    [
        ((2, 4, 24), None, None, "num_clusters = 5 tokens"),
        ((2, 9, 23), None, None, r"\[B, N, 24\]"),
        ((9, 24), None, None, r"\[B, N, 24\]"),
        ((2, 9, 24), (1, 1, 24), None, r"cls \[2, M, 24\]"),
        ((2, 9, 24), (2, 24), None, r"cls \[2, M, 24\]"),
        ((2, 9, 24), None, (2, 8), "bool mask"),
    ],
)
def test_rejects_bad_input(tokens, cls, mask, message):
    pool = make_pool()
    zeros = [None if s is None else torch.zeros(s, dtype=torch.float64) for s in (tokens, cls)]
    with pytest.raises(ValueError, match=message):
        pool(*zeros, None if mask is None else torch.ones(mask, dtype=torch.bool))


def test_rejects_a_mask_of_numbers():
    with pytest.raises(ValueError, match="bool mask"):
        make_pool()(torch.zeros(2, 9, 24, dtype=torch.float64), mask=torch.ones(2, 9))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", ["tokens", "cls", "mask"])
def test_rejects_lists(name, normalize):
    pool = make_pool(normalize=normalize)
    arguments = {
        "tokens": torch.zeros(2, 9, 24, dtype=torch.float64),
        "cls": torch.zeros(2, 1, 24, dtype=torch.float64),
        "mask": torch.ones(2, 9, dtype=torch.bool),
    }
    arguments[name] = arguments[name].tolist()
    with pytest.raises(TypeError, match=f"{name} to be a torch.Tensor, got list"):
        pool(**arguments)
    if name != "cls":
        with pytest.raises(TypeError, match=f"{name} to be a torch.Tensor, got list"):
            pool.sample(arguments["tokens"], arguments["mask"])


def test_rejects_tokens_of_integers():
    with pytest.raises(TypeError, match="floating point tokens"):
        make_pool()(torch.zeros(2, 9, 24, dtype=torch.int64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_clusters": 0}, "num_clusters"),
        ({"num_clusters": 1.5}, "num_clusters"),
        ({"num_clusters": "5"}, "num_clusters"),
        ({"num_clusters": True}, "num_clusters"),
        ({"kappa": -1}, r"kappa in \(0, 40\]"),
        ({"kappa": 0.0}, "kappa"),
        ({"kappa": 99}, "kappa"),
        ({"kappa": float("nan")}, "kappa"),
        ({"mlp_ratio": 0}, "mlp_ratio"),
        ({"mlp_ratio": 0.01}, "mlp_ratio"),
    ],
)
def test_rejects_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        GraphPool(**{"dim": 24, "num_clusters": 5, **settings})


def test_takes_the_kappa_that_the_op_takes():
    tokens = torch.randn(1, 9, 24, dtype=torch.float64)
    assert make_pool(kappa=MAX_KAPPA)(tokens).tokens.isfinite().all()
    pool = make_pool()
    pool.kappa = MAX_KAPPA * 1.001
    with pytest.raises(ValueError, match="kappa"):
        pool(tokens)


def test_rejects_bad_settings():
    with pytest.raises(ValueError, match="num_heads"):
        GraphPool(20, 4)


def test_repr_names_the_settings():
    assert "num_clusters=5, kappa=5, normalize=False" in repr(GraphPool(24, 5))
