"""Published checkpoints in every layout: the model that is found, its weights, the report, and what is refused."""

import argparse
import dataclasses
import warnings
import zipfile

import pytest
import torch
from official_files import deit_file, moco_file, prefixed, probe_file, segmenter_file, spml_file
from safetensors.torch import save_file
from small_model import grid_labels

import cast
from cast.models import CastConfig, CastSegConfig, CastSegmenterConfig, SuperpixelConfig, ViTConfig, build_model
from cast.models.official import to_official
from cast.models.official_config import infer_config, registered_name
from cast.models.registry import CONFIGS

SMALL = {"embed_dim": 24, "num_heads": 12, "num_classes": 5}
POOLED = {**SMALL, "depths": (1, 2, 1, 1)}
LEARNED = {"pos_embed": "learned", "init": "deit", "superpixels": SuperpixelConfig(16, bins=5).as_published()}
MOCO = SuperpixelConfig(16).as_published()
SEG = SuperpixelConfig(16, bins=5).as_published()
CLUSTERS = (320, 160, 80, 40)

# What each file is of, as the config that must be found: 64 pixels instead of 224 or 512, so a superpixel per 256.
FAMILIES = {
    "cast": CastConfig(**POOLED, img_size=64, superpixels=MOCO),
    "cast_deit": CastConfig(**POOLED, img_size=64, **LEARNED),
    "pretrain": CastSegConfig(
        **POOLED, img_size=64, superpixels=MOCO, stage="pretrain", num_clusters=(64, 32, 16, 8), pos_embed_size=0
    ),
    "voc": CastSegmenterConfig(**POOLED, img_size=64, superpixels=SEG, stage="segmentation", decoder="conv"),
    "voc_stretched": CastSegmenterConfig(
        **POOLED, img_size=256, superpixels=SuperpixelConfig(256, bins=5).as_published(), stage="segmentation",
        decoder="conv", pos_embed_size=224,
    ),
    "segmenter": CastSegmenterConfig(**POOLED, img_size=64, **LEARNED, encoder_classes=7, decoder_heads=4),
    "segmenter_linear": CastSegmenterConfig(**POOLED, img_size=64, **LEARNED, encoder_classes=7, decoder="linear"),
    "seg_deit": CastSegConfig(**POOLED, img_size=64, **LEARNED, stage="encoder"),
    "vit": ViTConfig(**SMALL, img_size=64, depth=3),
}  # fmt: skip


def make_model(family, **changes):
    torch.manual_seed(0)
    model = build_model(dataclasses.replace(FAMILIES[family], **changes))
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model.eval()


CASES = {
    "moco": ("cast", moco_file, "moco"),
    "moco coco": ("pretrain", moco_file, "moco"),
    "moco vit": ("vit", moco_file, "moco"),
    "probe": ("cast", probe_file, "probe"),
    "probe vit": ("vit", probe_file, "probe"),
    "deit": ("cast_deit", deit_file, "deit"),
    "deit dense": ("seg_deit", deit_file, "deit"),
    "spml": ("voc", spml_file, "spml"),
    "spml from pretraining": ("voc_stretched", spml_file, "spml"),
    "segmenter": ("segmenter", segmenter_file, "segmenter"),
    "segmenter linear": ("segmenter_linear", segmenter_file, "segmenter"),
    "plain": ("cast", dict, "state dict"),
    "wrapped": ("cast_deit", lambda state: prefixed(state, "_orig_mod.module."), "state dict"),
}


def outputs(model, image, labels):
    with torch.inference_mode():
        if model.config.kind == "vit":
            return model(image)
        model.set_granularity((16, 8, 4, 2))
        return model(image, labels, 64)


