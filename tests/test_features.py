"""timm's feature interface: levels on the way, parameter groups, data settings, features instead of classes."""

import copy

import pytest
import torch
from small_model import SMALL, VARIANTS, grid_labels, make_model
from torch import nn

import cast
from cast import create_model
from cast.models import build_model
from cast.models.extractor import FeatureExtractor

CONFIGS = {"cast": SMALL} | {name: VARIANTS[name] for name in ("pretrain", "segmentation", "segmenter", "vit")}


@pytest.fixture(params=CONFIGS)
def any_model(request):
    return build_model(CONFIGS[request.param]).eval()


@pytest.fixture(params=[name for name in CONFIGS if name != "vit"])
def model(request):
    return build_model(CONFIGS[request.param]).eval()


def inputs(model, height=64, width=64):
    image = torch.randn(2, 3, height, width)
    if model.config.kind == "vit":
        return (image,)
    labels = grid_labels(2, height, width, 8)
    return image, labels, int(labels.max()) + 1


def test_intermediates_are_the_levels_of_the_hierarchy(model):
    args = inputs(model, 64, 96)
    out = model.forward_hierarchy(*args)
    features, levels = model.forward_intermediates(*args, output_fmt="NLC", return_prefix_tokens=True)
    assert torch.equal(features, model.forward_features(*args))
    assert len(levels) == 3
    for (tokens, cls), expected in zip(levels, out.levels, strict=True):
        assert torch.equal(tokens, expected.tokens)
        assert torch.equal(cls, expected.cls)
    tokens = model.forward_intermediates(*args, output_fmt="tokens", intermediates_only=True)
    assert all(torch.equal(a, b) for a, (b, _) in zip(tokens, levels, strict=True))


def test_maps_show_each_segment_where_it_is(model):
    args = inputs(model, 64, 96)
    maps = model.forward_intermediates(*args, intermediates_only=True)
    hierarchy = model.forward_hierarchy(*args).hierarchy
    tokens = model.forward_intermediates(*args, intermediates_only=True, output_fmt="NLC")
    for level, (grid, tokens_of_level) in enumerate(zip(maps, tokens, strict=True)):
        assert grid.shape == (2, 48, 8, 12)
        cells = hierarchy.labels(level)[:, ::8, ::8].long()
        for b in range(2):
            assert torch.equal(grid[b].permute(1, 2, 0), tokens_of_level[b][cells[b]])
    again = model.forward_intermediates(*args, intermediates_only=True, output_fmt="maps")
    assert all(torch.equal(a, b) for a, b in zip(again, maps, strict=True))


def test_pixels_without_a_segment_are_zero_on_maps():
    model = make_model()
    image, labels, _ = inputs(model)
    maps = model.forward_intermediates(image, labels, 40, intermediates_only=True)
    outside = labels[:, ::8, ::8] >= 40
    for grid in maps:
        assert not grid.permute(0, 2, 3, 1)[outside].any()
        assert grid.permute(0, 2, 3, 1)[~outside].abs().sum(1).all()
    levels = model.forward_levels(image, labels, 40)
    assert all(torch.equal(level.labels == -1, labels >= 40) for level in levels)


def test_odd_sizes_of_dense_models():
    model = build_model(CONFIGS["segmentation"]).eval()
    image, labels = torch.randn(1, 3, 61, 75), grid_labels(1, 30, 37, 4)  # labels of another resolution
    maps = model.forward_intermediates(image, labels, 80, intermediates_only=True)
    assert [grid.shape[2:] for grid in maps] == [(8, 10)] * 3


