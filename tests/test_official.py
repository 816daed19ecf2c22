"""Names of the published weights: there, back, and what must be refused."""

import dataclasses

import pytest
import torch

from cast.models import CastConfig, CastSegConfig, CastSegmenterConfig, ViTConfig, build_model
from cast.models.official import from_official, load_official, to_official
from cast.models.official_names import official_names, read_depths

DEPTHS = (2, 1)
SMALL = {"img_size": 32, "embed_dim": 24, "num_heads": 3, "num_classes": 5}
POOLED = {**SMALL, "depths": DEPTHS, "num_clusters": (4, 2)}
LEARNED = {"pos_embed": "learned", "init": "deit"}
FAMILIES = {
    "sincos": CastConfig(**POOLED),
    "learned": CastConfig(**POOLED, **LEARNED),
    "seg": CastSegConfig(**POOLED),
    "seg_stretched": CastSegConfig(**POOLED, pos_embed_size=16),
    "seg_pretrain": CastSegConfig(**POOLED, stage="pretrain"),
    "seg_retrieval": CastSegConfig(**{**POOLED, "num_classes": 0}, head="projector", projector_dims=(8, 8, 6)),
    "seg_deit": CastSegConfig(**POOLED, **LEARNED, stage="encoder"),
    "voc": CastSegmenterConfig(**POOLED, stage="segmentation", decoder="conv"),
    "segmenter": CastSegmenterConfig(**POOLED, **LEARNED, encoder_classes=7),
    "segmenter_linear": CastSegmenterConfig(**POOLED, **LEARNED, decoder="linear"),
    "vit": ViTConfig(**SMALL, depth=2),
}


def make_model(family="sincos", **changes):
    torch.manual_seed(0)
    return build_model(dataclasses.replace(FAMILIES[family], **changes))


@pytest.fixture(params=FAMILIES)
def model(request):
    return make_model(request.param)


def test_every_tensor_has_a_published_name_and_comes_back(model):
    published = to_official(model)
    ours = from_official(published, model.config)
    expected = model.state_dict()
    assert ours.keys() == expected.keys()
    assert all(ours[name].data_ptr() == expected[name].data_ptr() for name in expected)


@pytest.mark.parametrize(
    ("ours", "published"),
    [
        ("cls_token", ("cls_token",)),
        ("head.bias", ("head.bias",)),
        ("norm.weight", ("norm.weight",)),
        ("stem.layers.3.conv.weight", ("patch_embed.proj.9.weight",)),
        ("stem.layers.2.norm.running_var", ("patch_embed.proj.7.running_var",)),
        ("stem.proj.bias", ("patch_embed.proj.12.bias",)),
        ("stages.0.blocks.2.norm1.bias", ("blocks.2.norm1.bias", "blocks1.2.norm1.bias")),
        ("stages.1.blocks.0.attn.qkv.weight", ("blocks.3.attn.qkv.weight", "blocks2.3.attn.qkv.weight")),
        ("stages.3.blocks.1.mlp.fc2.weight", ("blocks.10.mlp.fc2.weight", "blocks4.10.mlp.fc2.weight")),
        ("stages.0.pool.bias", ("pool1.pool_block.centroid_fc.bias",)),
        ("stages.1.pool.norm.weight", ("pool2.pool_block.centroid_fc.norm.weight",)),
        ("stages.2.pool.attn.proj.bias", ("pool3.pool_block.centroid_fc.attn.proj.bias",)),
        ("stages.3.pool.norm1.weight", ("pool4.pool_block.fc1.0.weight",)),
        ("stages.3.pool.fc1.weight", ("pool4.pool_block.fc1.1.weight",)),
        ("stages.0.pool.norm2.bias", ("pool1.pool_block.fc2.0.bias",)),
        ("stages.0.pool.fc2.bias", ("pool1.pool_block.fc2.1.bias",)),
    ],
)
def test_published_names(ours, published):
    assert official_names(ours, CastConfig()) == published


