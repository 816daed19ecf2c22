"""Models by name, and the settings they are built from."""

import dataclasses
import json
import sys

import pytest
import torch
from torch import nn

from cast import CastConfig, SuperpixelConfig, create_model, list_models
from cast.models import CastSegConfig, CastSegmenterConfig, ImageConfig, ViTConfig
from cast.models.registry import CONFIGS
from cast_kernels import seeds

CONFIG = CastConfig(embed_dim=48, depths=(1, 2, 1), num_clusters=(16, 8, 4))


SIZES = {"small", "small_deep", "base", "base_deep"}


def test_model_names():
    assert list_models() == sorted(list_models())
    patterns = ("cast_{}", "cast_deit_{}", "cast_seg_{}", "cast_seg_{}_pretrain", "cast_seg_{}_retrieval",
                "cast_seg_{}_voc", "cast_seg_deit_{}", "cast_segmenter_{}", "cast_segmenter_{}_linear")  # fmt: skip
    expected = {pattern.format(size) for pattern in patterns for size in SIZES}
    assert set(list_models()) == expected | {"cast_mini", "vit_conv_small", "vit_conv_base"}
    assert list_models("vit_*") == ["vit_conv_base", "vit_conv_small"]


@pytest.mark.parametrize("name", list_models())
def test_settings_of_the_families(name):
    with torch.device("meta"):
        config = create_model(name).config
    deit, dense, pretrain = "deit" in name or "segmenter" in name, "seg" in name, "pretrain" in name
    assert config.init == ("deit" if deit else "moco")
    assert config.num_heads == 12
    assert config.embed_dim == (192 if "mini" in name else 768 if "base" in name else 384)
    if name.startswith("vit"):
        assert (config.depth, config.stride, config.img_size) == (11, 16, 224)
        return
    assert config.pos_embed == ("learned" if deit else "sincos")
    assert config.depths == ((6, 3, 3, 3) if "deep" in name else (3, 3, 3, 2))
    at_512 = dense and not deit and not pretrain
    assert config.img_size == (512 if at_512 else 224)
    assert config.superpixels.num_superpixels == (1024 if at_512 else 196)
    moco_superpixels = not deit and (not dense or pretrain)
    assert config.superpixels.bins == (15 if moco_superpixels else 5)
    assert (config.superpixels.order, config.superpixels.quality) == ("parallel", None)
    assert config.superpixels.as_published().iterations == (20 if moco_superpixels else 15)
    assert config.num_clusters == ((320, 160, 80, 40) if dense and not pretrain else (64, 32, 16, 8))
    if dense:
        stage = "pretrain" if pretrain else "encoder" if deit else "segmentation"
        assert (config.stage, config.pos_embed_size) == (stage, 224 if at_512 else 0)


@pytest.mark.parametrize(
    ("name", "total", "trainable"),
    [("cast_small", 28.34, 26.26), ("cast_small_deep", 35.44, None), ("cast_base", 111.80, 104.10),
     ("cast_base_deep", 140.15, None), ("cast_seg_small_pretrain", 28.93, None)],
)  # fmt: skip
def test_published_sizes(name, total, trainable):
    with torch.device("meta"):
        model = create_model(name)
    frozen_tables = model.pos_embed.numel() + model.cls_token.numel()  # parameters there: the table and pe_token
    assert (sum(p.numel() for p in model.parameters()) + frozen_tables) / 1e6 == pytest.approx(total, abs=0.005)
    if trainable:
        found = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
        assert found == pytest.approx(trainable, abs=0.005)


def test_overrides():
    model = create_model("cast_deit_small", depths=[1, 1], num_clusters=[8, 4], embed_dim=48, superpixels={"bins": 7})
    assert model.config.num_clusters == (8, 4)
    assert model.config.superpixels == SuperpixelConfig(bins=7)
    with pytest.raises(ValueError, match=r"cast_tiny.*cast_small"):
        create_model("cast_tiny")
    with pytest.raises(TypeError, match="depth"):
        create_model("cast_small", depth=3)
    for foreign in ({"num_clusters": (4,)}, {"superpixels": {"bins": 5}}, {"compat": "published"}):
        with pytest.raises(TypeError, match=next(iter(foreign))):
            create_model("vit_conv_small", **foreign)


def test_timm_builds_its_own_baselines(monkeypatch):
    timm = pytest.importorskip("timm", reason="needs timm, an extra")
    vit = create_model("vit_deit_small", num_classes=7, depth=1)
    assert isinstance(vit, timm.models.VisionTransformer)
    assert (vit.embed_dim, vit.head.out_features, len(vit.blocks)) == (384, 7, 1)
    maps = create_model("vit_deit_tiny", features_only=True, out_indices=1, output_fmt="NCHW", depth=2)
    assert [tuple(m.shape) for m in maps(torch.zeros(1, 3, 224, 224))] == [(1, 192, 14, 14)]
    with pytest.raises(ValueError, match="returns maps, got 'NLC'"):  # tokens were asked for, maps came
        create_model("vit_deit_tiny", features_only=True, output_fmt="NLC")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"needs timm.*pip install .*\[timm\]"):
        create_model("vit_deit_small")