def test_patches_are_the_segments_of_a_vit():
    model = build_model(CONFIGS["vit"]).eval()
    image = torch.randn(2, 3, 64, 96)
    features, maps = model.forward_intermediates(image, norm=True)
    assert torch.equal(features, model.forward_features(image))
    assert torch.equal(maps[-1], features[:, 1:].transpose(1, 2).unflatten(2, (4, 6)))
    level = model.forward_levels(image, indices=[1])[0]
    assert level.labels.dtype == torch.int32
    assert torch.equal(level.labels, grid_labels(2, 64, 96, 16).int())
    assert torch.equal(level.tokens, model.forward_intermediates(image, indices=[1], output_fmt="NLC")[1][0])


@pytest.mark.parametrize(
    ("indices", "expected"), [(None, [0, 1, 2]), (1, [2]), (2, [1, 2]), ([0], [0]), ((2, -3), [0, 2]), ([-1, 2], [2])]
)
def test_indices(any_model, indices, expected):
    args = inputs(any_model)
    every = any_model.forward_intermediates(*args, intermediates_only=True)
    for early in (False, True):
        some = any_model.forward_intermediates(*args, indices=indices, intermediates_only=True, stop_early=early)
        assert len(some) == len(expected)
        assert all(torch.equal(x, every[i]) for x, i in zip(some, expected, strict=True))
    features, _ = any_model.forward_intermediates(*args, indices=indices, stop_early=True)
    assert torch.equal(features, any_model.forward_features(*args))


def test_stopping_early_leaves_the_rest_out():
    model, ran = make_model(), []
    for i, stage in enumerate(model.stages):
        stage.blocks[0].register_forward_hook(lambda *_, i=i: ran.append(i))
    args = inputs(model)
    model.forward_intermediates(*args, indices=[1], intermediates_only=True, stop_early=True)
    assert ran == [0, 1]
    model.forward_intermediates(*args, indices=[1], intermediates_only=True)
    assert ran == [0, 1, 0, 1, 2]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"indices": 4}, ValueError, "3 levels"),
        ({"indices": 0}, ValueError, "3 levels"),
        ({"indices": [3]}, ValueError, "3 levels"),
        ({"indices": [-4]}, ValueError, "3 levels"),
        ({"indices": []}, ValueError, "3 levels"),
        ({"indices": [0.0]}, TypeError, "indices"),
        ({"indices": "all"}, TypeError, "indices"),
        ({"output_fmt": "NHWC"}, ValueError, "NCHW, maps"),
    ],
)
def test_wrong_requests(any_model, options, error, message):
    with pytest.raises(error, match=message):
        any_model.forward_intermediates(*inputs(any_model), **options)


def test_the_norm_of_levels():
    model = make_model()
    args = inputs(model)
    (plain, cls), (normed, normed_cls) = (
        model.forward_intermediates(*args, indices=1, norm=n, output_fmt="NLC", return_prefix_tokens=True)[1][0]
        for n in (False, True)
    )
    assert torch.equal(normed, model.norm(plain))
    assert torch.equal(normed_cls, model.norm(cls))
    assert torch.equal(torch.cat([normed_cls, normed], 1), model.forward_features(*args))
    with pytest.raises(ValueError, match="no final norm"):
        build_model(CONFIGS["segmentation"]).forward_intermediates(*args, norm=True)


def test_superpixels_are_made_where_none_are_given():
    model = make_model()
    image = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    expected = model.forward_hierarchy(image)
    level = model.forward_levels(image, indices=1)[0]
    assert torch.equal(level.tokens, expected.levels[2].tokens)
    assert torch.equal(level.labels, expected.hierarchy.labels(2))


@torch.no_grad()
def test_intermediates_compile_to_one_graph():
    model = make_model(depths=(1, 1), num_clusters=(8, 4))
    args = inputs(model)
    expected = model.forward_intermediates(*args)
    found = torch.compile(model.forward_intermediates, fullgraph=True, backend="aot_eager")(*args)
    torch.testing.assert_close(found, expected)


# --- features_only


SMALLER = {"embed_dim": 48, "num_heads": 4, "img_size": 64, "num_clusters": (16, 8, 4, 2)}