@pytest.mark.parametrize(
    ("family", "ours", "published"),
    [
        ("seg", ("stages.0.blocks.1.norm1.bias"), ("blocks1.1.norm1.bias",)),
        ("seg", ("stages.1.blocks.0.mlp.fc2.bias"), ("blocks2.0.mlp.fc2.bias",)),
        ("seg", "fusion.norm.running_var", ("block_fusion.proj_blocks.0.norm.running_var",)),
        ("seg", "fusion.proj.weight", ("block_fusion.proj_blocks.2.weight",)),
        ("seg_retrieval", "head.4.weight", ("head.4.weight",)),
        ("seg_deit", "stages.1.blocks.0.norm1.bias", ("blocks.2.norm1.bias", "blocks2.2.norm1.bias")),
        ("voc", "cls_token", ("vit_backbone.cls_token",)),
        ("voc", "decoder.1.running_mean", ("semantic_classifier.1.running_mean",)),
        ("segmenter", "stages.1.blocks.0.norm1.bias", ("encoder.blocks.2.norm1.bias", "encoder.blocks2.2.norm1.bias")),
        ("segmenter", "decoder.blocks.1.attn.qkv.bias", ("decoder.blocks.1.attn.qkv.bias",)),
        ("segmenter_linear", "decoder.head.bias", ("decoder.head.bias",)),
        ("vit", "blocks.1.norm1.bias", ("blocks.1.norm1.bias",)),
    ],
)
def test_published_names_of_the_other_families(family, ours, published):
    assert official_names(ours, FAMILIES[family]) == published


@pytest.mark.parametrize("name", ["blocks.0.norm1.weight", "stages.4.pool.bias", "stages.0.blocks.3.norm1.bias", "hea"])
def test_names_we_do_not_have(name):
    with pytest.raises(KeyError):
        official_names(name, CastConfig())


def test_frozen_tables_are_exported_in_the_sincos_families_alone():
    published = to_official(make_model())
    assert published["pos_embed"].shape == (1, 16, 24)
    assert published["pe_token"].shape == (1, 1, 24)
    assert not published["pe_token"].any()
    learned = to_official(make_model("learned"))
    assert learned["pos_embed"].shape == (1, 17, 24)
    assert "pe_token" not in learned
    patches = to_official(make_model("vit"))
    assert patches["pos_embed"].shape == (1, 5, 24)
    assert not patches["pos_embed"][:, 0].any()
    assert "pe_token" not in patches
    assert to_official(make_model("voc"))["vit_backbone.pe_token"].shape == (1, 1, 24)


def randomised(model):
    torch.manual_seed(1)
    out = to_official(model)
    for name, value in model.state_dict().items():
        fresh = torch.rand(value.shape).to(value.dtype)
        out |= dict.fromkeys(official_names(name, model.config), fresh)
    return out


def test_loading_takes_every_value(model):
    published = randomised(model)
    load_official(model, published)
    for name, value in to_official(model).items():
        assert torch.equal(value, published[name]), name


def test_loading_into_float64_widens():
    model = make_model()
    published = randomised(model)
    model.double()
    load_official(model, published)
    assert model.head.weight.dtype == torch.float64
    assert torch.equal(model.head.weight, published["head.weight"].double())


@pytest.mark.parametrize("family", ["sincos", "learned", "seg_deit"])
def test_either_alias_is_enough(family):
    model = make_model(family)
    published = randomised(model)
    load_official(model, {n: v for n, v in published.items() if not n.startswith("blocks.")})
    load_official(model, {n: v for n, v in published.items() if not n.startswith(("blocks1.", "blocks2."))})
    torch.testing.assert_close(model.stages[1].blocks[0].attn.qkv.weight.data, published["blocks.2.attn.qkv.weight"])


@pytest.mark.parametrize("family", ["sincos", "learned", "seg", "voc", "segmenter"])
def test_depths_are_read_from_the_stages(family):
    published = to_official(make_model(family))
    assert read_depths(published) == DEPTHS
    with pytest.raises(ValueError, match="depths"):
        read_depths(name for name in published if "blocks1." not in name)