def test_another_order_drops_the_options_of_this_one():
    published = create_model("cast_mini", compat="published", superpixels={"bins": 5}).config.superpixels
    assert (published.order, published.bins, published.iterations) == ("sequential", 5, 20)
    parallel = create_model("cast_mini", compat="published", superpixels={"order": "parallel", "quality": "fast"})
    assert parallel.config.superpixels == SuperpixelConfig(quality="fast")
    assert SuperpixelConfig(quality="fast").replace(order="sequential", prior=1).options() == {
        "bins": 15, "order": "sequential", "quality": None, "iterations": None, "prior": 1, "num_levels": None,
        "double_step": None}  # fmt: skip
    with pytest.raises(ValueError, match="iterations=3 is not an option"):
        SuperpixelConfig().replace(iterations=3)


def test_configs_written_before_there_was_a_parallel_order():
    values = {"num_superpixels": 196, "bins": 5, "iterations": 15, "prior": 2, "num_levels": 1, "double_step": False}
    config = CastConfig.from_dict({"kind": "cast", "superpixels": values | {"order": "sequential"}})
    images = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    theirs = seeds(images, 24, **config.superpixels.options())
    assert torch.equal(theirs, seeds(images, 24, **SuperpixelConfig(bins=5).as_published().options()))


def test_config_survives_json():
    config = dataclasses.replace(CONFIG, drop_path=0.1, mean=(0.5, 0.4, 0.3))
    assert config.to_dict()["kind"] == "cast"
    assert CastConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert CastConfig.from_dict({}) == CastConfig()
    with pytest.raises(ValueError, match=r"expected kind to be one of .*cast.*, got 'resnet'"):
        CastConfig.from_dict({"kind": "resnet"})
    with pytest.raises(ValueError, match="unknown CastConfig values: colour"):
        CastConfig.from_dict({"colour": 1})
    with pytest.raises(ValueError, match="unknown SuperpixelConfig values: size"):
        CastConfig.from_dict({"superpixels": {"size": 1}})


@pytest.mark.parametrize("name", list_models())
def test_a_config_in_json_tells_the_variants_apart(name):
    config = CONFIGS[name]
    values = json.loads(json.dumps(config.to_dict()))
    again = ImageConfig.from_dict(values)
    assert type(again) is type(config)
    assert again == config
    assert type(config).from_dict(values) == config
    with pytest.raises(ValueError, match="expected kind"):
        (CastConfig if config.kind == "vit" else ViTConfig).from_dict(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"img_size": 60}, "multiple of 8"),
        ({"embed_dim": 50}, "embed_dim"),
        ({"num_heads": 5}, "num_heads"),
        ({"depths": (1, 2)}, "as many num_clusters as depths"),
        ({"depths": (1, 0, 2)}, "depths"),
        ({"num_clusters": (8, 16, 4)}, "fine to coarse"),
        ({"num_clusters": (8, 4, 0)}, "num_clusters"),
        ({"num_clusters": (8, 4, 2.0)}, "num_clusters"),
        ({"num_classes": -1}, "num_classes"),
        ({"pos_embed": "rotary"}, "rotary"),
        ({"init": "zeros"}, "zeros"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"pool_dropout": -0.1}, "pool_dropout"),
        ({"std": (0.2, 0.0, 0.2)}, "std"),
        ({"mean": (0.5,)}, "mean"),
        ({"superpixels": {"bins": 0}}, "superpixels: .*bins"),
        ({"superpixels": {"bins": 41}}, "bins"),
        ({"superpixels": {"bins": 5.0}}, "bins"),
        ({"superpixels": {"order": "sequential", "prior": 6}}, "prior"),
        ({"superpixels": {"order": "sequential", "prior": -1}}, "prior"),
        ({"superpixels": {"iterations": 20}}, "iterations"),
        ({"superpixels": {"order": "sequential", "quality": "best"}}, "quality"),
        ({"superpixels": {"quality": "good"}}, "quality"),
        ({"superpixels": {"order": "random"}}, "random"),
        ({"superpixels": {"order": "sequential", "iterations": -1}}, "iterations"),
        ({"superpixels": {"order": "sequential", "num_levels": 0}}, "num_levels"),
        ({"superpixels": {"num_superpixels": "196"}}, "num_superpixels"),
        ({"superpixels": {"order": "sequential", "double_step": 1}}, "double_step"),
        ({"superpixels": 196}, "SuperpixelConfig"),
        ({"superpixels": None}, "SuperpixelConfig"),
        ({"mlp_ratio": 0}, "mlp_ratio"),
        ({"mlp_ratio": -4.0}, "mlp_ratio"),
        ({"mlp_ratio": 0.01}, "mlp_ratio"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio"),
        ({"mlp_ratio": float("inf")}, "mlp_ratio"),
        ({"mlp_ratio": "4"}, "mlp_ratio"),
        ({"kappa": 0.0}, "kappa"),
        ({"kappa": -1.0}, "kappa"),
        ({"kappa": 40.5}, "kappa"),
        ({"kappa": "5"}, "kappa"),
        ({"num_classes": "10"}, "num_classes"),
        ({"num_classes": 2.0}, "num_classes"),
        ({"num_classes": True}, "num_classes"),
        ({"drop_path": "0.1"}, "drop_path"),
        ({"mean": (0.5, "0.5", 0.5)}, "mean"),
        ({"std": (0.2, float("nan"), 0.2)}, "std"),
        ({"mean": 0.5}, "mean"),
        ({"depths": 3}, "depths"),
        ({"num_clusters": "64"}, "num_clusters"),
        ({"in_chans": 4}, "4 channels"),
        ({"pool_before_proj": 1}, "pool_before_proj"),
    ],
)
def test_config_rejects_bad_values(values, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **values)


