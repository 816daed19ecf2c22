"""``torch.vmap`` over every op equals a loop: the mapped dimension joins the batch."""

import pytest
import torch

from cast_kernels import (
    assign_pool,
    farthest_point_sample,
    rgb_to_lab,
    segment_mean,
    unpool,
    unpool_concat,
    unpool_linear,
)

M, B, N, K, C = 3, 2, 9, 4, 5


def randn(*shape, device="cpu"):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(device)


def labels(*shape, high=K, device="cpu"):
    return torch.randint(-1, high + 1, shape, generator=torch.Generator().manual_seed(sum(shape))).to(device)


def assert_vmap_is_a_loop(function, in_dims, *tensors):
    """``in_dims`` as torch.vmap takes them, one a tensor."""
    found = torch.vmap(function, in_dims=in_dims)(*tensors)
    each = [
        function(*(x if d is None else x.select(d, i) for x, d in zip(tensors, in_dims, strict=True))) for i in range(M)
    ]
    single = isinstance(found, torch.Tensor)
    for i, expected in enumerate(each):
        pairs = [(found, expected)] if single else zip(found, expected, strict=True)
        for result, right in pairs:
            assert torch.equal(result[i], right)


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (1, None, 2), (None, 0, None)])
def test_assign_pool(in_dims, device):
    tensors = [randn(B, N, C, device=device), labels(B, K, high=N, device=device), randn(B, N, 7, device=device)]
    tensors = [
        x if d is None else torch.stack([x.roll(i, 1) for i in range(M)], d)
        for x, d in zip(tensors, in_dims, strict=True)
    ]
    assert_vmap_is_a_loop(assign_pool, in_dims, *tensors)


@pytest.mark.parametrize("masked", [False, True])
def test_farthest_point_sample(masked, device):
    x = randn(B, M, N, C, device=device)
    mask = torch.arange(N, device=device).expand(B, N) < 7 if masked else None
    assert_vmap_is_a_loop(lambda x: farthest_point_sample(x, K, mask=mask), (1,), x)
    if masked:
        masks = torch.stack([mask.roll(i, 1) for i in range(M)])
        assert_vmap_is_a_loop(lambda x, m: farthest_point_sample(x, K, mask=m), (1, 0), x, masks)


@pytest.mark.parametrize("in_dims", [(0, 0), (None, 2), (3, None)])
def test_unpool(in_dims, device):
    coarse = randn(B, K, C, M, device=device).movedim(3, in_dims[0]) if in_dims[0] is not None else randn(B, K, C)
    parents = labels(B, N, M, device=device).movedim(2, in_dims[1]) if in_dims[1] is not None else labels(B, N)
    assert_vmap_is_a_loop(unpool, in_dims, coarse.to(device), parents.to(device))


def test_unpool_concat(device):
    tensors = (randn(M, B, N, 2, device=device), randn(B, 5, 3, device=device), randn(B, M, K, 1, device=device))
    tables = (labels(B, N, M, high=5, device=device), labels(B, 5, device=device))
    assert_vmap_is_a_loop(
        lambda a, b, c, p, q: unpool_concat([a, b, c], [p, q]), (0, None, 1, 2, None), *tensors, *tables
    )


def test_unpool_linear(device):
    tensors = (randn(M, B, N, 2, device=device), randn(B, 5, 3, device=device), randn(M, 6, 5, device=device))
    table = labels(B, N, M, high=5, device=device)

    def call(fine, coarse, weight, table):
        return unpool_linear([fine, coarse], [table], weight)

    found = torch.vmap(call, in_dims=(0, None, 0, 2))(*tensors, table)
    for i in range(M):  # products of a stack of weights are rounded their own way
        torch.testing.assert_close(found[i], call(tensors[0][i], tensors[1], tensors[2][i], table[..., i]))


@pytest.mark.parametrize(
    ("shape", "in_dim"),
    [((B, 6, 7, C), None), ((1, 6, 7, C), None), ((M, B, 6, 7, C), 0), ((1, M, 6, 7, C), 1)],
)
def test_segment_mean(shape, in_dim, device):
    """With a map of positions that each image, each element or all share."""
    x, where = randn(B, M, 3, 4, C, device=device), labels(M, B, 6, 7, device=device)

    def call(x, where, add):
        return segment_mean(x, where, K, add=add, interpolation="bilinear")

    assert_vmap_is_a_loop(call, (1, 0, in_dim), x, where, randn(*shape, device=device))
    assert_vmap_is_a_loop(lambda x: segment_mean(x, where[0], K, interpolation="nearest"), (1,), x)


def test_rgb_to_lab(device):
    image = torch.randint(256, (B, 4, 5, 3, M), generator=torch.Generator().manual_seed(0)).byte().to(device)
    assert_vmap_is_a_loop(rgb_to_lab, (4,), image)


def gradients(make, leaves):
    """Of one output by the leaves, for M gradients of it: at once (vmap over the backward), and one by one."""
    out = make()
    grads = randn(M, *out.shape, device=out.device)
    batched = torch.vmap(lambda grad: torch.autograd.grad(out, leaves, grad, retain_graph=True))(grads)
    return batched, [torch.autograd.grad(make(), leaves, grad) for grad in grads]


@pytest.mark.parametrize("op", ["assign_pool", "unpool_concat", "unpool_linear", "segment_mean"])
@pytest.mark.parametrize("shared", [False, True])
def test_backward(op, shared, device):
    x = randn(B, N, C, device=device).requires_grad_()
    y = randn(B, N if op == "assign_pool" else K, C, device=device).requires_grad_()
    if op == "assign_pool":
        make = lambda: assign_pool(x, labels(B, K, high=N, device=device), y)[1]  # noqa: E731
    elif op == "unpool_concat":
        make = lambda: unpool_concat([x, y], [labels(B, N, device=device)])  # noqa: E731
    elif op == "unpool_linear":
        make = lambda: unpool_linear([x, y], [labels(B, N, device=device)], randn(6, 2 * C, device=device))  # noqa: E731
    else:
        y = randn(1 if shared else B, N, C, device=device).requires_grad_()
        make = lambda: segment_mean(x, labels(B, N, device=device), K, add=y)[0]  # noqa: E731
    batched, single = gradients(make, (x, y))
    for i, expected in enumerate(single):
        for found, right in zip(batched, expected, strict=True):
            torch.testing.assert_close(found[i], right)


def test_nested(device):
    x, parents = randn(M, 2, B, K, C, device=device), labels(B, N, device=device)
    found = torch.vmap(torch.vmap(lambda x: unpool(x, parents)))(x)
    assert torch.equal(found[1, 1], unpool(x[1, 1], parents))
