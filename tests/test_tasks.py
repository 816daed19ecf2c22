"""From settings to tasks: seeds and precision, weights to start from, and what cannot be built."""

from contextlib import nullcontext

import pytest
import torch
from gpu_checks import needs_gpu, no_synchronisation
from small_model import make_variant
from task_helpers import MODELS, POOLED, TASKS, generator, make_batch, make_config

from cast import shipped
from cast.models import create_model, from_pretrained
from cast.models.official import to_official
from cast.train.batch import Batch
from cast.train.distributed import setup
from cast.train.linear_probe import ProbeTask
from cast.train.moco import MocoTask
from cast.train.optimizer_step import OptimizerSteps
from cast.train.parallel import Network
from cast.train.supervised import SupervisedTask
from cast.train.tasks import make_task

KINDS = {"moco": MocoTask, "supervised": SupervisedTask, "probe": ProbeTask}


@pytest.mark.parametrize("kind", TASKS)
def test_weights_depend_on_the_seed_alone(kind):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    task = make_task(make_config(kind, seed=3), 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert type(task) is KINDS[kind]
    assert task.training
    torch.rand(3)
    again, other = make_task(make_config(kind, seed=3), 4), make_task(make_config(kind, seed=4), 4)
    for name, value in task.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    name = "model.head.weight" if kind == "probe" else next(n for n, _ in task.named_parameters() if "qkv" in n)
    assert not torch.equal(task.state_dict()[name], other.state_dict()[name])


@pytest.mark.parametrize("kind", TASKS)
def test_float64_is_float64_throughout(kind):
    task = make_task(make_config(kind, precision="float64"), 3)
    assert {p.dtype for p in task.parameters()} == {torch.float64}
    batch = task.prepare(make_batch(3, task.views), generator())
    assert task(batch, 1.0).dtype == torch.float64


@pytest.mark.parametrize("kind", ["moco", "supervised"])
def test_settings_reach_the_network(kind):
    task = make_task(make_config(kind, img_size=96, model="vit_conv_small"), 4)
    model = task.base_encoder if kind == "moco" else task.model
    assert model.config.img_size == 96
    assert model.config.num_classes == (0 if kind == "moco" else 4)


@pytest.mark.parametrize("kind", TASKS)
def test_learning_rates(kind):
    task = make_task(make_config(kind, lr=0.5, batch=8, lr_batch=16, epochs=10, warmup_epochs=2), 4)
    # the highest is 0.25; sines and cosines of tenths and eighths of a turn stand as roots
    rates = {
        "moco": {0.0: 0.0, 1.0: 0.125, 2.0: 0.25, 4.0: 0.125 * (1 + 0.5**0.5), 6.0: 0.125, 10.0: 0.0},
        "supervised": {
            0.0: 1e-6, 1.0: 1e-6, 2.0: (1e-6 + 0.25) / 2, 3.0: 1e-5 + (0.25 - 1e-5) * (5 + 5**0.5) / 8,
            6.0: 1e-5 + (0.25 - 1e-5) / 2, 6.9: 1e-5 + (0.25 - 1e-5) / 2,
        },
        "probe": {
            0.0: 0.0, 1.0: 0.0625 * (1 + (5 + 5**0.5) ** 0.5 / 8**0.5), 2.0: 0.125 * (5 + 5**0.5) / 4,
            5.5: 0.125, 6.0: 0.125 * (5 - 5**0.5) / 4,
        },
    }[kind]  # fmt: skip
    for epoch, rate in rates.items():
        assert task.learning_rate(epoch) == pytest.approx(rate, rel=1e-12, abs=1e-17), epoch
    assert task.make_optimizer().param_groups[0]["lr"] == task.learning_rate(0.0)


# Weights to start from
def encoder_of(task):
    return task.base_encoder if isinstance(task, MocoTask) else task.model


def same_but_heads(model, source):
    own, other = model.state_dict(), source.state_dict()
    names = [name for name in own if not name.startswith("head.")]
    return bool(names) and all(torch.equal(own[name], other[name]) for name in names)


@pytest.mark.parametrize("kind", ["moco", "supervised"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_a_step_does_not_wait_for_the_gpu(kind, device):
    """From a pinned batch to moved parameters, superpixels included; on the CPU it only has to run."""
    config = make_config(kind, device=device, clip_grad=1.0, precision="bfloat16")
    with setup(device) as processes:
        network = Network(config, make_task(config, 3), processes)
        steps = OptimizerSteps(config, network, processes, 4)
        batch = make_batch(8, network.task.views)
        if device == "cuda":
            batch = Batch(*(x if x is None else x.pin_memory() for x in batch))
        steps.do(0, [batch])
        with no_synchronisation() if device == "cuda" else nullcontext():
            steps.do(1, [batch])
        loss, count = steps.take_losses()
    assert count == 2
    assert 0.0 < loss < 100.0


@pytest.mark.parametrize("kind", ["moco", "supervised"])
@pytest.mark.parametrize("model", MODELS)
def test_from_a_saved_model(tmp_path, kind, model):
    source = create_model(model, img_size=64, num_classes=7, **MODELS[model])
    source.save_pretrained(tmp_path)
    task = make_task(make_config(kind, model=model, weights=str(tmp_path)), 3)
    assert same_but_heads(encoder_of(task), source)
    copy = task.momentum_encoder if kind == "moco" else task.ema.model
    assert same_but_heads(copy, source)


def test_from_the_weights_of_the_package():
    """They are in half precision; positions, which are no weights, are made in the precision that is trained."""
    source = from_pretrained(shipped.FOLDER).float()
    source.init_non_persistent_buffers()
    probe = make_task(make_config("probe", weights="imagenette", model_overrides={}, img_size=128), 3)
    assert same_but_heads(probe.model, source)
    buffers, expected = dict(probe.model.named_buffers()), dict(source.named_buffers())
    assert buffers.keys() == expected.keys()
    assert all(torch.equal(buffers[name], expected[name]) for name in buffers)
    shape = {name: getattr(source.config, name) for name in ("embed_dim", "num_heads", "depths", "num_clusters")}
    values = {"model": "cast_mini", "model_overrides": shape, "weights": "imagenette", "img_size": 128}
    assert same_but_heads(make_task(make_config("supervised", **values), 3).model, source)


def test_supervised_goes_on_from_moco(tmp_path):
    first = make_task(make_config("moco", seed=1), 0)
    first.save_model(tmp_path)
    task = make_task(make_config("supervised", weights=str(tmp_path)), 3)
    assert same_but_heads(task.model, first.base_encoder)
    assert task.model.head.weight.shape == (3, 48)


def test_a_head_of_the_same_shape_is_taken_over(tmp_path):
    source = create_model("cast_small", img_size=64, num_classes=3, **POOLED)
    source.save_pretrained(tmp_path)
    task = make_task(make_config("supervised", weights=str(tmp_path)), 3)
    assert torch.equal(task.model.head.weight, source.head.weight)
    dense = make_task(make_config("moco", model="cast_seg_small_pretrain", seed=1), 0)
    dense.save_model(tmp_path / "dense")
    settings = {"model": "cast_seg_small_pretrain", "weights": str(tmp_path / "dense")}
    again = make_task(make_config("moco", **settings), 0)
    assert torch.equal(again.base_encoder.head[0].weight, dense.base_encoder.head[0].weight)
    other = make_task(make_config("moco", **settings, hidden_dim=30), 0)
    assert other.base_encoder.head[0].weight.shape == (30, 48)


@pytest.mark.parametrize("model", MODELS)
def test_from_a_published_file(tmp_path, model):
    source = create_model(model, img_size=64, num_classes=7, **MODELS[model])
    torch.save({"model": to_official(source), "optimizer": {}}, tmp_path / "weights.pth")
    overrides = {name: value for name, value in MODELS[model].items() if name != "superpixels"}
    settings = {"model": model, "weights": str(tmp_path / "weights.pth"), "model_overrides": overrides}
    task = make_task(make_config("supervised", **settings), 3)
    assert same_but_heads(task.model, source)
    if model != "vit_conv_small":
        assert task.model.config.superpixels.order == "sequential"
        task = make_task(make_config("supervised", **settings | {"model_overrides": MODELS[model]}), 3)
        assert task.model.config.superpixels.order == "parallel"


# What cannot be built
@pytest.mark.parametrize("kind", ["supervised", "probe"])
@pytest.mark.parametrize("count", [0, 1])
def test_classes_are_needed(kind, count):
    with pytest.raises(ValueError, match=f"expected training images of at least 2 classes for .*, got {count}"):
        make_task(make_config(kind), count)


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("model", ["cast_seg_small", "cast_seg_deit_small", "cast_segmenter_small"])
def test_models_that_predict_for_segments_do_not_fit(kind, model):
    with pytest.raises(ValueError, match=f"expected a model for whole images, .*got {model}"):
        make_task(make_config(kind, model=model, model_overrides={}), 3)


def test_dense_models_in_another_stage_fit():
    overrides = POOLED | {"stage": "pretrain", "num_classes": 3}
    del overrides["num_classes"]
    assert make_task(make_config("supervised", model="cast_seg_small", model_overrides=overrides), 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet50"}, "expected model to be one of cast_base, .*got 'resnet50'"),
        ({"model": "vit_deit_small", "model_overrides": {}}, "expected model to be one of"),
        ({"model_overrides": {"width": 3}}, "cannot build cast_small: .*width"),
        ({"model_overrides": {"num_classes": 3, "img_size": 32}}, "img_size, num_classes cannot be set there"),
        ({"model_overrides": {"fused": True}}, "fused cannot be set there"),
        ({"model_overrides": POOLED | {"num_heads": 7}}, "cannot build cast_small: expected embed_dim"),
        (
            {"model_overrides": POOLED | {"superpixels": {"num_superpixels": 12}}},
            r"num_clusters\[0\] = 16 superpixels, got",
        ),
        ({"img_size": 8}, "images of img_size 8 x 8 cannot have"),
    ],
)
@pytest.mark.parametrize("kind", ["moco", "supervised"])
def test_settings_that_do_not_fit(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        make_task(make_config(kind, **changes), 3)


def test_weights_that_do_not_fit(tmp_path):
    source = create_model("cast_small", img_size=64, **POOLED)
    source.save_pretrained(tmp_path / "model")
    for changes, message in (
        ({"model": "vit_conv_small"}, "do not fit vit_conv_small: unknown: "),
        ({"model": "cast_seg_small_pretrain"}, r"do not fit cast_seg_small_pretrain: .*fusion|unknown: norm"),
        ({"model_overrides": POOLED | {"num_heads": 6}}, "of a model with 4 attention heads, not 6"),
        ({"model_overrides": POOLED | {"depths": [1, 1, 1]}}, "unknown: stages.1.blocks.1"),
        ({"model_overrides": POOLED | {"depths": [1, 2, 2]}}, "missing: stages.2.blocks.1"),
        ({"model_overrides": POOLED | {"embed_dim": 96}}, "size mismatch"),
    ):
        with pytest.raises(ValueError, match=message):
            make_task(make_config("supervised", weights=str(tmp_path / "model"), **changes), 3)
    partial = {name: value for name, value in to_official(source).items() if not name.startswith("blocks1")}
    torch.save(partial, tmp_path / "partial.pth")
    torch.save({n: v for n, v in partial.items() if not n.startswith("pool1.")}, tmp_path / "less.pth")
    with pytest.raises(ValueError, match=r"missing: stages\.0\.pool"):
        make_task(make_config("supervised", weights=str(tmp_path / "less.pth")), 3)
    with pytest.raises(ValueError, match="no such file of weights"):
        make_task(make_config("moco", weights=str(tmp_path / "absent.pth")), 0)


def test_the_small_models_here_are_those_of_the_other_tests():
    """Shards of a model with pools: blocks and pools, each once."""
    model = make_variant("pretrain")
    from cast.train.networks import blocks_and_pools

    found = blocks_and_pools(model)
    assert len(found) == len({id(m) for m in found}) == 4 + 3


@pytest.mark.parametrize("kind", TASKS)
def test_compat_reaches_the_network(kind):
    overrides = POOLED | {"superpixels": {"num_superpixels": 40}}
    task = make_task(make_config(kind, compat="published", model_overrides=overrides), 4)
    model = task.base_encoder if kind == "moco" else task.model
    assert model.config.compat == "published"
    assert model.config.superpixels.order == "sequential"
    vit = make_task(make_config(kind, compat="published", model="vit_conv_small"), 4)
    assert not hasattr((vit.base_encoder if kind == "moco" else vit.model).config, "compat")


def test_compat_reaches_a_probed_network(tmp_path):
    create_model("cast_small", img_size=64, **POOLED).save_pretrained(tmp_path)
    task = make_task(make_config("probe", compat="published", weights=str(tmp_path), model_overrides={}), 4)
    assert task.model.config.compat == "published"
