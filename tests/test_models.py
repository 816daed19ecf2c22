"""The classification model: contract, sizes, training, loading, precision."""

import copy
import pickle

import pytest
import torch
from small_model import grid_labels, make_model, photo
from torch import nn
from torch._subclasses import FakeTensorMode

from cast import Cast
from cast.layers import resize_pos_embed
from cast_kernels import seeds_count

# --- forward


@pytest.mark.parametrize("pos_embed", ["sincos", "learned"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 96), (72, 40)])
def test_shapes_at_any_size(pos_embed, height, width):
    model = make_model(pos_embed=pos_embed)
    labels = grid_labels(2, height, width, 8)
    n = int(labels.max()) + 1
    out = model.forward_hierarchy(torch.randn(2, 3, height, width), labels, n)
    assert out.logits.shape == (2, 5)
    assert out.embedding.shape == (2, 48)
    assert out.hierarchy.num_segments == (n, 16, 8, 4)
    assert out.hierarchy.labels(0).shape == (2, height, width)
    for level, (fine, coarse) in zip(out.levels, [(n, 16), (16, 8), (8, 4)], strict=True):
        assert level.tokens.shape == (2, fine, 48)
        assert level.pooled_tokens.shape == (2, coarse, 48)
        assert level.cls.shape == level.pooled_cls.shape == (2, 1, 48)
        assert level.logits.shape == (2, fine, coarse)
        assert level.indices.shape == (2, coarse)
        assert level.parents.shape == level.mask.shape == (2, fine)
        assert torch.equal(level.parents, level.logits.argmax(-1))


def test_hierarchy_follows_the_assignments():
    model = make_model()
    labels = grid_labels(1, 64, 64, 8)
    out = model.forward_hierarchy(torch.randn(1, 3, 64, 64), labels, 64)
    current = labels
    assert all(
        torch.equal(p, level.logits.softmax(-1)) for p, level in zip(out.hierarchy.assignments, out.levels, strict=True)
    )
    for number, level in enumerate(out.levels, start=1):
        current = level.parents[0][current]
        assert torch.equal(out.hierarchy.labels(number).long(), current)


def test_the_ways_through_the_model_agree():
    model = make_model()
    image, labels = torch.randn(2, 3, 64, 64), grid_labels(2, 64, 64)
    logits = model(image, labels, 16)
    features = model.forward_features(image, labels, 16)
    out = model.forward_hierarchy(image, labels, 16)
    assert features.shape == (2, 1 + 8, 48)
    assert torch.equal(model.forward_head(features), logits)
    assert torch.equal(model.forward_head(features, pre_logits=True), out.embedding)
    assert torch.equal(out.logits, logits)
    tokens = torch.cat([out.levels[-1].cls, out.levels[-1].tokens], dim=1)
    torch.testing.assert_close(model.norm(tokens), features)
    torch.testing.assert_close(out.embedding, model.norm(out.levels[-1].cls)[:, 0])
    torch.testing.assert_close(logits, out.embedding @ model.head.weight.T + model.head.bias)


def test_forward_leaves_the_last_pool_out():
    model = make_model()
    image, labels = torch.randn(1, 3, 64, 64), grid_labels(1, 64, 64)
    expected = model(image, labels, 16)
    calls = []
    for stage in model.stages:
        stage.pool.register_forward_hook(lambda pool, *_: calls.append(pool.num_clusters))
    assert torch.equal(model(image, labels, 16), expected)
    assert calls == [16, 8]
    model.forward_hierarchy(image, labels, 16)
    assert calls == [16, 8, 16, 8, 4]


def test_images_of_a_batch_are_independent():
    model = make_model().double()
    image, labels = torch.randn(3, 3, 64, 64), grid_labels(3, 64, 64)
    labels[1] = labels[1].clamp(max=9)
    labels[2] = labels[2].flip(1)
    together = model(image, labels, 20)
    for b in range(3):
        torch.testing.assert_close(model(image[b : b + 1], labels[b : b + 1], 20)[0], together[b])


def test_labels_beyond_the_number_of_segments_are_ignored():
    model = make_model()
    image, labels = torch.randn(1, 3, 64, 64), grid_labels(1, 64, 64, 8)
    outside = labels.clone()
    outside[labels >= 40] = 1000
    negative = labels.clone()
    negative[labels >= 40] = -1
    a, b, c = (model(image, y, 40) for y in (labels, outside, negative))
    assert torch.equal(a, b)
    assert torch.equal(a, c)
    assert not torch.allclose(a, model(image, labels, 64))


