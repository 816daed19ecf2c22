import copy
import pickle

import pytest
import timm
import torch
from small_vit import make_image, make_vit, wake_pools
from timm.models._features import FeatureGetterNet
from timm.optim import param_groups_layer_decay
from torch import nn

import cast
from cast import patch_timm, unpatch_timm


def test_names_of_parameters_stay_and_pools_are_added():
    vit = make_vit()
    names = set(vit.state_dict())
    weights = copy.deepcopy(vit.state_dict())
    assert patch_timm(vit, {0: 8, 2: 4}) is vit
    added = set(vit.state_dict()) - names
    assert set(vit.state_dict()) > names
    assert {name.split(".")[0] for name in added} == {"graph_pools"}
    assert {name.split(".")[1] for name in added} == {"0", "2"}
    assert [pool.num_clusters for pool in vit.graph_pools.values()] == [8, 4]
    missing, unexpected = vit.load_state_dict(weights, strict=False)
    assert (set(missing), unexpected) == (added, [])
    assert isinstance(vit, timm.models.VisionTransformer)


def test_unpatching_gives_the_model_back():
    vit = make_vit("distilled")
    image, before, kind = make_image(vit), set(vars(vit)), type(vit)
    expected = vit(image)
    unpatch_timm(patch_timm(vit, {1: 5}, superpixels=10))
    assert type(vit) is kind
    assert set(vars(vit)) == before
    assert torch.equal(vit(image), expected)
    patch_timm(vit, {2: 3})
    with pytest.raises(ValueError, match="patched already"):
        patch_timm(vit, {1: 4})
    with pytest.raises(ValueError, match="Linear"):
        unpatch_timm(nn.Linear(1, 1))


@pytest.mark.parametrize("family", ["plain", "dinov3"])
def test_copies_and_pickles(family):
    vit = wake_pools(patch_timm(make_vit(family), {0: 8, 2: 4}))
    image = make_image(vit)
    expected = vit(image)
    for other in (
        copy.deepcopy(vit),
        pickle.loads(pickle.dumps(vit)),
    ):
        assert type(other) is type(vit)
        assert other.graph_pools is not vit.graph_pools
        assert torch.equal(other(image), expected)


def test_follows_the_model_in_mode_device_and_dtype():
    vit = patch_timm(make_vit(dtype=torch.float64).train(), {0: 3})
    assert vit.graph_pools["0"].training
    assert vit.graph_pools["0"].fc1.weight.dtype == torch.float64
    assert patch_timm(make_vit().to("meta"), {0: 3}).graph_pools["0"].bias.device.type == "meta"
    assert vit.graph_pools["0"].attn.num_heads == 4
    assert patch_timm(make_vit(), {0: 3}, num_heads=2, normalize=True).graph_pools["0"].attn.num_heads == 2


@torch.no_grad()
def test_features_of_timm_wrap_a_patched_model():
    vit = patch_timm(make_vit(), {0: 8, 1: 4, 3: 2})
    image = make_image(vit)
    expected = vit.forward_intermediates(image, [0, 2], intermediates_only=True)
    net = FeatureGetterNet(vit, out_indices=(0, 2))
    assert list(vit.graph_pools) == ["0", "1"]
    assert len(vit.blocks) == 3
    for found, wanted in zip(net(image), expected, strict=True):
        assert torch.equal(found, wanted)
    assert len(vit.get_intermediate_layers(image, n=2, reshape=True)) == 2
    vit.prune_intermediate_layers([-3])
    assert list(vit.graph_pools) == ["0"]
    pooled_last = patch_timm(make_vit(), {3: 8})
    pooled_last.prune_intermediate_layers([2])
    with pytest.raises(ValueError, match="no pool is left"):
        pooled_last.hierarchy(image)


def test_layer_decay_puts_a_pool_with_its_block():
    vit = patch_timm(make_vit(), {1: 4})
    groups = param_groups_layer_decay(vit, weight_decay=0.1, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scale) == len(list(vit.parameters()))
    assert scale[id(vit.graph_pools["1"].fc1.weight)] == scale[id(vit.blocks[1].mlp.fc1.weight)]
    assert scale[id(vit.graph_pools["1"].fc1.weight)] < scale[id(vit.blocks[2].mlp.fc1.weight)]


def test_reset_classifier_and_input_size():
    vit = patch_timm(make_vit(), {1: 4})
    vit.reset_classifier(3)
    vit.set_input_size((96, 64))
    assert vit(torch.randn(1, 3, 96, 64)).shape == (1, 3)
    assert vit.hierarchy(torch.randn(1, 3, 96, 64)).num_segments == (24, 4)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("beit_base_patch16_224", "bias per pair of grid positions"),
        ("swin_tiny_patch4_window7_224", "windows or strides"),
        ("samvit_base_patch16", "windows or strides"),
        ("naflexvit_base_patch16_gap", "unequal length"),
        ("resnet18", "not one that is known"),
    ],
)
def test_refuses_other_models_with_the_reason(name, reason):
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(ValueError, match=reason):
        patch_timm(model, {0: 4})


def test_refuses_what_its_forward_would_lose():
    class Other(timm.models.VisionTransformer):
        def forward_features(self, x):
            return super().forward_features(x)

    with torch.device("meta"):
        subclass, replaced = Other(depth=1), timm.models.VisionTransformer(depth=1)
        wrapped = timm.create_model("vit_tiny_patch16_224", features_only=True)
    replaced.forward = lambda x: x
    with pytest.raises(ValueError, match="Other replaces forward_features"):
        patch_timm(subclass, {0: 4})
    with pytest.raises(ValueError, match="replaces forward of"):
        patch_timm(replaced, {0: 4})
    with pytest.raises(ValueError, match="wrap it afterwards"):
        patch_timm(wrapped, {0: 4})
    with pytest.raises(ValueError, match="compile it afterwards"):
        patch_timm(torch.compile(make_vit()), {0: 4})
    with pytest.raises(TypeError, match="model of timm, got str"):
        patch_timm("vit_tiny_patch16_224", {0: 4})


@pytest.mark.parametrize(
    ("clusters", "options", "error", "message"),
    [
        ({}, {}, ValueError, "at least one"),
        ([3, 4], {}, TypeError, "mapping"),
        ({4: 8}, {}, ValueError, r"blocks in \[0, 4\)"),
        ({-1: 8}, {}, ValueError, r"blocks in \[0, 4\)"),
        ({0: 4, 2: 8}, {}, ValueError, "no more clusters"),
        ({0: 0}, {}, ValueError, "num_clusters"),
        ({0: 2.0}, {}, TypeError, "integer"),
        ({True: 2}, {}, TypeError, "integer"),
        ({0: 4}, {"num_heads": 5}, ValueError, "num_heads"),
        ({0: 4}, {"kappa": 0.0}, ValueError, "kappa"),
        ({0: 4}, {"superpixels": "many"}, TypeError, "SuperpixelConfig"),
        ({0: 4}, {"superpixels": 0}, ValueError, "superpixels"),
    ],
)
def test_refuses_bad_options_and_leaves_the_model(clusters, options, error, message):
    vit = make_vit()
    before = set(vars(vit))
    with pytest.raises(error, match=message):
        patch_timm(vit, clusters, **options)
    assert type(vit) is timm.models.VisionTransformer
    assert set(vars(vit)) == before
    assert not hasattr(vit, "graph_pools")


def test_names_are_in_the_package():
    assert cast.patch_timm is patch_timm
    assert "unpatch_timm" in cast.__all__
