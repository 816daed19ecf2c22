"""Names of the published weights: there, back, and what must be refused."""

import pytest
import torch

from cast.models import Cast, CastConfig
from cast.models.official import from_official, load_official, official_names, to_official

DEPTHS = (2, 1)


def make_model(**options):
    torch.manual_seed(0)
    return Cast(
        CastConfig(img_size=32, embed_dim=24, depths=DEPTHS, num_heads=3, num_clusters=(4, 2), num_classes=5, **options)
    )


@pytest.fixture(params=["sincos", "learned"])
def model(request):
    return make_model(pos_embed=request.param)


def test_every_tensor_has_a_published_name_and_comes_back(model):
    published = to_official(model)
    ours = from_official(published)
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
    assert official_names(ours, (3, 3, 3, 2)) == published


@pytest.mark.parametrize("name", ["blocks.0.norm1.weight", "stages.4.pool.bias", "stages.0.blocks.3.norm1.bias", "hea"])
def test_names_we_do_not_have(name):
    with pytest.raises(KeyError):
        official_names(name, (3, 3, 3, 2))


def test_frozen_tables_are_exported_in_the_sincos_family_alone():
    published = to_official(make_model())
    assert published["pos_embed"].shape == (1, 16, 24)
    assert published["pe_token"].shape == (1, 1, 24)
    assert not published["pe_token"].any()
    learned = to_official(make_model(pos_embed="learned"))
    assert learned["pos_embed"].shape == (1, 17, 24)
    assert "pe_token" not in learned


def randomised(model):
    torch.manual_seed(1)
    frozen = {"pos_embed", "pe_token"} if model.config.pos_embed == "sincos" else set()
    out = {}
    for name, value in to_official(model).items():
        alias = next((out[n] for n in official_aliases(name, model) if n in out), None)
        out[name] = value if name in frozen else alias if alias is not None else torch.rand(value.shape).to(value.dtype)
    return out


def official_aliases(name, model):
    for ours in model.state_dict():
        names = official_names(ours, model.config.depths)
        if name in names:
            return names
    return ()


def test_loading_takes_every_value(model):
    published = randomised(model)
    load_official(model, published)
    for name, value in to_official(model).items():
        assert torch.equal(value, published[name]), name


def test_loading_into_float64_widens(model):
    published = randomised(model)
    model.double()
    load_official(model, published)
    assert model.head.weight.dtype == torch.float64
    assert torch.equal(model.head.weight, published["head.weight"].double())


def test_either_alias_is_enough(model):
    published = randomised(model)
    load_official(model, {n: v for n, v in published.items() if not n.startswith("blocks.")})
    load_official(model, {n: v for n, v in published.items() if not n.startswith(("blocks1.", "blocks2."))})
    torch.testing.assert_close(model.stages[1].blocks[0].attn.qkv.weight.data, published["blocks.2.attn.qkv.weight"])


def test_depths_are_read_from_the_stages():
    published = to_official(make_model())
    flat_only = {n: v for n, v in published.items() if not n.startswith(("blocks1.", "blocks2."))}
    assert from_official(flat_only, DEPTHS).keys() == from_official(published).keys()
    with pytest.raises(ValueError, match="depths"):
        from_official(flat_only)


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
    sincos, learned = make_model(), make_model(pos_embed="learned")
    with pytest.raises(ValueError, match="have sincos positions"):
        load_official(learned, to_official(sincos))
    with pytest.raises(ValueError, match="have learned positions"):
        load_official(sincos, to_official(learned))


def test_without_a_classifier():
    state = {n: v for n, v in to_official(make_model()).items() if not n.startswith("head.")}
    bare = make_model()
    bare.reset_classifier(0)
    load_official(bare, state)
    with pytest.raises(ValueError, match=r"missing: head\.weight, head\.bias"):
        load_official(make_model(), state)


def test_a_table_of_another_grid_is_verified_and_left_out():
    state = to_official(Cast(CastConfig(img_size=64, embed_dim=24, depths=DEPTHS, num_heads=3, num_clusters=(4, 2),
                                        num_classes=5)))  # fmt: skip
    model = make_model()
    load_official(model, state)
    assert model.pos_embed.shape == (1, 16, 24)