@pytest.mark.parametrize("case", CASES)
def test_every_layout(case, tmp_path):
    family, wrap, layout = CASES[case]
    model = make_model(family)
    path = tmp_path / "checkpoint_0099.pth.tar"
    torch.save(wrap(to_official(model)), path)
    settings = {"decoder_heads": 4} if family == "segmenter" else {}
    loaded, report = cast.load_official(path, **settings)
    expected = FAMILIES[family]
    if wrap is moco_file:
        expected = dataclasses.replace(expected, num_classes=0)
        model.reset_classifier(0)
    assert loaded.config == expected
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    size = loaded.config.img_size
    image, labels = torch.randn(2, 3, size, size), grid_labels(2, size, size, size // 8)
    assert torch.equal(outputs(loaded, image, labels), outputs(model, image, labels))
    assert report.layout == layout
    assert report.model == loaded.config.kind
    assert report.file == str(path)
    assert ("optimizer" in report.left) == (wrap in (moco_file, probe_file, deit_file, segmenter_file))
    text = str(report)
    assert all(name in text for name in report.left)


def test_the_settings_of_the_family(tmp_path):
    for family, bins, iterations in (("cast", 15, 20), ("cast_deit", 5, 15), ("segmenter_linear", 5, 15)):
        wrap = segmenter_file if "segmenter" in family else dict
        torch.save(wrap(to_official(make_model(family))), tmp_path / "w.pth")
        config = cast.load_official(tmp_path / "w.pth").model.config
        settings = config.superpixels
        assert (settings.bins, settings.iterations, settings.order) == (bins, iterations, "sequential")
        assert config.mean == (0.485, 0.456, 0.406)


def test_both_encoders_of_pretraining(tmp_path):
    model = make_model("cast", num_classes=0)
    torch.save(moco_file(to_official(model)), tmp_path / "w.pth")
    base, report = cast.load_official(tmp_path / "w.pth")
    assert torch.equal(base.norm.weight, model.norm.weight)
    assert {"momentum_encoder", "predictor", "base_encoder.head", "optimizer", "scaler", "epoch"} <= set(report.left)
    assert "projector" in report.left["base_encoder.head"]
    momentum, report = cast.load_official(tmp_path / "w.pth", encoder="momentum")
    assert torch.equal(momentum.norm.weight, model.norm.weight + 1)
    assert report.used == "state_dict: momentum_encoder"
    assert "base_encoder" in report.left


def test_both_weights_of_deit(tmp_path):
    model = make_model("cast_deit")
    torch.save(deit_file(to_official(model)), tmp_path / "w.pth")
    raw, report = cast.load_official(tmp_path / "w.pth")
    assert torch.equal(raw.norm.weight, model.norm.weight)
    assert {"model_ema", "args", "optimizer"} <= set(report.left)
    average, report = cast.load_official(tmp_path / "w.pth", weights="ema")
    assert torch.equal(average.norm.weight, model.norm.weight + 1)
    assert {"model", "args"} <= set(report.left)


def test_the_projector_of_dense_pretraining(tmp_path):
    """With the options of segment retrieval, which applies it at another size."""
    retrieval = CastSegConfig(
        **{**POOLED, "num_classes": 0}, pos_embed_size=224, head="projector", projector_dims=(8, 8, 4)
    )
    retrieval = dataclasses.replace(retrieval, superpixels=retrieval.superpixels.as_published())
    torch.manual_seed(0)
    model = build_model(retrieval)
    state = {n: v for n, v in to_official(model).items() if n != "pos_embed"}
    state["pos_embed"] = to_official(make_model("pretrain"))["pos_embed"]
    torch.save({"state_dict": prefixed(state, "module.base_encoder.")}, tmp_path / "w.pth")
    loaded, report = cast.load_official(tmp_path / "w.pth", projector=True)
    assert loaded.config == retrieval
    assert report.left == {}
    assert torch.equal(loaded.head[3].weight, model.head[3].weight)
    without, report = cast.load_official(tmp_path / "w.pth")
    assert without.config.stage == "pretrain"
    assert "base_encoder.head" in report.left


def test_an_encoder_of_spml_alone(tmp_path):
    model = make_model("voc")
    content = spml_file(to_official(model))
    del content["prediction_model"]
    torch.save(content, tmp_path / "w.pth")
    loaded, report = cast.load_official(tmp_path / "w.pth", stage="segmentation")
    assert loaded.config.kind == "cast_seg"
    assert report.used == "embedding_model"
    assert torch.equal(loaded.fusion.proj.weight, model.fusion.proj.weight)


@pytest.mark.parametrize(("name", "mean"), [("vit", (0.5, 0.5, 0.5)), ("deit", (0.485, 0.456, 0.406)), (None, None)])
def test_the_settings_beside_segmenter(tmp_path, name, mean):
    torch.save(segmenter_file(to_official(make_model("segmenter_linear"))), tmp_path / "checkpoint.pth")
    if name:
        text = f"algorithm_kwargs:\n  batch_size: 8\ndataset_kwargs:\n  normalization: {name}\nnet_kwargs:\n" \
               f"  backbone: deit_cast_small\n  normalization: {name}\n"  # fmt: skip
        (tmp_path / "variant.yml").write_text(text)
    model, report = cast.load_official(tmp_path / "checkpoint.pth")
    assert model.config.mean == (mean or (0.485, 0.456, 0.406))
    assert "variant.yml" in report.notes[0]
    assert cast.load_official(tmp_path / "checkpoint.pth", mean=(0.1, 0.2, 0.3)).model.config.mean == (0.1, 0.2, 0.3)
    (tmp_path / "variant.yml").write_text("normalization: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ValueError, match="normalization, vit or deit, in"):
        cast.load_official(tmp_path / "checkpoint.pth")


def test_settings_win(tmp_path):
    torch.save(to_official(make_model("cast")), tmp_path / "w.pth")
    options = {"num_clusters": (16, 8, 4, 2), "superpixels": {"num_superpixels": 40}, "num_heads": 6}
    config = cast.load_official(tmp_path / "w.pth", **options).model.config
    assert config.num_clusters == (16, 8, 4, 2)
    assert config.superpixels == SuperpixelConfig(40).as_published()
    assert config.num_heads == 6
    config = cast.load_official(tmp_path / "w.pth", superpixels={"order": "parallel", "quality": "fast"}).model.config
    assert config.superpixels == SuperpixelConfig(16, quality="fast")  # the number still follows the image size
    torch.save(to_official(make_model("vit")), tmp_path / "vit.pth")
    with pytest.raises(TypeError, match="superpixels"):
        cast.load_official(tmp_path / "vit.pth", superpixels={"bins": 5})
    with pytest.raises(TypeError, match="colour"):
        cast.load_official(tmp_path / "w.pth", colour=1)
    with pytest.raises(ValueError, match="does not fit"):
        cast.load_official(tmp_path / "w.pth", num_classes=6)


@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "cast_mini" and not n.endswith("_retrieval")])
def test_every_registered_model_is_recognised(name):
    """From the names and shapes of its published weights alone, at full size; nothing of it is computed."""
    config = CONFIGS[name]
    with torch.device("meta"):
        state = to_official(build_model(config))
    state = {n: torch.empty(v.shape, device="meta") for n, v in state.items()}
    table = next((n for n in state if n.endswith("pos_embed")), None)
    if getattr(config, "pos_embed_size", 0):  # the one tensor whose values are looked at
        state[table] = torch.zeros(state[table].shape)
    found = infer_config(state)
    superpixels = {} if isinstance(config, ViTConfig) else {
        "superpixels": config.superpixels.as_published()}  # fmt: skip
    assert found == dataclasses.replace(config, **superpixels)
    assert registered_name(found) == name
    assert registered_name(dataclasses.replace(found, num_classes=max(1, found.num_classes) + 1)) == name
    assert registered_name(dataclasses.replace(found, embed_dim=96)) is None


