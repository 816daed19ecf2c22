"""`references()`: the same results from PyTorch's own ops."""

import pytest
import torch

from cast_kernels import (
    assign_pool,
    farthest_point_sample,
    references,
    rgb_to_lab,
    segment_mean,
    unpool_concat,
    unpool_linear,
)
from cast_kernels.references import REFERENCES

OUTSIDE_MODELS = {"seeds", "seeds_parallel", "seeds_sequential", "labels_to_edges", "superpixel_summary"}


def run_all():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 9, 6, generator=generator)
    labels = torch.randint(0, 5, (2, 9), generator=generator)
    picks = farthest_point_sample(x, 4)
    return [
        *segment_mean(x, labels, 5),
        picks,
        *assign_pool(x, picks, x),
        unpool_concat([x, x[:, :5]], [labels]),
        unpool_linear([x, x[:, :5]], [labels], x[0, :8].repeat(1, 2)),
        rgb_to_lab(torch.randint(0, 256, (1, 4, 5, 3), generator=generator, dtype=torch.uint8)),
    ]


def ops_called(run):
    with torch.profiler.profile() as profile:
        run()
    return {e.name.removeprefix("cast_kernels::") for e in profile.events() if e.name.startswith("cast_kernels::")}


def test_every_op_runs_its_definition():
    assert ops_called(run_all) == set(REFERENCES)  # or the next line could not fail
    with references():
        assert ops_called(run_all) == set()
        inside = run_all()
    assert ops_called(run_all) == set(REFERENCES)
    for a, b in zip(inside, run_all(), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b)


def test_every_registered_op_has_one():
    """A new op must be named in the table too, unless models do without it."""
    registered = {
        name.removeprefix("cast_kernels::").partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("cast_kernels::")
    }
    forward = {name for name in registered if "_backward" not in name}
    assert set(REFERENCES) <= forward
    assert not forward - set(REFERENCES) - OUTSIDE_MODELS


def test_some_ops_stay():
    with references(keep=["farthest_point_sample", "rgb_to_lab"]):
        assert ops_called(run_all) == {"farthest_point_sample", "rgb_to_lab"}
    with pytest.raises(ValueError, match=r"expected keep to name some of .*, got seeds"), references(keep=["seeds"]):
        pass


def test_the_context_ends_with_an_error():
    with pytest.raises(ValueError, match="num_samples"), references():
        farthest_point_sample(torch.randn(1, 3, 2), 4)
    assert ops_called(run_all) == set(REFERENCES)


def test_gradients_go_through_the_definition():
    x = torch.randn(1, 9, 6, dtype=torch.float64, requires_grad=True)
    picks = farthest_point_sample(x, 4)

    def gradient():
        logits, pooled, _ = assign_pool(x, picks, x)
        return torch.autograd.grad(logits.sin().sum() + pooled.cos().sum(), x)[0]

    with references():
        inside = gradient()
    torch.testing.assert_close(inside, gradient())


def test_exported_programs_hold_no_op_of_this_package():
    class Layer(torch.nn.Module):
        def forward(self, x):
            picks = farthest_point_sample(x, 3)
            return assign_pool(x, picks, x)

    x = torch.randn(2, 7, 4)
    batch = {"x": {0: torch.export.Dim("batch")}}
    with references():
        program = torch.export.export(Layer(), (x,), dynamic_shapes=batch)
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    assert not [n for g in graphs for n in g.nodes if "cast_kernels" in str(n.target)]
    other = torch.randn(5, 7, 4)
    for a, b in zip(program.module()(other), Layer()(other), strict=True):
        torch.testing.assert_close(a, b)
