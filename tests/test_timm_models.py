import dataclasses
import warnings

import processes
import pytest
import timm
import torch
from timm.data import create_transform, resolve_model_data_config

import cast
from cast.models.registry import CONFIGS
from cast.timm_models import register_timm

SMALL = {"img_size": 64, "num_classes": 5, "num_clusters": (16, 8, 4, 2), "superpixels": {"num_superpixels": 25}}


@pytest.fixture(autouse=True)
def registered():
    register_timm()


def test_timm_lists_every_model_once():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # timm warns where a name is registered twice
        assert register_timm() == register_timm() == cast.list_models()
    assert set(timm.list_models(module="timm_models")) == set(cast.list_models())
    assert set(timm.list_models("cast_*")) == set(cast.list_models("cast_*"))
    assert timm.list_pretrained("cast_*") == []


@pytest.mark.parametrize("name", cast.list_models())
def test_timm_builds_every_model(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    config = CONFIGS[name]
    assert model.config == config
    data = resolve_model_data_config(model)
    assert data["input_size"] == (3, config.img_size, config.img_size)
    assert (data["mean"], data["std"]) == (config.mean, config.std)
    assert data["interpolation"] == ("bicubic" if config.init == "deit" else "bilinear")
    assert model.pretrained_cfg["architecture"] == name
    assert model.pretrained_cfg["num_classes"] == config.num_classes
    assert model.pretrained_cfg.get("superpixels") == config.to_dict().get("superpixels")
    assert model.get_submodule(model.pretrained_cfg["classifier"]) is model.get_classifier()


@torch.no_grad()
def test_options_in_the_names_of_timm():
    torch.manual_seed(0)
    model = timm.create_model("cast_mini", **SMALL, drop_path_rate=0.2, drop_rate=0.0, global_pool="token").eval()
    torch.manual_seed(0)
    ours = cast.create_model("cast_mini", **SMALL, drop_path=0.2).eval()
    assert model.config == ours.config
    assert model.config.drop_path == 0.2
    image = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(model(image), ours(image))
    assert model.pretrained_cfg["num_classes"] == 5
    assert resolve_model_data_config(model)["input_size"] == (3, 64, 64)
    assert timm.create_model("cast_mini", img_size=(96, 96)).config.img_size == 96
    half = timm.create_model("cast_mini", **SMALL, dtype=torch.bfloat16, device="cpu")
    assert half.cls_token.dtype == torch.bfloat16
    assert half.image_mean.dtype == torch.float32


@torch.no_grad()
def test_features_only_gives_maps_as_timm_does():
    model = timm.create_model("cast_mini", **SMALL, features_only=True, out_indices=(0, 2)).eval()
    assert [f.shape for f in model(torch.randn(1, 3, 64, 64))] == [(1, 192, 8, 8)] * 2
    assert model.feature_info.channels() == [192, 192]
    assert resolve_model_data_config(model)["input_size"] == (3, 64, 64)
    levels = timm.create_model("cast_mini", **SMALL, features_only=True, output_fmt="levels").eval()
    assert [f.tokens.shape[1] for f in levels(torch.randn(1, 3, 64, 64))][1:] == [16, 8, 4]


@torch.no_grad()
def test_other_channels():
    model = timm.create_model("cast_mini", **SMALL, in_chans=2).eval()
    assert model.config.mean == pytest.approx((0.449, 0.449), abs=1e-9)
    labels = torch.arange(25).view(5, 5).repeat_interleave(13, 0).repeat_interleave(13, 1)[None, :64, :64]
    assert model(torch.randn(1, 2, 64, 64), labels, 25).shape == (1, 5)
    assert resolve_model_data_config(model)["input_size"] == (2, 64, 64)


def test_data_settings_of_the_caller_win():
    overlay = {"mean": (0.5, 0.5, 0.5), "crop_pct": 1.0}
    model = timm.create_model("cast_mini", **SMALL, pretrained_cfg_overlay=overlay)
    assert model.config.mean == (0.5, 0.5, 0.5)
    assert model.image_mean.flatten().tolist() == [0.5, 0.5, 0.5]
    data = resolve_model_data_config(model)
    assert (data["mean"], data["crop_pct"]) == ((0.5, 0.5, 0.5), 1.0)
    model = timm.create_model("cast_mini", **SMALL, mean=(0.4, 0.4, 0.4))
    assert resolve_model_data_config(model)["mean"] == (0.4, 0.4, 0.4)


def test_transforms_fit_the_model():
    model = timm.create_model("cast_mini")
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    shown = repr(transform)
    assert "size=256" in shown
    assert "bilinear" in shown


def test_weights_load_from_a_file(tmp_path):
    model = timm.create_model("cast_mini", **SMALL)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    other = timm.create_model("cast_mini", **SMALL, checkpoint_path=str(tmp_path / "weights.pth"))
    assert torch.equal(other.head.weight, model.head.weight)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pretrained": True}, ValueError, "no weights to fetch for cast_mini"),
        ({"drop_rate": 0.1}, ValueError, "drop_rate=0.0"),
        ({"global_pool": "avg"}, ValueError, "global_pool='token'"),
        ({"img_size": (64, 32)}, ValueError, "square img_size"),
        ({"patch_size": 16}, TypeError, "patch_size"),
    ],
)
def test_refuses_what_there_is_not(options, error, message):
    with pytest.raises(error, match=message):
        timm.create_model("cast_mini", **options)


def test_refuses_to_replace_a_model_of_others(monkeypatch):
    monkeypatch.setitem(CONFIGS, "resnet18", dataclasses.replace(CONFIGS["cast_mini"]))
    entrypoint = timm.models.model_entrypoint("resnet18")
    with pytest.raises(ValueError, match="another model named 'resnet18'"):
        register_timm()
    assert timm.models.model_entrypoint("resnet18") is entrypoint


@pytest.mark.parametrize("broken", ["raise RuntimeError('operator torchvision::nms does not exist')", None])
def test_says_why_timm_does_not_import(tmp_path, broken):
    """A torchvision built for another torch raises RuntimeError from inside ``import timm``."""
    code = """
import sys
assert "timm" not in sys.modules
import cast, torch
"""
    if broken is None:
        code += "sys.modules['timm'] = None"
    else:
        (tmp_path / "timm.py").write_text(broken)
        code += f"sys.path.insert(0, {str(tmp_path)!r})"
    code += """
for call in (cast.register_timm, lambda: cast.patch_timm(torch.nn.Linear(1, 1), {0: 4})):
    try:
        call()
    except ImportError as error:
        print(error)
"""
    run = processes.run(exec, code, {}, folder=tmp_path)
    assert run.returncode == 0, run.stderr
    shown = run.stdout.splitlines()
    assert len(shown) == 2
    for line in shown:
        assert "cast-kernels[timm]" in line
        assert broken is None or "RuntimeError: operator torchvision::nms does not exist" in line
