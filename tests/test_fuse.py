"""`model.fuse()`: the same outputs without batch norms."""

import copy
import dataclasses
import pickle

import pytest
import torch
from small_model import grid_labels, photo
from torch import nn

from cast import create_model
from cast.models import build_model
from cast.models.fuse import fold_batch_norms
from cast.models.heads import Projector

SMALL = {"embed_dim": 48, "num_heads": 4, "num_classes": 5}
SEG = SMALL | {"img_size": 64, "depths": (1, 1), "num_clusters": (12, 6)}
MODELS = {
    "cast_small": SEG,
    "cast_seg_small": SEG | {"pos_embed_size": 0},
    "cast_seg_small_retrieval": SEG | {"num_classes": 0, "projector_dims": (20, 12), "pos_embed_size": 0},
    "cast_seg_small_voc": SEG | {"pos_embed_size": 0},
    "cast_seg_deit_small": SEG | {"num_classes": 0},
    "vit_conv_small": SMALL | {"img_size": 64, "depth": 2},
}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@pytest.fixture(params=MODELS)
def model(request):
    """With statistics far from those of fresh batch norms, so that each term of the folding counts."""
    model = create_model(request.param, **MODELS[request.param]).eval()
    for module in model.modules():
        if isinstance(module, BATCH_NORMS):
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.3, 3.0)
            if module.affine:
                nn.init.uniform_(module.weight, -1.5, 1.5)
                nn.init.normal_(module.bias, std=0.5)
    return model


def inputs(model):
    torch.manual_seed(1)  # the same photos at each call
    image = photo(2, 64, 64)
    return (image,) if "vit" in model.config.kind else (image, grid_labels(2, 64, 64), 16)


def batch_norms(model):
    return [m for m in model.modules() if isinstance(m, BATCH_NORMS)]


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_outputs_agree(model, dtype, tolerance):
    model = model.to(dtype)
    before = copy.deepcopy(model.state_dict())
    fused = model.fuse()
    assert batch_norms(model)
    assert not batch_norms(fused)
    expected, found = model(*inputs(model)), fused(*inputs(model))
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())
    for name, value in model.state_dict().items():  # the model itself stays
        assert torch.equal(value, before[name]), name


@torch.no_grad()
def test_a_fused_model_is_saved_and_loaded_as_such(model):
    fused = model.fuse()
    assert fused.config == dataclasses.replace(model.config, fused=True)
    other = build_model(type(fused.config).from_dict(fused.config.to_dict()))
    assert not other.training
    other.load_state_dict(fused.state_dict())
    assert torch.equal(other(*inputs(model)), fused(*inputs(model)))
    with torch.device("meta"):
        empty = build_model(fused.config)
    empty.load_state_dict(fused.state_dict(), assign=True)
    assert torch.equal(empty(*inputs(model)), fused(*inputs(model)))
    again = fused.fuse()
    assert again is not fused
    assert torch.equal(again(*inputs(model)), fused(*inputs(model)))
    for copied in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert torch.equal(copied(*inputs(model)), fused(*inputs(model)))


def test_weights_of_the_other_kind_are_refused(model):
    fused = model.fuse()
    with pytest.raises(ValueError, match=r"expected the weights of a fused model: load these before fuse\(\)"):
        fused.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="the weights of a fused model: load them into one built with fused=True"):
        model.load_state_dict(fused.state_dict())
    with pytest.raises(ValueError, match="the weights of a fused model"):
        nn.Sequential(copy.deepcopy(model)).load_state_dict(nn.Sequential(fused).state_dict())


def test_train_mode_is_refused(model):
    with pytest.raises(ValueError, match="eval"):
        model.train().fuse()
    model.eval()
    batch_norms(model)[0].train()
    with pytest.raises(ValueError, match="eval"):
        model.fuse()
    fused = model.eval().fuse()
    with pytest.raises(ValueError, match="inference only"):
        fused.train()
    with pytest.raises(ValueError, match="inference only"):
        nn.Sequential(fused).train()
    assert not fused.eval().training


def test_frozen_parameters_stay_frozen(model):
    model.stem.layers[0].conv.requires_grad_(False)
    fused = model.fuse()
    trained = {name: p.requires_grad for name, p in fused.named_parameters()}
    assert not trained["stem.layers.0.conv.weight"]
    assert not trained["stem.layers.0.conv.bias"]
    assert trained["stem.layers.1.conv.weight"]
    assert all(trained[name] == p.requires_grad for name, p in model.named_parameters() if name in trained)


def test_half_precision_is_rounded_once():
    model = create_model("cast_small", **MODELS["cast_small"]).eval()
    wide = copy.deepcopy(model).bfloat16().double().fuse()  # of the same rounded numbers
    fused = model.bfloat16().fuse()
    assert fused.stem.layers[2].conv.weight.dtype == torch.bfloat16
    assert torch.equal(fused.stem.layers[2].conv.weight, wide.stem.layers[2].conv.weight.bfloat16())
    assert torch.equal(fused.stem.layers[2].conv.bias, wide.stem.layers[2].conv.bias.bfloat16())


def test_channels_last_weights_stay_so():
    model = create_model("cast_small", **MODELS["cast_small"]).eval().to(memory_format=torch.channels_last)
    assert model.fuse().stem.layers[1].conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_fresh_decoder_of_a_fused_model():
    fused = create_model("cast_seg_small_voc", **MODELS["cast_seg_small_voc"]).eval().fuse()
    fused.reset_classifier(3)
    assert not batch_norms(fused)
    assert not any(m.training for m in fused.modules())
    assert fused(*inputs(fused)).shape == (2, 3, 64, 64)


@torch.no_grad()
def test_a_part_alone():
    """Where the part is the root itself; its last norm has no scale."""
    head = Projector(8, (6, 4)).double().eval()
    for norm in batch_norms(head):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.3, 3.0)
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    expected = head(x)
    fold_batch_norms(head)
    assert not batch_norms(head)
    torch.testing.assert_close(head(x), expected, rtol=1e-12, atol=1e-12)