def test_labels_beyond_the_default_number_need_theirs(monkeypatch):
    model = make_model()
    image, labels = torch.randn(1, 3, 64, 64), grid_labels(1, 64, 64, 8)
    count = seeds_count(64, 64, 25)
    assert count < 64
    message = rf"below {count}, .* got 63; pass num_segments=64 .* num_segments={count} to ignore"
    for call in (model, model.forward_features, model.forward_hierarchy):
        with pytest.raises(ValueError, match=message):
            call(image, labels)
        call(image, labels, count)
    assert not torch.allclose(model(image, labels, 64), model(image, labels, count))
    assert torch.equal(model(image, labels.clamp(max=count - 1)), model(image, labels.clamp(max=count - 1), count))
    assert model(image[:0], labels[:0]).shape == (0, 5)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:  # shapes without values
        assert model(mode.from_tensor(image), mode.from_tensor(labels)).shape == (1, 5)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # no look into the labels in a graph
    assert torch.equal(model(image, labels), model(image, labels, count))


def test_empty_superpixels_are_zero_tokens_that_take_part():
    model = make_model()
    image, labels = torch.randn(1, 3, 64, 64), grid_labels(1, 64, 64)
    level = model.forward_hierarchy(image, labels, 20).levels[0]
    assert level.mask[0].tolist() == [True] * 16 + [False] * 4
    assert set(level.indices[0].tolist()) == set(range(16))
    masks = []
    for stage in model.stages:
        stage.pool.register_forward_pre_hook(lambda _, inputs: masks.append(inputs[2]))
    levels = model.forward_hierarchy(image, labels, 20).levels
    assert torch.equal(masks[0], levels[0].mask)
    assert masks[1:] == [None, None]  # no pooled segment is empty
    assert all(level.mask.all() for level in levels[1:])
    assert not torch.allclose(model(image, labels, 20), model(image, labels, 16))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_label_types_agree(dtype):
    model = make_model()
    image, labels = torch.randn(1, 3, 64, 64), grid_labels(1, 64, 64)
    assert torch.equal(model(image, labels.to(dtype), 16), model(image, labels, 16))


def test_two_granularities_share_weights():
    fine, coarse = make_model(), make_model(num_clusters=(10, 3, 2))
    coarse.load_state_dict(fine.state_dict())
    image, labels = torch.randn(1, 3, 64, 64), grid_labels(1, 64, 64)
    assert fine.forward_hierarchy(image, labels, 16).hierarchy.num_segments == (16, 16, 8, 4)
    assert coarse.forward_hierarchy(image, labels, 16).hierarchy.num_segments == (16, 10, 3, 2)


def test_granularity_may_be_changed():
    model, other = make_model(), make_model(num_clusters=(10, 3, 2))
    other.load_state_dict(model.state_dict())
    image, labels = torch.randn(1, 3, 64, 64), grid_labels(1, 64, 64)
    model.set_granularity([10, 3, 2])
    assert model.config == other.config
    assert torch.equal(model(image, labels, 16), other(image, labels, 16))
    for wrong in ((10, 3), (3, 10, 2), (10, 3, 2.0), (10, 3, 0), 10):
        with pytest.raises(ValueError, match="num_clusters"):
            model.set_granularity(wrong)
    assert torch.equal(model(image, labels, 16), other(image, labels, 16))


def test_number_of_superpixels_is_free_of_the_stem_grid():
    model = make_model()
    labels = grid_labels(1, 64, 64, 4)  # 256 superpixels on a grid of 64 cells
    level = model.forward_hierarchy(torch.randn(1, 3, 64, 64), labels, 256).levels[0]
    assert level.tokens.shape[1] == 256
    assert int(level.mask.sum()) == 64


def test_sincos_positions_of_another_grid():
    """At another size the model equals one built for that size."""
    model, native = make_model(), make_model(img_size=96)
    native.load_state_dict(model.state_dict())
    image, labels = torch.randn(1, 3, 96, 96), grid_labels(1, 96, 96)
    torch.testing.assert_close(model(image, labels, 36), native(image, labels, 36))


