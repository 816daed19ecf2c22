"""Parameter groups as published, and moving averages of weights."""

import json

import pytest
import torch
from small_model import make_model, make_variant
from task_helpers import make_config
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cast.models import create_model
from cast.models.official_names import official_names
from cast.train.optim import WeightAverage, average_parameters, decay_groups, make_adamw, trainable_parameters
from cast.train.tasks import make_task


def names_of(model, groups):
    names = {id(p): name for name, p in model.named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in groups]


def test_groups_of_deit_are_as_recorded(shared_folder):
    recorded = json.loads((shared_folder("fixtures") / "fixtures" / "param_groups.json").read_text())
    with torch.device("meta"):
        model = create_model("cast_deit_small")
    found = decay_groups(model, 0.05)
    assert [g["weight_decay"] for g in found] == [g["weight_decay"] for g in recorded["deit_small"]]
    for ours, theirs in zip(names_of(model, found), recorded["deit_small"], strict=True):
        published = [official_names(name, model.config)[0] for name in ours]
        assert len(published) == len(set(published))
        assert set(published) == set(theirs["names"])
    defaults = recorded["deit_small_defaults"]
    config = make_config("supervised", batch=1024, lr=5e-4, lr_batch=512, warmup_epochs=0)
    optimizer = make_task(config, 5).make_optimizer()
    assert type(optimizer) is torch.optim.AdamW
    for name in ("lr", "betas", "eps"):
        assert optimizer.defaults[name] == (tuple(defaults[name]) if name == "betas" else defaults[name])


def test_groups_by_hand():
    model = make_variant("encoder")  # learned positions
    plain, decayed = names_of(model, decay_groups(model, 0.3))
    assert {"cls_token", "pos_embed", "stem.proj.bias", "stages.0.pool.bias", "fusion.norm.weight"} <= set(plain)
    assert {"stem.proj.weight", "stages.0.blocks.0.attn.qkv.weight", "fusion.proj.weight"} <= set(decayed)
    assert not {"norm.weight", "head.weight"} & {*plain, *decayed}  # frozen in an encoder
    assert len(plain) + len(decayed) == len(trainable_parameters(model))


def test_moco_decays_everything_alike():
    task = make_task(make_config("moco", weight_decay=0.1), 0)
    optimizer = task.make_optimizer()
    (group,) = optimizer.param_groups
    assert type(optimizer) is torch.optim.AdamW
    assert (group["weight_decay"], group["betas"], group["eps"]) == (0.1, (0.9, 0.999), 1e-8)
    held = {id(p) for p in group["params"]}
    names = {name for name, p in task.named_parameters() if id(p) in held}
    assert names == {
        name
        for name, _ in task.named_parameters()
        if not name.startswith(("momentum_encoder.", "base_encoder.stages.2.pool."))
    }


def test_probe_trains_the_classifier_by_sgd():
    task = make_task(make_config("probe", weight_decay=0.01), 3)
    (group,) = task.make_optimizer().param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in task.model.head.parameters()]
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 0.01, False)


@pytest.mark.parametrize("decay", [0.0, 0.75, 1.0])
def test_average_of_parameters(decay):
    torch.manual_seed(0)
    average, model = nn.BatchNorm1d(3).double(), nn.BatchNorm1d(3).double()
    for p in (*average.parameters(), *model.parameters()):
        p.data.normal_()
    model.bias.requires_grad_(False)  # takes part as well
    model.running_mean += 1
    expected = [a * decay + p * (1 - decay) for a, p in zip(average.parameters(), model.parameters(), strict=True)]
    average_parameters(average, model, decay)
    for found, value in zip(average.parameters(), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-15, atol=1e-15)
    assert not average.running_mean.any()


def test_weight_average_follows_in_weights_and_buffers():
    torch.manual_seed(0)
    model = make_model().train()
    average = WeightAverage(model, 0.9).train()
    assert not average.model.training
    assert not any(p.requires_grad for p in average.model.parameters())
    start = {name: p.clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.data += 1.0
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    constants = set(statistics) - set(model.state_dict())  # such as mean and deviation of pixels
    assert constants
    for name, buffer in model.named_buffers():
        buffer.add_(0 if name in constants else 2)
    assert all(torch.equal(p, start[name]) for name, p in average.model.named_parameters())
    average.update(model)
    for name, p in average.model.named_parameters():
        torch.testing.assert_close(p, start[name] + 0.1, rtol=0, atol=1e-6)
    other = dict(model.named_buffers())
    counts = set()
    for name, own in average.model.named_buffers():
        if name in constants or not own.is_floating_point():
            assert torch.equal(own, other[name]), name
            counts |= {name} - constants
        else:
            torch.testing.assert_close(own, statistics[name] + 0.2, rtol=0, atol=1e-6)
    assert any(name.endswith("num_batches_tracked") for name in counts)
    assert any(name.endswith("running_var") for name in statistics)


def on_fake_cuda(task):
    """The task with parameters that say that they are on CUDA; no GPU is needed for that."""
    with FakeTensorMode():
        for module in task.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    fake = torch.empty(p.shape, device="cuda")
                    module._parameters[name] = nn.Parameter(fake, requires_grad=p.requires_grad)
    return task


@pytest.mark.parametrize("kind", ["moco", "supervised"])
def test_adamw_is_fused_on_cuda_alone(kind):
    assert make_task(make_config(kind), 3).make_optimizer().defaults["fused"] is None
    optimizer = on_fake_cuda(make_task(make_config(kind, weight_decay=0.3), 3)).make_optimizer()
    assert [group["fused"] for group in optimizer.param_groups] == [True] * len(optimizer.param_groups)
    assert optimizer.param_groups[-1]["weight_decay"] == 0.3
    assert optimizer._step_supports_amp_scaling  # the scaler leaves looking for infinities to it


def test_a_run_that_moves_to_another_device_computes_as_that_one_does():
    weight = nn.Parameter(torch.ones(3))
    optimizer = make_adamw([weight], 0.1, 0.0)
    state = optimizer.state_dict()
    state["param_groups"][0] |= {"fused": True, "lr": 0.2}
    optimizer.load_state_dict(state)
    assert (optimizer.param_groups[0]["fused"], optimizer.param_groups[0]["lr"]) == (None, 0.2)
    assert state["param_groups"][0]["fused"]  # what was given stays
