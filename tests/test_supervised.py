"""Supervised training: the loss and its gradient, the average of weights, figures, and what is saved."""

import pytest
import torch
import torch.nn.functional as F
from small_model import photo
from task_helpers import MODELS, PUBLISHED, changed, generator, make_batch, make_config, values_of, without_dropout

import cast
from cast.train.supervised import SupervisedTask


def make_task(dtype=torch.float64, **changes):
    torch.manual_seed(0)
    return without_dropout(SupervisedTask(make_config("supervised", **changes), 3)).to(dtype)


def prepared(task, count=5):
    torch.manual_seed(1)
    return task.prepare(make_batch(count), generator())


@pytest.mark.parametrize("model", MODELS)
def test_the_gradient_is_that_of_the_cross_entropy(model):
    task, other = make_task(model=model), make_task(model=model)
    batch = prepared(task)
    loss = task(batch, 1.5)
    loss.backward()
    labels = () if batch.labels is None else (batch.labels[:, 0],)
    logits = other.model(batch.images[:, 0], *labels)
    expected = -(batch.targets * logits.log_softmax(1)).sum(1).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-7, atol=0)  # targets are float32
    for (name, p), (_, q) in zip(task.model.named_parameters(), other.model.named_parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None) == (not p.requires_grad), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-9)
    assert not any(p.requires_grad for p in task.ema.parameters())


def test_classes_as_targets_are_smoothed():
    task = make_task(smoothing=0.3)
    batch = prepared(task)._replace(targets=torch.tensor([0, 1, 2, 0, 1]))
    soft = F.one_hot(batch.targets, 3) * 0.7 + 0.1
    torch.testing.assert_close(task(batch, 0.0), task(batch._replace(targets=soft), 0.0), rtol=1e-7, atol=0)


def test_a_few_steps_lower_the_loss():
    task = make_task(torch.float32, lr=1e-3, lr_batch=8, warmup_epochs=0)
    optimizer, batch = task.make_optimizer(), prepared(task)
    losses = []
    for _ in range(5):
        loss = task(batch, 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05, losses


def test_the_last_pool_is_trained_by_its_mean_token():
    plain, task = make_task(), make_task(last_pool_weight=0.5)
    batch = prepared(task)
    loss = task(batch, 0.0)
    model = task.model
    pooled = model.run(batch.images[:, 0], batch.labels[:, 0], None)[-1].pooled.tokens.mean(1)
    auxiliary = -(batch.targets * model.head(model.norm(pooled)).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, plain(batch, 0.0) + 0.5 * auxiliary, rtol=1e-7, atol=0)
    loss.backward()
    for name, p in model.stages[-1].pool.named_parameters():
        assert p.grad is not None, name
        assert name == "attn.proj.bias" or p.grad.abs().max() > 1e-12, name
    plain(batch, 0.0).backward()
    assert all(p.grad is None for p in plain.model.stages[-1].pool.parameters())


def test_the_average_follows_after_each_step():
    task = make_task(torch.float32, ema=0.9)
    before = values_of(task.ema.model)
    for p in task.model.parameters():
        p.data += 1
    assert not changed(before, task.ema.model)
    task.after_step()
    for name, p in task.ema.model.named_parameters():
        torch.testing.assert_close(p, before[name] + 0.1)
    assert make_task(torch.float32, ema=0.0).after_step() is None


@pytest.mark.parametrize(("model", "ema"), [("cast_small", 0.9), ("vit_conv_small", 0.0)])
def test_figures(model, ema):
    task = make_task(torch.float32, model=model, ema=ema)
    for p in task.model.parameters():  # so that classes differ among images, and the average from the model
        p.data += 0.1 * torch.randn_like(p)
    torch.manual_seed(2)
    batches = [make_batch(5), make_batch(2)]
    before = values_of(task)
    sums = task.evaluate(iter(batches))
    assert not changed(before, task)
    assert all(m.training for m in (task, task.model))

    task.eval()
    images, targets = torch.cat([b.images[:, 0] for b in batches]), torch.cat([b.targets for b in batches])
    with torch.no_grad():
        logits = task.model(images)
        expected = {"count": 7, "loss": 7 * F.cross_entropy(logits, targets), "top5": 7}  # of three classes
        expected["top1"] = (logits.argmax(1) == targets).sum()
        if ema:
            expected["ema_top1"] = (task.ema.model(images).argmax(1) == targets).sum()
    assert set(sums) == set(expected)
    for name, value in expected.items():
        assert float(sums[name]) == pytest.approx(float(value), rel=1e-5), name


def test_five_likeliest():
    torch.manual_seed(0)
    from cast.train.networks import add_scores, zero_sums

    sums = zero_sums(torch.nn.Linear(1, 1), "loss", "top1", "top5")
    logits = torch.arange(8.0).expand(4, 8)
    add_scores(sums, logits, torch.tensor([7, 3, 2, 0]))
    assert (sums["top1"], sums["top5"], sums["count"]) == (1, 2, 4)


@pytest.mark.parametrize("model", MODELS)
def test_the_model_and_its_average_are_saved(tmp_path, model):
    task = make_task(torch.float32, model=model, ema=0.5)
    for p in task.model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    task.save_model(tmp_path)
    image = photo(2, 64, 64)
    task.eval()
    for folder, own in ((tmp_path, task.model), (tmp_path / "ema", task.ema.model)):
        loaded = cast.from_pretrained(folder)
        assert loaded.config == own.config
        assert torch.equal(loaded(image), own(image))
    assert not torch.equal(task.model(image), task.ema.model(image))


def test_published_superpixels_belong_to_the_model():
    task = make_task(compat="published", model_overrides=PUBLISHED)
    assert task.model.config.compat == "published"
    assert task.model.config.superpixels.order == "sequential"
    assert prepared(task).images.dtype == torch.float32
    task(prepared(task), 0.0).backward()
    assert make_task(compat="published", model="vit_conv_small")(prepared(task), 0.0).isfinite()


def test_shards_are_the_blocks_and_pools_of_model_and_average():
    assert len(make_task(ema=0.0).modules_to_shard()) == 4 + 3
    assert len(make_task(ema=0.9).modules_to_shard()) == 2 * (4 + 3)