def edited(model, **changes):
    state = to_official(model)
    for key, value in changes.items():
        name = key.replace("__", ".")
        if value is None:
            del state[name]
        else:
            state[name] = value
    return state


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head__weight": None}, "missing: head.weight"),
        ({"pool2__pool_block__fc1__0__bias": None}, "missing: pool2.pool_block.fc1.0.bias"),
        ({"patch_embed__proj__12__bias": torch.zeros(7)}, r"patch_embed.proj.12.bias \(7,\) instead of \(24,\)"),
        ({"blocks2__2__norm1__bias": torch.ones(24)}, "should be the same tensor, but differ"),
        ({"module__head__weight": torch.zeros(5, 24)}, "not names of .*module.head.weight"),
        ({"blocks__3__norm1__bias": torch.zeros(24)}, "not names of .*blocks.3.norm1.bias"),
        ({"head__scale": torch.zeros(5)}, "unknown: head.scale"),
        ({"pe_token": torch.full((1, 1, 24), 0.1)}, "pe_token is not the published constant"),
        ({"pos_embed": torch.zeros(1, 16, 24)}, "pos_embed is not the published constant"),
        ({"pos_embed": torch.zeros(1, 15, 24)}, "square grid"),
        ({"pos_embed": torch.zeros(24)}, "square grid"),
        ({"pos_embed": torch.full((1, 16, 24), torch.nan)}, "pos_embed is not the published constant"),
    ],
)
def test_wrong_weights_are_refused_whole(changes, message):
    model = make_model()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    state = {n: v if v is changes.get(n.replace(".", "__")) else v * 1 for n, v in edited(model, **changes).items()}
    with pytest.raises(ValueError, match=message):
        load_official(model, state)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_the_families_do_not_mix():
    sincos, learned = make_model(), make_model("learned")
    with pytest.raises(ValueError, match="have sincos positions"):
        load_official(learned, to_official(sincos))
    with pytest.raises(ValueError, match="have learned positions"):
        load_official(sincos, to_official(learned))
    with pytest.raises(ValueError, match=r"not names of a published cast model with depths \(2, 1\): block_fusion"):
        load_official(learned, to_official(make_model("seg_deit")))
    with pytest.raises(ValueError, match="not names of a published cast_seg model"):
        load_official(make_model("seg"), to_official(sincos))
    with pytest.raises(ValueError, match=r"not names of a published vit model: .*blocks1"):
        load_official(make_model("vit"), {k: v for k, v in to_official(sincos).items() if k != "pos_embed"})


def test_without_a_classifier():
    state = {n: v for n, v in to_official(make_model()).items() if not n.startswith("head.")}
    bare = make_model()
    bare.reset_classifier(0)
    load_official(bare, state)
    with pytest.raises(ValueError, match=r"missing: head\.weight, head\.bias"):
        load_official(make_model(), state)


@pytest.mark.parametrize("family", ["sincos", "seg", "seg_stretched", "vit"])
def test_a_table_of_another_grid_is_verified_and_left_out(family):
    state = to_official(make_model(family, img_size=64, **({"pos_embed_size": 0} if "seg" in family else {})))
    model = make_model(family)
    table = model.pos_embed
    load_official(model, state)
    assert torch.equal(model.pos_embed, table)
    state["pos_embed"] = state["pos_embed"] + 0.1
    with pytest.raises(ValueError, match="not the published constant"):
        load_official(model, state)


def test_a_stretched_table_needs_the_setting_of_the_model():
    stretched, own = make_model("seg_stretched"), make_model("seg")
    assert not torch.allclose(stretched.pos_embed, own.pos_embed)
    with pytest.raises(ValueError, match="model has pos_embed_size=0, these weights may need 224"):
        load_official(own, to_official(stretched))
    with pytest.raises(ValueError, match="model has pos_embed_size=16, these weights may need 0"):
        load_official(stretched, to_official(own))


# --- weights of an earlier stage


@pytest.mark.parametrize(
    ("source", "target", "missing"),
    [
        ("seg_pretrain", "voc", {"decoder.0", "decoder.1", "decoder.3"}),
        ("seg_retrieval", "voc", {"decoder.0", "decoder.1", "decoder.3"}),
        ("seg_pretrain", "seg_retrieval", {f"head.{i}" for i in (0, 1, 3, 4, 6, 7)}),
        ("learned", "seg_deit", {"fusion.norm", "fusion.proj"}),
        ("learned", "segmenter_linear", {"fusion.norm", "fusion.proj", "decoder.head", "norm"}),
        ("seg_deit", "segmenter_linear", {"decoder.head"}),
    ],
)
def test_starting_from_an_earlier_stage(source, target, missing):
    published = randomised(make_model(source))
    if target == "segmenter_linear" and source == "learned":
        published = {k: v for k, v in published.items() if not k.startswith("norm.")}
    model = make_model(target)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"not names of|missing"):
        load_official(model, published)
    left = load_official(model, published, partial=True)
    assert {name.rpartition(".")[0] for name in left} == missing
    source_state = from_official(published, FAMILIES[source])
    for name, value in model.state_dict().items():
        expected = before[name] if name in left else source_state[name]
        assert torch.equal(value, expected), name


def test_partial_weights_still_have_to_fit():
    model = make_model("voc")
    with pytest.raises(ValueError, match="does not fit"):
        load_official(model, {"cls_token": torch.zeros(1, 1, 25)}, partial=True)
    with pytest.raises(ValueError, match="not names of"):
        load_official(model, {"cls_tokens": torch.zeros(1, 1, 24)}, partial=True)
    with pytest.raises(ValueError, match="missing"):
        load_official(model, {}, partial=True)