def test_learned_positions_are_resized_over_the_grid():
    model = make_model(pos_embed="learned")
    columns = torch.arange(8.0).repeat(8)  # the table of a ramp along the width
    model.pos_embed.data[0, 1:] = columns[:, None]
    _, table = model._positions(torch.Size((4, 16)))
    table = table.unflatten(1, (4, 16))
    assert torch.equal(table[:, 0], table[:, 3])
    torch.testing.assert_close(table[:, :1], resize_pos_embed(model.pos_embed[:, 1:9], (1, 8), (1, 16))[:, None])
    assert (table[0, 0, :, 0].diff() > 0).all()
    cls, _ = model._positions(torch.Size((8, 8)))
    assert torch.equal(cls, model.cls_token + model.pos_embed[:, :1])


def test_projection_after_the_average_equals_the_published_order():
    """Empty superpixels included, which the projection's bias must not reach; and in the gradients."""
    late, published = make_model().double(), make_model(pool_before_proj=False).double()
    published.load_state_dict(late.state_dict())
    image, labels = photo(2, 64, 40), torch.randint(0, 30, (2, 64, 40))
    results, shapes = [], []
    for model in (late, published):
        model.stem.proj.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
        logits = model(image, labels, 33)  # the last three are empty
        logits.square().sum().backward()
        results.append((logits, model.stem.proj.weight.grad, model.stem.proj.bias.grad))
    assert shapes == [(2, 48, 33, 1), (2, 48, 8, 5)]  # the module is called, on superpixels or on cells
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


