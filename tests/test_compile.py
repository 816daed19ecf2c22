"""`torch.compile` of whole models: one graph, few of them, the eager results."""

import pytest
import torch
from small_model import grid_labels, make_model, photo
from torch._dynamo.utils import counters

TINY = {"depths": (1, 1), "num_clusters": (8, 4), "pool_dropout": 0.0}


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    counters.clear()


def compiled(forward, backend="aot_eager", **options):
    return torch.compile(forward, fullgraph=True, backend=backend, **options)


def inputs(batch, height, width, cell=8):
    labels = grid_labels(batch, height, width, cell)
    return photo(batch, height, width), labels, int(labels.max()) + 1


def graphs():
    return counters["stats"]["unique_graphs"]


SHAPES = [(2, 64, 64), (3, 64, 64), (2, 72, 96), (2, 48, 96), (4, 96, 96), (5, 40, 120)]


@torch.no_grad()
def test_at_most_one_graph_per_shape():
    """After the first sizes and batches a dynamic graph serves all further ones, here the last three."""
    model = make_model(**TINY, pos_embed="learned")
    forward = compiled(model, backend="eager")
    for number, shape in enumerate(SHAPES, start=1):
        before = graphs()
        assert forward(*inputs(*shape)).shape == (shape[0], 5)
        assert graphs() - before <= 1
        assert graphs() <= min(number, 3)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in SHAPES:
            forward(*inputs(*shape))


@torch.no_grad()
def test_at_most_one_graph_per_shape_with_superpixels_made_inside():
    """Their number follows from the size, so each size is a graph of its own; batches are dynamic."""
    forward = compiled(make_model(**TINY), backend="eager")
    for shape in SHAPES[:3]:
        before = graphs()
        forward(photo(*shape))
        assert graphs() - before <= 1
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in [*SHAPES[:3], (6, 64, 64), (7, 64, 64)]:
            forward(photo(*shape))


@torch.no_grad()
@pytest.mark.parametrize("prepare", ["float32", "float16", "bfloat16", "channels_last", "fused"])
def test_hierarchy(prepare):
    """Outputs, label maps and parents; learned positions, resized."""
    model = make_model(**TINY, pos_embed="learned")
    match prepare:
        case "channels_last":
            model = model.to(memory_format=torch.channels_last)
        case "fused":
            model = model.fuse()
        case dtype:
            model = model.to(getattr(torch, dtype))
    given = inputs(2, 72, 96)
    found, expected = compiled(model.forward_hierarchy)(*given), model.forward_hierarchy(*given)
    assert found.logits.dtype == expected.logits.dtype == model.cls_token.dtype
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.embedding, expected.embedding)
    assert torch.equal(found.hierarchy.label_maps(), expected.hierarchy.label_maps())
    assert found.hierarchy.num_segments == expected.hierarchy.num_segments
    for a, b in zip(found.levels, expected.levels, strict=True):
        assert torch.equal(a.indices, b.indices)
        torch.testing.assert_close(a.pooled_tokens, b.pooled_tokens)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_training_steps_at_two_sizes(autocast):
    """Forward and backward, one graph for each."""
    model = make_model(**TINY, pos_embed="learned").train()
    step = compiled(model)
    for shape in ((2, 64, 64), (2, 72, 96)):
        given, grads = inputs(*shape), []
        for forward in (model, step):
            model.zero_grad()
            with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
                logits = forward(*given)
            logits.float().square().sum().backward()
            grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        tolerance = {"rtol": 1e-3, "atol": 1e-3} if autocast is None else {"rtol": 0.1, "atol": 0.1}
        torch.testing.assert_close(grads[1], grads[0], **tolerance)
    assert graphs() == 2


@torch.no_grad()
def test_inductor():
    """The compiler that users get by default, on the model that has all parts."""
    model = make_model(depths=(1,), num_clusters=(8,))
    given = inputs(2, 64, 64)
    found, expected = compiled(model.forward_hierarchy, "inductor")(*given), model.forward_hierarchy(*given)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.hierarchy.label_maps(), expected.hierarchy.label_maps())