@pytest.mark.parametrize("name", ["cast_mini", "cast_seg_small_pretrain", "cast_segmenter_small"])
def test_features_only(name):
    options = SMALLER | ({"decoder_heads": 4} if "segmenter" in name else {})
    net = create_model(name, features_only=True, out_indices=(0, 2), **options).eval()
    assert isinstance(net, FeatureExtractor)
    assert net.feature_info.channels() == [48, 48]
    assert net.feature_info.reduction() == [8, 8]
    assert net.feature_info.module_name() == ["stages.0", "stages.2"]
    assert net.feature_info.channels(3) == 48
    assert net.feature_info.get_dicts(["module"]) == [{"module": "stages.0"}, {"module": "stages.2"}]
    assert len(net.feature_info) == 4
    args = inputs(net)
    levels = net(*args)
    hierarchy = net.model.forward_hierarchy(*args).hierarchy
    assert [level.tokens.shape[1] for level in levels] == [64, 8]
    for i, level in zip((0, 2), levels, strict=True):
        assert torch.equal(level.labels, hierarchy.labels(i))
    net.train()
    sum(level.tokens.square().sum() for level in net(*args)).backward()
    learning = {n for n, p in net.named_parameters() if p.requires_grad}
    assert learning == {n for n, p in net.named_parameters() if p.grad is not None}
    assert not any(
        n.startswith(("model.stages.2.pool", "model.stages.3", "model.norm", "model.head")) for n in learning
    )
    assert any(n.startswith("model.stages.2.blocks") for n in learning)


def test_features_only_as_maps_and_of_one_level():
    net = create_model("cast_mini", features_only=True, output_fmt="NCHW", out_indices=1, **SMALLER).eval()
    (grid,) = net(*inputs(net))
    assert grid.shape == (2, 48, 8, 8)
    first = create_model("cast_mini", features_only=True, out_indices=[0], **SMALLER).eval()
    (level,) = first(*inputs(first))
    assert torch.equal(level.labels, grid_labels(2, 64, 64, 8).int())
    with pytest.raises(ValueError, match="output_fmt"):
        create_model("cast_mini", features_only=True, output_fmt="dict", **SMALLER)
    vit = create_model("vit_conv_small", features_only=True, embed_dim=48, img_size=64).eval()
    assert len(vit(torch.randn(1, 3, 64, 64))) == 11


# --- what a model tells of itself


def test_classifiers(any_model):
    classifier = any_model.get_classifier()
    assert classifier is (any_model.decoder if any_model.config.kind == "cast_segmenter" else any_model.head)
    assert any_model.num_features == any_model.head_hidden_size == 48
    assert any_model.num_classes == 5
    any_model.reset_classifier(7)
    assert any_model.num_classes == 7
    assert any_model.get_classifier() is not classifier
    any_model.reset_classifier(3, global_pool="token")  # as timm's scripts call it
    assert any_model.num_classes == 3
    with pytest.raises(ValueError, match=r"expected global_pool='token'.*got 'avg'"):
        any_model.reset_classifier(2, "avg")
    assert any_model.num_classes == 3


def test_no_weight_decay_names_parameters(any_model):
    assert any_model.no_weight_decay() <= {name for name, _ in any_model.named_parameters()}
    assert "cls_token" in any_model.no_weight_decay()


def test_data_settings_follow_the_model():
    model = make_model(init="deit", mean=(0.1, 0.2, 0.3))
    settings = model.pretrained_cfg
    assert settings["mean"] == (0.1, 0.2, 0.3)
    assert settings["input_size"] == (3, 64, 64)
    assert (settings["interpolation"], settings["crop_pct"]) == ("bicubic", 0.875)
    assert settings["superpixels"]["num_superpixels"] == 25
    assert settings["num_classes"] == 5
    model.reset_classifier(7)
    assert model.default_cfg["num_classes"] == 7
    module = model.get_submodule(settings["classifier"])
    assert module is model.get_classifier()
    assert isinstance(model.get_submodule(settings["first_conv"]), nn.Conv2d)
    model.pretrained_cfg = {"mean": 0}
    assert model.default_cfg == {"mean": 0}
    assert copy.deepcopy(model).pretrained_cfg == {"mean": 0}
    dense = build_model(CONFIGS["segmenter"]).pretrained_cfg
    assert (dense["crop_pct"], dense["classifier"]) == (1.0, "decoder")
    assert "superpixels" not in build_model(CONFIGS["vit"]).pretrained_cfg