def test_saved_again_it_keeps_its_superpixels(tmp_path):
    torch.save(deit_file(to_official(make_model("cast_deit"))), tmp_path / "w.pth")
    model, _ = cast.load_official(tmp_path / "w.pth")
    for name, saved in (("plain", model), ("fused", model.fuse())):
        saved.save_pretrained(tmp_path / name)
        again = cast.from_pretrained(tmp_path / name)
        assert again.config == saved.config
        assert (again.config.superpixels.order, again.config.superpixels.iterations) == ("sequential", 15)


def test_safetensors(tmp_path):
    model = make_model("cast")
    save_file({n: v.clone() for n, v in to_official(model).items()}, tmp_path / "w.safetensors")
    assert torch.equal(cast.load_official(tmp_path / "w.safetensors").model.head.bias, model.head.bias)


# --- what is refused


def edit(state, **changes):
    state = dict(state)
    for key, value in changes.items():
        name = key.replace("__", ".")
        if value is None:
            del state[name]
        else:
            state[name] = value
    return state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "momentum"}, "no momentum encoder"),
        ({"encoder": "both"}, "'base' or 'momentum', got 'both'"),
        ({"weights": "ema"}, "no moving average"),
        ({"weights": "best"}, "'model' or 'ema', got 'best'"),
        ({"projector": True}, "no projector"),
    ],
)
def test_what_the_file_does_not_have(tmp_path, options, message):
    torch.save(to_official(make_model("cast")), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message):
        cast.load_official(tmp_path / "w.pth", **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cls_token": None}, r"no cls_token \[1, N, C\]"),
        ({"cls_token": torch.zeros(1, 1, 48)}, "does not fit"),
        ({"pos_embed": torch.zeros(1, 7, 24)}, "square grid"),
        ({"norm__weight": None}, "missing: norm.weight"),
        ({"norm__scale": torch.zeros(24)}, "unknown: norm.scale"),
        ({"evil__weight": torch.zeros(24)}, "not names of"),
        ({"head__weight": torch.tensor(1.0)}, r"expected head\.weight to tell"),
        ({"head__weight": torch.zeros(0, 24)}, r"expected head\.weight to tell"),
        ({"patch_embed__proj__0__weight": torch.zeros(4, 3, 3, 3)}, "does not fit"),
        ({"blocks1__0__mlp__fc1__weight": None}, "mlp.fc1.weight"),
        ({"blocks9__0__norm1__weight": torch.zeros(24)}, "blocks1.N, blocks2.N"),
        ({"norm__weight": torch.tensor([float("nan")] * 24)}, r"norm\.weight has values that are NaN"),
        ({"norm__weight": torch.zeros(1).expand(24)}, r"norm\.weight has shape \(24,\), but not as many values"),
        ({"head__bias": torch.zeros(1).expand(10**12)}, r"head\.bias has shape"),
    ],
)
def test_weights_of_nothing_published(tmp_path, changes, message):
    torch.save(edit(to_official(make_model("cast")), **changes), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message) as error:
        cast.load_official(tmp_path / "w.pth")
    assert str(tmp_path / "w.pth") in str(error.value)