class Adapted(nn.Module):
    """A layer with a low-rank correction, as fine-tuning wraps it: no ``weight``, no ``bias``."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.down, self.up = layer, nn.Conv2d(48, 2, 1, bias=False), nn.Conv2d(2, 48, 1, bias=False)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


def test_projection_may_be_wrapped_or_hooked():
    image, labels = torch.randn(2, 3, 64, 64), grid_labels(2, 64, 64)
    model, published = make_model(), make_model(pool_before_proj=False)
    published.load_state_dict(model.state_dict())
    model.stem.proj = published.stem.proj = Adapted(model.stem.proj)
    plain = model(image, labels, 20)
    torch.testing.assert_close(plain, published(image, labels, 20), rtol=1e-4, atol=1e-4)
    model.stem.proj.register_forward_hook(lambda _, __, output: 2 * output)
    assert not torch.allclose(model(image, labels, 20), plain)


def test_devices_agree_without_a_host_sync(device):
    model = make_model()
    image, labels = photo(2, 64, 96), grid_labels(2, 64, 96)
    expected = model(image, labels, 24)
    model, image, labels = model.to(device), image.to(device), labels.to(device)
    model(image, labels, 24)  # whatever is built at the first call
    try:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        logits = model(image, labels, 24)
        out = model.forward_hierarchy(image, labels, 24)
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(logits.cpu(), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(out.logits, logits)
    assert out.hierarchy.superpixels.device.type == device


# --- training


@pytest.mark.parametrize("pos_embed", ["sincos", "learned"])
def test_gradients_reach_every_parameter_but_the_last_pool(pos_embed):
    model = make_model(pos_embed=pos_embed).double().train()
    labels = grid_labels(2, 64, 64, 8)
    model(torch.randn(2, 3, 64, 64), labels, 64).square().sum().backward()
    for name, p in model.named_parameters():
        if name.startswith("stages.2.pool."):
            assert not p.requires_grad
            assert p.grad is None
        elif name.endswith("pool.attn.proj.bias"):  # removed by the centring
            assert p.grad.norm() < 1e-10
        else:
            assert p.requires_grad, name
            assert p.grad.norm() > 1e-7, name


def test_drop_path_grows_linearly():
    model = make_model(drop_path=0.3)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert make_model(depths=(1,), num_clusters=(4,), drop_path=0.3).stages[0].blocks[0].drop_path.drop_prob == 0.0


def test_checkpointing_gives_the_same_gradients():
    image, labels = torch.randn(2, 3, 64, 64), grid_labels(2, 64, 64)
    model = make_model(pool_dropout=0.0).train()
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(image, labels, 16).square().sum().backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], msg=name)


def test_state_dict_round_trip():
    model, other = make_model(), make_model()
    image, labels = torch.randn(1, 3, 64, 64), grid_labels(1, 64, 64)
    assert not torch.equal(model(image, labels, 16), other(image, labels, 16))
    state = model.state_dict()
    assert not {"pos_embed", "image_mean", "image_std"} & set(state)
    other.load_state_dict(state)
    assert torch.equal(model(image, labels, 16), other(image, labels, 16))


@pytest.mark.parametrize("pos_embed", ["sincos", "learned"])
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_built_on_the_meta_device_and_loaded(pos_embed, assign, nested):
    """Also inside another module, and with the loaded tensors taken over instead of copied."""
    model = make_model(pos_embed=pos_embed)
    image, labels = photo(1, 64, 64), grid_labels(1, 64, 64)
    with torch.device("meta"):
        other = Cast(model.config).eval()
    assert other.pos_embed.is_meta
    assert other.image_mean.is_meta
    if not assign:
        other.to_empty(device="cpu")
        for buffer in other.buffers():
            buffer.fill_(77)  # what fresh memory may hold
    outer, source = (nn.Sequential(other), nn.Sequential(model)) if nested else (other, model)
    outer.load_state_dict(source.state_dict(), assign=assign)
    assert torch.equal(other.image_mean, model.image_mean)
    assert torch.equal(other.image_std, model.image_std)
    assert torch.equal(other.pos_embed, model.pos_embed)
    assert not any(b.is_meta for b in other.buffers())
    assert torch.equal(other(image, labels, 16), model(image, labels, 16))


def test_loading_keeps_the_dtype():
    model = make_model().half()
    table = model.pos_embed.clone()
    model.load_state_dict(make_model().state_dict())
    assert model.pos_embed.dtype == torch.float16
    assert model.image_std.dtype == torch.float32
    assert torch.equal(model.pos_embed, table)


def test_copies_and_pickles():
    model = make_model()
    image, labels = photo(1, 64, 64), grid_labels(1, 64, 64)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(image, labels, 16), model(image, labels, 16))
        other.image_mean.fill_(77)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other.image_mean, model.image_mean)  # the copy's own, not the original's


def test_reset_classifier():
    model = make_model().double()
    image, labels = torch.randn(1, 3, 64, 64), grid_labels(1, 64, 64)
    embedding = model.forward_hierarchy(image, labels, 16).embedding
    model.reset_classifier(7)
    assert model(image, labels, 16).shape == (1, 7)
    assert model.head.weight.dtype == torch.float64
    assert model.config.num_classes == 7
    model.reset_classifier(0)
    assert torch.equal(model(image, labels, 16), embedding)
    assert make_model(num_classes=0)(image.float(), labels, 16).shape == (1, 48)


@pytest.mark.parametrize("num_classes", [2.5, -1, "7", True, None])
def test_a_classifier_that_cannot_be_leaves_the_model_as_it_was(num_classes):
    model = make_model()
    head, config = model.head, model.config
    with pytest.raises(ValueError, match="num_classes"):
        model.reset_classifier(num_classes)
    assert model.head is head
    assert model.config is config


def test_no_weight_decay():
    assert make_model().no_weight_decay() == {"cls_token"}
    assert make_model(pos_embed="learned").no_weight_decay() == {"cls_token", "pos_embed"}


# --- precision


def test_double_widens_the_tables():
    model = make_model()
    table = model.pos_embed.clone()
    assert torch.equal(model.double().pos_embed, table.double())
    image, labels = torch.randn(1, 3, 64, 64), grid_labels(1, 64, 64)
    assert model(image, labels, 16).dtype == torch.float64


@pytest.mark.parametrize("pos_embed", ["sincos", "learned"])
def test_bfloat16_autocast(pos_embed):
    model = make_model(pos_embed=pos_embed)
    image, labels = torch.randn(2, 3, 64, 64), grid_labels(2, 64, 64)
    plain = model(image, labels, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model.forward_hierarchy(image, labels, 16)
        assert out.levels[1].tokens.dtype == torch.float32  # positions in float32 keep the token stream there
        assert all(torch.equal(p, level.parents) for p, level in zip(out.hierarchy.parents, out.levels, strict=True))
        assert all(p.dtype == torch.float32 for p in out.hierarchy.assignments)
        logits = model(image, labels, 16)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), plain, rtol=0.1, atol=0.1)
    logits.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_bfloat16_model():
    model = make_model().to(torch.bfloat16)
    logits = model(photo(1, 64, 64), grid_labels(1, 64, 64), 16)
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


def test_empty_batch():
    model = make_model()
    assert model(torch.zeros(0, 3, 64, 64), torch.zeros(0, 64, 64, dtype=torch.int64), 16).shape == (0, 5)
