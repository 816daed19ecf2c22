"""Linear probes: what is probed, that it stays as it is, and the features of images that are not augmented."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from small_model import photo
from task_helpers import MODELS, POOLED, changed, generator, make_batch, make_config, values_of
from torch import nn

import cast
from cast.models import Cast, CastSeg, ViT, create_model
from cast.models.official import to_official
from cast.train.linear_probe import ProbeTask


def make_encoder(model="cast_small", **overrides):
    torch.manual_seed(0)
    encoder = create_model(model, img_size=64, **MODELS.get(model, POOLED) | overrides)
    for m in encoder.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):  # as if trained
            m.running_mean.normal_(std=0.1)
            m.running_var.uniform_(0.5, 1.5)
    return encoder.eval()


def make_task(folder, encoder=None, **changes):
    encoder = make_encoder() if encoder is None else encoder
    encoder.save_pretrained(folder)
    torch.manual_seed(1)
    # the weights tell which model they are of
    return ProbeTask(make_config("probe", weights=str(folder), model_overrides={}, **changes), 3)


@pytest.mark.parametrize("model", MODELS)
def test_only_the_classifier_moves(tmp_path, model):
    encoder = make_encoder(model)
    task = make_task(tmp_path, encoder, lr=0.002, lr_batch=8)
    batch = task.prepare(make_batch(5), generator())
    before, optimizer = values_of(task), task.make_optimizer()
    losses = []
    for _ in range(4):
        loss = task.train()(batch, 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert changed(before, task) == {"model.head.weight", "model.head.bias"}
    assert not any(m.training for m in task.model.modules())
    assert all(p.grad is None for name, p in task.model.named_parameters() if not name.startswith("head."))

    image = batch.images[:, 0]
    features = encoder.forward_head(encoder.forward_features(image), pre_logits=True)
    assert features.shape == (5, 48)
    if model == "cast_seg_small_pretrain":
        assert torch.equal(features, encoder.forward_features(image)[:, 1:].mean(1))
    assert torch.equal(task.features(batch), features)
    assert torch.equal(task.features(make_batch(5)._replace(images=batch.images)), features)  # not prepared
    logits = F.linear(features, task.model.head.weight, task.model.head.bias)
    torch.testing.assert_close(task(batch, 0.0), F.cross_entropy(logits, batch.targets))


def test_the_classifier_starts_small(tmp_path):
    task = make_task(tmp_path)
    assert task.model.head.weight.detach().std() == pytest.approx(0.01, rel=0.2)
    assert not task.model.head.bias.any()
    assert task.model.head.weight.requires_grad


def test_features_in_the_place_of_images(tmp_path):
    task = make_task(tmp_path)
    task.model.head.weight.data.normal_()
    torch.manual_seed(3)
    batches = [make_batch(5), make_batch(2)]
    stored = [b._replace(images=task.features(b)[:, None]) for b in batches]
    assert stored[0].images.shape == (5, 1, 48)
    assert task.prepare(stored[0], generator()) is stored[0]
    prepared = task.prepare(batches[0], generator())
    torch.testing.assert_close(task(stored[0], 0.0), task(prepared, 0.0))
    figures, again = task.evaluate(iter(batches)), task.evaluate(iter(stored))
    logits = task.model(torch.cat([b.images[:, 0] for b in batches])).detach()
    targets = torch.cat([b.targets for b in batches])
    assert figures["count"] == 7
    assert figures["top1"] == again["top1"] == (logits.argmax(1) == targets).sum()
    assert float(figures["loss"]) == pytest.approx(float(F.cross_entropy(logits, targets)) * 7, rel=1e-5)
    assert float(again["loss"]) == pytest.approx(float(figures["loss"]), rel=1e-5)
    assert task.training  # a mode, though nothing follows it


def test_the_classifier_is_saved_with_the_network(tmp_path):
    task = make_task(tmp_path / "encoder")
    task.save_model(tmp_path / "probe")
    loaded, image = cast.from_pretrained(tmp_path / "probe"), photo(2, 64, 64)
    assert loaded.config.num_classes == 3
    assert torch.equal(loaded(image), task.model(image))


# What is probed
def published_file(path, encoder, layout):
    state = to_official(encoder)
    if layout == "moco":
        state = {f"module.base_encoder.{name}": value for name, value in state.items()}
        state |= {"module.momentum_encoder.cls_token": encoder.cls_token, "module.predictor.0.weight": torch.ones(2, 2)}
    torch.save({"state_dict": state}, path)


HEADS = {"num_heads": 12}  # as all published models have


@pytest.mark.parametrize("layout", ["moco", "plain"])
@pytest.mark.parametrize("model", MODELS)
def test_published_checkpoints(tmp_path, model, layout):
    encoder = make_encoder(model, **HEADS, num_classes=0 if layout == "moco" else 7)
    published_file(tmp_path / "file.pth.tar", encoder, layout)
    overrides = (
        {} if model == "vit_conv_small" else {"num_clusters": [16, 8, 4], "superpixels": {"num_superpixels": 40}}
    )
    task = ProbeTask(make_config("probe", weights=str(tmp_path / "file.pth.tar"), model_overrides=overrides), 3)
    assert type(task.model) is {"cast_small": Cast, "vit_conv_small": ViT}.get(model, CastSeg)
    batch = task.prepare(make_batch(2), generator())
    if model != "vit_conv_small":
        config = task.model.config
        assert config.superpixels.order == "sequential"
        encoder.config = dataclasses.replace(encoder.config, superpixels=config.superpixels)
    features = encoder.forward_head(encoder.forward_features(batch.images[:, 0]), pre_logits=True)
    torch.testing.assert_close(task.features(batch), features)


def test_a_state_dict_needs_the_name_of_its_model(tmp_path):
    encoder = make_encoder(num_classes=7)
    torch.save(encoder.state_dict(), tmp_path / "weights.pth")
    task = ProbeTask(make_config("probe", weights=str(tmp_path / "weights.pth")), 3)
    assert torch.equal(task.model.stem.proj.weight, encoder.stem.proj.weight)
    with pytest.raises(ValueError, match=r"the weights in .*weights.pth do not fit vit_conv_small: unknown: "):
        ProbeTask(make_config("probe", weights=str(tmp_path / "weights.pth"), model="vit_conv_small"), 3)


def test_a_projector_and_half_precision_are_left_behind(tmp_path):
    encoder = make_encoder("cast_seg_small_pretrain", head="projector", num_classes=0, projector_dims=(20, 12))
    task = make_task(tmp_path, encoder.half())
    assert isinstance(task.model.head, nn.Linear)
    assert {p.dtype for p in task.model.parameters()} == {torch.float32}
    assert task.model.config.num_classes == 3
    assert not any(name.startswith("head.0") for name in task.model.state_dict())


def test_without_weights_random_ones_are_probed():
    torch.manual_seed(0)
    assert isinstance(ProbeTask(make_config("probe", model="vit_conv_small"), 3).model, ViT)


def test_overrides_change_what_weights_do_not_tell(tmp_path):
    make_encoder().save_pretrained(tmp_path)
    changes = {"num_clusters": [20, 10, 5], "superpixels": {"num_superpixels": 60}}
    task = ProbeTask(make_config("probe", weights=str(tmp_path), model_overrides=changes), 3)
    assert task.model.config.num_clusters == (20, 10, 5)
    assert task.model.config.superpixels.num_superpixels == 60
    assert task.model.config.superpixels.bins == 5
    assert task.model.stages[0].pool.num_clusters == 20
    with pytest.raises(ValueError, match="model_overrides do not fit the weights"):
        ProbeTask(make_config("probe", weights=str(tmp_path), model_overrides={"embed_dim": 96}), 3)


def test_what_cannot_be_probed(tmp_path):
    make_encoder("cast_seg_small", stage="segmentation").save_pretrained(tmp_path / "segmentation")
    with pytest.raises(ValueError, match=r"expected a model for whole images, .*got a cast_seg from"):
        ProbeTask(make_config("probe", weights=str(tmp_path / "segmentation")), 3)
    published_file(tmp_path / "file.pth", make_encoder("vit_conv_small", **HEADS), "plain")
    with pytest.raises(ValueError, match=r"model_overrides do not fit the weights: .*width"):
        ProbeTask(make_config("probe", weights=str(tmp_path / "file.pth"), model_overrides={"width": 3}), 3)
    with pytest.raises(ValueError, match="no such file of weights"):
        ProbeTask(make_config("probe", weights=str(tmp_path / "absent.pth")), 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"there is no config.json"):
        ProbeTask(make_config("probe", weights=str(tmp_path / "empty")), 3)