@pytest.mark.parametrize(
    ("make", "values", "message"),
    [
        (CastSegConfig, {"stage": "training"}, "stage .*'training'"),
        (CastSegConfig, {"head": "mlp"}, "head .*'mlp'"),
        (CastSegConfig, {"head": "projector"}, "num_classes=0 to go with"),
        (CastSegConfig, {"head": "projector", "num_classes": 0, "stage": "encoder"}, "stage with a head"),
        (CastSegConfig, {"projector_dims": ()}, "projector_dims"),
        (CastSegConfig, {"projector_dims": 256}, "projector_dims"),
        (CastSegConfig, {"projector_dims": (8, 0)}, "projector_dims"),
        (CastSegConfig, {"fusion_dropout": 1.0}, "fusion_dropout"),
        (CastSegConfig, {"pos_embed_size": 100}, "pos_embed_size"),
        (CastSegConfig, {"pos_embed_size": -8}, "pos_embed_size"),
        (CastSegConfig, {"pos_embed_size": 224, "pos_embed": "learned"}, "pos_embed_size"),
        (CastSegmenterConfig, {"decoder": "mask"}, "decoder .*'mask'"),
        (CastSegmenterConfig, {"num_classes": 0}, "num_classes"),
        (CastSegmenterConfig, {"stage": "pretrain"}, "stage"),
        (CastSegmenterConfig, {"decoder_depth": 0}, "decoder_depth"),
        (CastSegmenterConfig, {"decoder_heads": -1}, "decoder_heads"),
        (CastSegmenterConfig, {"decoder_dropout": "0"}, "decoder_dropout"),
        (CastSegmenterConfig, {"encoder_classes": -1}, "encoder_classes"),
        (ViTConfig, {"depth": 0}, "depth"),
        (ViTConfig, {"img_size": 232}, "multiple of 16"),
    ],
)
def test_configs_of_the_other_variants_reject_bad_values(make, values, message):
    with pytest.raises(ValueError, match=message):
        make(**values)


@pytest.mark.parametrize(
    "values",
    [{"bins": 40}, {"bins": 1}, {"quality": "fast"}]
    + [
        {"order": "sequential"} | values
        for values in ({"prior": 0}, {"prior": 5}, {"iterations": 0}, {"num_levels": 4})
    ],
)
def test_superpixels_take_what_seeds_takes(values):
    settings = SuperpixelConfig(num_superpixels=16, **values)
    seeds(torch.zeros(1, 64, 64, 3, dtype=torch.uint8), **dataclasses.asdict(settings))


def test_kappa_up_to_40():
    assert dataclasses.replace(CONFIG, kappa=40).kappa == 40


def test_the_order_of_projection_and_average_is_recorded():
    assert CONFIG.pool_before_proj
    published = dataclasses.replace(CONFIG, pool_before_proj=False)
    assert published.to_dict()["pool_before_proj"] is False
    assert CastConfig.from_dict(published.to_dict()) == published
    assert not create_model("cast_mini", depths=(1,), num_clusters=(4,), pool_before_proj=False).config.pool_before_proj


def test_published_dropouts():
    with torch.device("meta"):
        model = create_model("cast_deit_small")
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.1] * 4
    assert model.config.drop_path == 0.0
    with torch.device("meta"):
        dense, decoder = create_model("cast_seg_small"), create_model("cast_segmenter_small")
    assert dense.fusion.dropout.p == 0.2
    assert [m.p for m in dense.modules() if isinstance(m, nn.Dropout)] == [0.1] * 4 + [0.2]
    assert {m.p for m in decoder.decoder.modules() if isinstance(m, nn.Dropout)} == {0.1}
    assert [block.attn.num_heads for block in decoder.decoder.blocks] == [6, 6]
