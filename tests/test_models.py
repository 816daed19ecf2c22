"""The classification model: contract, input forms, sizes, training, precision, compilation."""

import dataclasses

import pytest
import torch
from torch import nn

from cast import Cast, CastConfig, SuperpixelConfig, create_model
from cast.layers import resize_pos_embed
from cast.models import inputs
from cast_kernels import seeds, seeds_count

SMALL = CastConfig(
    img_size=64,
    embed_dim=48,
    depths=(1, 2, 1),
    num_heads=4,
    num_clusters=(16, 8, 4),
    num_classes=5,
    superpixels=SuperpixelConfig(num_superpixels=25, iterations=4, bins=5),
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make_model(**overrides):
    model = Cast(dataclasses.replace(SMALL, **overrides)).eval()
    for p in model.parameters():  # large enough that every part shows in the output
        if p.ndim < 2 or p is model.cls_token:
            p.data += 0.2 * torch.randn_like(p)
    return model


def grid_labels(batch, height, width, cell=16):
    rows, columns = torch.arange(height) // cell, torch.arange(width) // cell
    return (rows[:, None] * -(-width // cell) + columns).expand(batch, -1, -1).contiguous()


def photo(batch, height, width):
    """Smooth uint8 images, [B, 3, H, W]."""
    coarse = torch.rand(batch, 3, height // 16 + 1, width // 16 + 1)
    fine = nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return (fine.clamp(0, 1) * 255).to(torch.uint8)


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
    torch.manual_seed(0)
    model = create_model("cast_mini", num_classes=3, num_clusters=(12, 8, 4, 2), img_size=64).double().eval()
    torch.nn.init.normal_(model.stem.proj.bias)
    image = torch.randint(0, 256, (2, 3, 64, 40), dtype=torch.uint8)
    labels = torch.randint(0, 30, (2, 64, 40))
    results = []
    for order in (True, False):
        model.pool_before_proj = order
        model.zero_grad()
        logits = model(image, labels, 33)  # the last three are empty
        logits.square().sum().backward()
        results.append((logits, model.stem.proj.weight.grad, model.stem.proj.bias.grad))
    for early, late in zip(*results, strict=True):
        torch.testing.assert_close(early, late, rtol=1e-10, atol=1e-10)


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


# --- images and superpixels


def test_uint8_is_normalised_inside():
    model = make_model(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    image, labels = photo(2, 64, 64), grid_labels(2, 64, 64)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    expected = model((image.float() / 255 - mean) / std, labels, 16)
    assert torch.equal(model(image, labels, 16), expected)
    assert torch.equal(model(image.permute(0, 2, 3, 1), labels, 16), expected)
    assert torch.equal(model(image.permute(0, 2, 3, 1).contiguous(), labels, 16), expected)


def test_superpixels_come_from_the_image():
    model = make_model()
    image = photo(2, 64, 96)
    labels = model.superpixels(image)
    count = seeds_count(64, 96, round(25 * 64 * 96 / 64**2))
    assert labels.dtype == torch.int32
    assert labels.shape == (2, 64, 96)
    assert labels.min() >= 0
    assert labels.max() < count
    assert torch.equal(model(image), model(image, labels))
    assert torch.equal(model(image), model(image, labels, count))
    out = model.forward_hierarchy(image)
    assert torch.equal(out.hierarchy.superpixels, labels)
    assert out.hierarchy.num_segments[0] == count
    assert torch.equal(model.superpixels(image.permute(0, 2, 3, 1)), labels)


def test_superpixels_follow_the_settings():
    settings = SuperpixelConfig(num_superpixels=30, bins=6, iterations=3, prior=4, num_levels=3, double_step=True)
    image = torch.randint(0, 256, (1, 3, 128, 96), dtype=torch.uint8)
    expected = seeds(image, 90, bins=6, iterations=3, prior=4, num_levels=3, double_step=True)  # 3 times the area
    assert torch.equal(make_model(superpixels=settings).superpixels(image), expected)
    for name in ("bins", "iterations", "prior", "num_levels", "double_step"):
        plain = dataclasses.replace(settings, **{name: getattr(SuperpixelConfig(), name)})
        assert not torch.equal(make_model(superpixels=plain).superpixels(image), expected), name


def test_superpixels_of_a_normalised_image_are_those_of_the_image():
    model = make_model()
    image = photo(2, 64, 64)
    normalised = inputs.normalise(image, model.image_mean, model.image_std, torch.float32)
    assert torch.equal(model.superpixels(normalised), model.superpixels(image))
    torch.testing.assert_close(model(normalised), model(image))


def test_back_to_uint8_rounds_and_clamps():
    model = make_model()
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    normalised = inputs.normalise(levels, model.image_mean, model.image_std, torch.float32)
    assert torch.equal(inputs.to_uint8(normalised, model.image_mean, model.image_std), levels)
    beyond = inputs.to_uint8(torch.tensor([-90.0, 90.0]).view(1, 1, 1, 2), model.image_mean, model.image_std)
    assert beyond[0, 0, 0].tolist() == [0, 255]


def test_number_of_superpixels_can_be_asked_for():
    model = make_model()
    image = photo(1, 64, 64)
    out = model.forward_hierarchy(image, num_superpixels=64)
    count = seeds_count(64, 64, 64)
    assert out.hierarchy.num_segments[0] == count > seeds_count(64, 64, 25)
    assert torch.equal(out.hierarchy.superpixels, model.superpixels(image, 64))
    again = model.forward_hierarchy(image, model.superpixels(image, 64), num_superpixels=64)
    assert torch.equal(again.logits, out.logits)


def test_too_few_superpixels_say_so():
    model = make_model()
    with pytest.raises(ValueError, match=r"num_clusters\[0\] = 16 superpixels, got 4 for an image of 32 x 32"):
        model(torch.randn(1, 3, 32, 32), grid_labels(1, 32, 32), 4)


@pytest.mark.parametrize(
    ("image", "labels", "error", "message"),
    [
        (torch.zeros(1, 3, 60, 64), (1, 60, 64), ValueError, "multiples of 8"),
        (torch.zeros(1, 3, 0, 64), (1, 0, 64), ValueError, "multiples of 8"),
        (torch.zeros(1, 4, 64, 64), (1, 64, 64), ValueError, r"\[B, 3, H, W\]"),
        (torch.zeros(1, 64, 64, 3), (1, 64, 64), ValueError, "in uint8 also"),
        (torch.zeros(3, 64, 64), (3, 64, 64), ValueError, r"\[B, 3, H, W\]"),
        (torch.zeros(1, 5, 64, 64, dtype=torch.uint8), (1, 64, 64), ValueError, r"\(1, 5, 64, 64\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.int64), (1, 64, 64), TypeError, "uint8 or floating point"),
        (torch.zeros(2, 3, 64, 64), (1, 64, 64), ValueError, r"labels \[2, H, W\]"),
        (torch.zeros(1, 3, 64, 64), (64, 64), ValueError, r"labels \[1, H, W\]"),
    ],
)
def test_rejects_bad_input(image, labels, error, message):
    with pytest.raises(error, match=message):
        make_model()(image, torch.zeros(labels, dtype=torch.int64), 16)


def test_rejects_labels_that_are_no_integers():
    with pytest.raises(TypeError, match="float32"):
        make_model()(torch.zeros(1, 3, 64, 64), torch.zeros(1, 64, 64), 16)


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
    with pytest.raises(ValueError, match="num_classes"):
        model.reset_classifier(-1)


def test_no_weight_decay():
    assert make_model().no_weight_decay() == {"cls_token"}
    assert make_model(pos_embed="learned").no_weight_decay() == {"cls_token", "pos_embed"}


# --- precision and compilation


def test_double_widens_the_tables():
    model = make_model()
    table = model.pos_embed.clone()
    assert torch.equal(model.double().pos_embed, table.double())
    image, labels = torch.randn(1, 3, 64, 64), grid_labels(1, 64, 64)
    assert model(image, labels, 16).dtype == torch.float64


COMPILED = {"depths": (1, 1), "num_clusters": (8, 4), "pool_dropout": 0.0}


@torch.no_grad()
def test_compiles_to_one_graph():
    """With labels and, from uint8 alone, with superpixels."""
    model = make_model(**COMPILED)
    image, labels = photo(2, 64, 64), grid_labels(2, 64, 64).int()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image, labels), model(image, labels))
    torch.testing.assert_close(compiled(image), model(image))


def test_compiled_training_step():
    model = make_model(**COMPILED, pos_embed="learned").train()
    image, labels = torch.randn(2, 3, 96, 96), grid_labels(2, 96, 96)
    grads = []
    for forward in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        forward(image, labels, 36).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for eager, compiled in zip(*grads, strict=True):
        torch.testing.assert_close(eager, compiled, rtol=1e-4, atol=1e-5)


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
