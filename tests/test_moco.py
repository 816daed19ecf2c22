"""MoCo v3: its loss written a second way, its momentum encoder, the last pool, and what is saved."""

import pickle

import pytest
import torch
from small_model import photo
from task_helpers import MODELS, changed, generator, make_batch, make_config, values_of, without_dropout

import cast
from cast.models.heads import Projector
from cast.models.vit import ViT
from cast.train import moco
from cast.train.batch import Batch
from cast.train.moco import MocoTask, contrastive_loss
from cast.train.schedules import moco_momentum


def make_task(dtype=torch.float64, **changes):
    torch.manual_seed(0)
    return without_dropout(MocoTask(make_config("moco", **changes))).to(dtype)


def prepared(task, count=4):
    torch.manual_seed(1)
    return task.prepare(make_batch(count, views=2), generator())


def slow_loss(queries, keys, temperature, offset=0):
    """One query and one key at a time."""
    total = 0.0
    for i, q in enumerate(queries):
        cosines = torch.stack([(q * k).sum() / (q.norm() * k.norm()) for k in keys]) / temperature
        total = total - (cosines[offset + i] - cosines.exp().sum().log())
    return total / len(queries) * 2 * temperature


@pytest.mark.parametrize("temperature", [0.2, 1.0])
@pytest.mark.parametrize("offset", [0, 3])
def test_contrastive_loss_is_infonce(temperature, offset):
    torch.manual_seed(0)
    queries, keys = torch.randn(3, 5).double(), torch.randn(7, 5).double()
    found = contrastive_loss(queries, keys / keys.norm(dim=1, keepdim=True), temperature, offset)
    torch.testing.assert_close(found, slow_loss(queries, keys, temperature, offset), rtol=1e-12, atol=0)