def test_other_models(tmp_path):
    torch.save({"cls_token": torch.zeros(1, 1, 24), "pos_embed": torch.zeros(1, 5, 24),
                "patch_embed.proj.weight": torch.zeros(24, 3, 16, 16)}, tmp_path / "w.pth")  # fmt: skip
    with pytest.raises(ValueError, match="load them with timm"):
        cast.load_official(tmp_path / "w.pth")
    torch.save(make_model("cast").state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"this package's own names; load them with cast\.from_pretrained"):
        cast.load_official(tmp_path / "w.pth")
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="expected weights of a published model"):
        cast.load_official(tmp_path / "w.pth")
    with pytest.raises(ValueError, match="no such file"):
        cast.load_official(tmp_path / "nothing.pth")


class Evil:
    def __reduce__(self):
        return (open, (str(Evil.target), "w"))


@pytest.mark.parametrize("place", ["beside", "state", "args", "whole"])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_files_that_would_run_code(tmp_path, place, name):
    Evil.target = tmp_path / "executed"
    state = to_official(make_model("cast"))
    content = {
        "beside": {"model": state, "extra": Evil()},
        "state": {"model": state | {"x": Evil()}},
        "args": {"model": state, "args": argparse.Namespace(f=Evil())},
        "whole": Evil(),
    }[place]
    torch.save(content, tmp_path / name)
    with pytest.raises(ValueError, match=r"not safe to read|cannot read weights"):
        cast.load_official(tmp_path / name)
    assert not Evil.target.exists()


def test_truncated_and_compressed_files(tmp_path):
    torch.save(to_official(make_model("cast")), tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    for part in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pth").write_bytes(whole[:part])
        with pytest.raises(ValueError, match=r"cut\.pth"):
            cast.load_official(tmp_path / "cut.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as source, zipfile.ZipFile(tmp_path / "z.pth", "w") as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed"):
        cast.load_official(tmp_path / "z.pth")


def test_loading_says_nothing(tmp_path):
    torch.save(deit_file(to_official(make_model("cast_deit"))), tmp_path / "w.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cast.load_official(tmp_path / "w.pth")
