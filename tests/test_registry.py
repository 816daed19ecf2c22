"""Models by name, and the settings they are built from."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from cast import CastConfig, SuperpixelConfig, create_model, list_models
from cast_kernels import seeds

CONFIG = CastConfig(embed_dim=48, depths=(1, 2, 1), num_clusters=(16, 8, 4))


def test_model_names():
    assert list_models() == sorted(list_models())
    assert set(list_models("cast_[!d]*")) == {
        "cast_mini",
        "cast_small",
        "cast_small_deep",
        "cast_base",
        "cast_base_deep",
    }
    assert len(list_models("cast_deit_*")) == 4


@pytest.mark.parametrize("name", list_models())
def test_settings_of_the_families(name):
    with torch.device("meta"):
        config = create_model(name).config
    deit = "deit" in name
    assert (config.superpixels.bins, config.superpixels.iterations) == ((5, 15) if deit else (15, 20))
    assert (config.pos_embed, config.init) == (("learned", "deit") if deit else ("sincos", "moco"))
    assert config.depths == ((6, 3, 3, 3) if "deep" in name else (3, 3, 3, 2))
    assert config.embed_dim == {"mini": 192, "small": 384, "base": 768}[name.removeprefix("cast_deit_").removeprefix(
        "cast_").removesuffix("_deep")]  # fmt: skip
    assert config.num_heads == 12
    assert config.num_clusters == (64, 32, 16, 8)


@pytest.mark.parametrize(
    ("name", "total", "trainable"),
    [("cast_small", 28.34, 26.26), ("cast_small_deep", 35.44, None), ("cast_base", 111.80, 104.10),
     ("cast_base_deep", 140.15, None)],
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
    assert model.config.superpixels == SuperpixelConfig(bins=7, iterations=15)
    with pytest.raises(ValueError, match=r"cast_tiny.*cast_small"):
        create_model("cast_tiny")
    with pytest.raises(TypeError, match="depth"):
        create_model("cast_small", depth=3)


def test_config_survives_json():
    config = dataclasses.replace(CONFIG, drop_path=0.1, mean=(0.5, 0.4, 0.3))
    assert config.to_dict()["kind"] == "cast"
    assert CastConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert CastConfig.from_dict({}) == CastConfig()
    with pytest.raises(ValueError, match="expected kind to be one of .*cast.*, got 'resnet'"):
        CastConfig.from_dict({"kind": "resnet"})
    with pytest.raises(ValueError, match="unknown CastConfig values: colour"):
        CastConfig.from_dict({"colour": 1})
    with pytest.raises(ValueError, match="unknown SuperpixelConfig values: size"):
        CastConfig.from_dict({"superpixels": {"size": 1}})


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
        ({"superpixels": {"prior": 6}}, "prior"),
        ({"superpixels": {"prior": -1}}, "prior"),
        ({"superpixels": {"order": "random"}}, "random"),
        ({"superpixels": {"iterations": -1}}, "iterations"),
        ({"superpixels": {"num_levels": 0}}, "num_levels"),
        ({"superpixels": {"num_superpixels": "196"}}, "num_superpixels"),
        ({"superpixels": {"double_step": 1}}, "double_step"),
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
    "values", [{"bins": 40}, {"bins": 1}, {"prior": 0}, {"prior": 5}, {"iterations": 0}, {"num_levels": 4}]
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