@pytest.mark.parametrize("model", MODELS)
def test_loss_and_gradients_are_those_of_the_definition(model):
    """The encoders called as any user would; the momentum encoder updated between queries and keys, as published."""
    task = make_task(model=model)
    for p in task.momentum_encoder.parameters():
        p.data.mul_(1.1).add_(0.01)
    other = make_task(model=model)
    other.load_state_dict(task.state_dict())
    batch, epoch = prepared(task), 3.25
    loss = task(batch, epoch)
    loss.backward()

    views = [
        (batch.images[:, v],) if batch.labels is None else (batch.images[:, v], batch.labels[:, v]) for v in (0, 1)
    ]
    queries = [other.predictor(other.base_encoder(*view)) for view in views]
    m = moco_momentum(epoch, start=0.99, epochs=10)
    for mine, yours in zip(other.momentum_encoder.parameters(), other.base_encoder.parameters(), strict=True):
        mine.data = mine.data * m + yours.data * (1 - m)
    with torch.no_grad():
        keys = [other.momentum_encoder(*view) for view in views]
    expected = slow_loss(queries[0], keys[1], 0.2) + slow_loss(queries[1], keys[0], 0.2)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for (name, p), (_, q) in zip(task.named_parameters(), other.named_parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-11)
    for name, value in task.state_dict().items():  # parameters and batch statistics after the step
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-12, atol=1e-14)
    assert all(p.grad is None for p in task.momentum_encoder.parameters())
    assert [n for n, p in task.base_encoder.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_momentum_encoder_starts_as_a_copy_and_moves_once_a_step():
    task = make_task(torch.float32)
    base, momentum = task.base_encoder, task.momentum_encoder
    assert all(torch.equal(p, q) for p, q in zip(base.parameters(), momentum.parameters(), strict=True))
    for p in base.parameters():
        p.data += 1
    batch = prepared(task)
    names = {f"momentum_encoder.{name}" for name, _ in momentum.named_parameters()}
    before = values_of(task)
    task(batch, 0.0, first_part=False)
    assert not names & changed(before, task)
    task.eval()
    task(batch, 0.0)
    assert not names & changed(before, task)
    task.train()
    task(batch, epoch=0.0, first_part=True)
    assert names <= changed(before, task)


def test_keys_of_all_processes_are_compared(monkeypatch):
    task = make_task()
    batch, foreign = prepared(task), torch.nn.functional.normalize(torch.randn(4, 12).double(), dim=1)
    gathered = []

    def two_processes(x):
        gathered.append(x)
        return torch.cat([foreign, x])

    monkeypatch.setattr(moco, "all_gather", two_processes)
    monkeypatch.setattr(moco, "get_rank", lambda: 1)
    loss = task(batch, 0.0, first_part=False)
    queries = [task._queries(batch, view)[0] for view in range(2)]
    expected = sum(slow_loss(q, torch.cat([foreign, k]), 0.2, 4) for q, k in zip(queries, gathered, strict=True))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert len(gathered) == 2
    assert not any(k.requires_grad for k in gathered)
    task.evaluate([make_batch(4, views=2)])
    assert len(gathered) == 2  # in evaluation, processes need not have as many batches


@pytest.mark.parametrize("model", MODELS)
def test_a_few_steps_lower_the_loss(model):
    task = make_task(torch.float32, model=model, lr=1e-3, lr_batch=8)
    optimizer, batch = task.make_optimizer(), prepared(task, 6)
    losses = []
    for group in optimizer.param_groups:
        group["lr"] = task.learning_rate(2.0)
    for _ in range(5):
        loss = task(batch, 2.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.02, losses


@pytest.mark.parametrize("model", MODELS)
def test_prepare_makes_the_models_superpixels_of_each_view(model):
    task = make_task(torch.float32, model=model)
    batch = make_batch(3, views=2)
    preparation = pickle.dumps(task.preparation)
    assert len(preparation) < 2000  # for workers: no network in it
    for prepare in (task.prepare, pickle.loads(preparation)):
        found = prepare(batch, generator())
        assert torch.equal(found.images, batch.images)
        assert torch.equal(found.targets, batch.targets)
        if isinstance(task.base_encoder, ViT):
            assert found.labels is None
            continue
        assert found.labels.dtype == torch.int32
        for view in range(2):
            expected = task.base_encoder.superpixels(batch.images[:, view], stride=8)
            assert torch.equal(found.labels[:, view], expected)


def test_evaluation_is_the_loss_in_eval_mode_and_changes_nothing():
    task = make_task(torch.float32)
    batches = [make_batch(4, views=2), make_batch(3, views=2)]
    before = values_of(task)
    sums = task.evaluate(iter(batches))
    assert not changed(before, task)
    assert all(m.training for m in (task, task.base_encoder, task.momentum_encoder))
    task.eval()
    expected = sum(task(task.prepare(b, generator()), 0.0) * len(b.images) for b in batches)
    torch.testing.assert_close(sums["loss"], expected.double(), check_dtype=False)
    assert sums["count"] == 7
    assert {name: float(x) for name, x in task.evaluate([]).items()} == {"count": 0.0, "loss": 0.0}


# The last pool
def pool_of(task):
    return task.base_encoder.stages[-1].pool


def test_as_published_the_last_pool_gets_no_gradient():
    task = make_task()
    task(prepared(task), 1.0).backward()
    assert all(p.grad is None for p in pool_of(task).parameters())


@pytest.mark.parametrize("model", ["cast_small", "cast_seg_small_pretrain"])
def test_the_last_pool_is_trained_by_its_mean_token(model):
    plain, task = make_task(model=model), make_task(model=model, last_pool_weight=0.5)
    batch = prepared(task)
    loss = task(batch, 1.0)
    main = plain(batch, 1.0)
    encoder, auxiliary = task.base_encoder, 0.0
    for view in range(2):
        labels = batch.labels[:, view]
        pooled = encoder.run(batch.images[:, view], labels, None)[-1].pooled.tokens.mean(1)
        query = task.predictor(encoder.head(encoder.norm(pooled) if model == "cast_small" else pooled))
        key = task.momentum_encoder(batch.images[:, 1 - view], batch.labels[:, 1 - view])
        auxiliary = auxiliary + slow_loss(query, key, 0.2)
    torch.testing.assert_close(loss, main + 0.5 * auxiliary, rtol=1e-10, atol=0)
    loss.backward()
    zero = {"attn.proj.bias"}  # the centring removes it
    for name, p in pool_of(task).named_parameters():
        assert p.grad is not None, name
        assert name in zero or p.grad.abs().max() > 1e-12, name


def test_statistics_are_those_of_the_main_queries():
    plain, task = make_task(), make_task(last_pool_weight=0.5)
    batch = prepared(task)
    plain(batch, 0.0)
    task(batch, 0.0)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, task.state_dict()[name]), name
    assert all(m.track_running_stats for m in task.modules() if hasattr(m, "track_running_stats"))


def test_a_vit_has_no_last_pool():
    with pytest.raises(ValueError, match="expected last_pool_weight=0 for a vit"):
        make_task(model="vit_conv_small", last_pool_weight=0.1)


# What is saved
@pytest.mark.parametrize("model", MODELS)
def test_the_encoder_is_saved_for_users(tmp_path, model):
    task = make_task(torch.float32, model=model)
    task(prepared(task), 1.0)  # statistics that are not those of the start
    task.save_model(tmp_path)
    loaded, encoder = cast.from_pretrained(tmp_path), task.base_encoder
    assert isinstance(encoder.head, Projector)
    assert loaded.config == encoder.config
    image = photo(2, 64, 64)
    task.eval()
    with torch.no_grad():
        features = encoder.forward_features(image)
        assert torch.equal(loaded.forward_features(image), features)
        dense = model == "cast_seg_small_pretrain"  # whose projector stays
        assert torch.equal(loaded(image), encoder(image) if dense else encoder.forward_head(features, pre_logits=True))
    assert isinstance(loaded.head, Projector) == dense


def test_saving_that_fails_leaves_the_projector(tmp_path):
    task = make_task(torch.float32)
    task.base_encoder.cls_token.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="cls_token"):
        task.save_model(tmp_path)
    assert isinstance(task.base_encoder.head, Projector)


def test_normalised_images_do_as_well():
    task = make_task()
    batch = prepared(task)
    mean, std = task.base_encoder.image_mean.double(), task.base_encoder.image_std.double()
    normalised = Batch((batch.images.double() / 255 - mean) / std, batch.targets, batch.labels)
    torch.testing.assert_close(task(normalised, 1.0), task(batch, 1.0), rtol=1e-12, atol=0)


def test_shards_are_the_blocks_and_pools_of_both_encoders():
    task = make_task(torch.float32)
    assert len(task.modules_to_shard()) == 2 * (4 + 3)