def test_names_are_exported():
    assert cast.create_model is create_model


# --- against timm itself


def test_layer_decay_of_timm(any_model):
    optim = pytest.importorskip("timm.optim", exc_type=Exception)
    from timm.models import group_parameters

    layers = group_parameters(any_model, any_model.group_matcher(), reverse=True)
    assert layers.keys() == {name for name, _ in any_model.named_parameters()}
    assert {layers[n] for n in layers if n.startswith(("stem.", "cls_token", "pos_embed"))} == {0}
    assert layers[next(n for n in layers if n.startswith(("head.", "decoder.")))] == max(layers.values())
    prefixes = (
        [f"blocks.{i}." for i in range(3)]
        if any_model.config.kind == "vit"
        else ["stages.0.blocks.0.", "stages.0.pool.", "stages.1.blocks.0.", "stages.1.blocks.1.", "stages.1.pool.",
              "stages.2.blocks.0.", "stages.2.pool."]
    )  # fmt: skip
    for depth, prefix in enumerate(prefixes, start=1):
        assert {layers[n] for n in layers if n.startswith(prefix)} == {depth}, prefix
    coarse = group_parameters(any_model, any_model.group_matcher(coarse=True), reverse=True)
    if any_model.config.kind != "vit":
        for i in range(3):
            assert {coarse[n] for n in coarse if n.startswith(f"stages.{i}.")} == {i + 1}
    groups = optim.param_groups_layer_decay(any_model, 0.05, any_model.no_weight_decay(), layer_decay=0.5)
    scales = sorted({group["lr_scale"] for group in groups})
    assert scales[-1] == 1.0
    assert scales[0] == 0.5 ** max(layers.values())
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert id(any_model.cls_token) not in decayed


def test_data_settings_in_timm():
    data = pytest.importorskip("timm.data", exc_type=Exception)
    found = data.resolve_model_data_config(make_model(mean=(0.1, 0.2, 0.3)))
    assert found["mean"] == (0.1, 0.2, 0.3)
    assert found["input_size"] == (3, 64, 64)
    assert (found["interpolation"], found["crop_pct"]) == ("bilinear", 0.875)


def test_the_feature_getter_of_timm():
    features = pytest.importorskip("timm.models._features", exc_type=Exception)
    model = make_model()
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    getter = features.FeatureGetterNet(model, out_indices=(0, 2))
    assert getter.feature_info.channels() == [48, 48]
    assert getter.feature_info.reduction() == [8, 8]
    expected = model.forward_intermediates(image, indices=(0, 2), intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(getter(image), expected, strict=True))


def test_the_interface_is_that_of_timms_vit():
    """Names and defaults that programs for timm's models use."""
    import inspect

    vit = pytest.importorskip("timm.models.vision_transformer", exc_type=Exception).VisionTransformer
    ours, theirs = (inspect.signature(c.forward_intermediates).parameters for c in (cast.Cast, vit))
    for name in ("indices", "return_prefix_tokens", "norm", "stop_early", "output_fmt", "intermediates_only"):
        assert ours[name].default == theirs[name].default, name
    for name in ("get_classifier", "reset_classifier", "no_weight_decay", "group_matcher", "set_grad_checkpointing"):
        assert hasattr(vit, name)
        assert hasattr(cast.Cast, name)
