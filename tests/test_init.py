"""How fresh weights of the two families are drawn: bounds, deviations, zeros."""

import pytest
from torch import nn

from cast import create_model


def uniform_within(weight, bound):
    """Whether weights look uniform in [-bound, bound]."""
    largest, deviation = weight.abs().max().item(), weight.std().item()
    return bound * 0.98 < largest <= bound and deviation == pytest.approx(bound / 3**0.5, rel=0.05)


def test_moco_initialisation():
    c = 192
    model = create_model("cast_mini", num_classes=100)
    for name, m in model.named_modules():
        if isinstance(m, nn.Linear):
            fan_in, fan_out = m.in_features, m.out_features
            if name.endswith("qkv"):
                fan_in = fan_out = c
            assert uniform_within(m.weight, (6 / (fan_in + fan_out)) ** 0.5), name
            assert not m.bias.any(), name
    assert 0 < model.cls_token.abs().max() < 6e-6
    for stage in model.stages:
        assert stage.pool.bias.std().item() == pytest.approx(0.01, rel=0.25)
    check_stem(model)


def test_deit_initialisation():
    c = 192
    model = create_model("cast_deit_small", embed_dim=c, num_classes=100)
    for name, m in model.named_modules():
        if isinstance(m, nn.Linear) and ".pool." in name:
            assert uniform_within(m.weight, m.in_features**-0.5), name
            assert uniform_within(m.bias, m.in_features**-0.5) or m.bias.numel() < 1000, name
            assert m.bias.any(), name
        elif isinstance(m, nn.Linear):
            assert m.weight.std().item() == pytest.approx(0.02, rel=0.05), name
            assert not m.bias.any(), name
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.25)
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    for stage in model.stages:
        assert stage.pool.bias.std().item() == pytest.approx(0.01, rel=0.25)
    check_stem(model)


def check_stem(model):
    for layer in model.stem.layers:  # the default of nn.Conv2d
        bound = layer.conv.weight[0].numel() ** -0.5
        assert bound * 0.9 < layer.conv.weight.abs().max().item() <= bound
    assert model.stem.proj.bias.any()


def test_dense_moco_initialisation():
    """The fusion as any linear layer; the projector, which is made later, as PyTorch does."""
    c, options = 192, {"depths": (1,), "num_clusters": (4,), "embed_dim": 192}
    model = create_model("cast_seg_small_retrieval", **options, projector_dims=(512, 256))
    assert uniform_within(model.fusion.proj.weight, (6 / (2 * c)) ** 0.5)
    assert not model.fusion.proj.bias.any()
    assert uniform_within(model.stages[0].pool.fc1.weight, (6 / (5 * c)) ** 0.5)
    assert uniform_within(model.head[0].weight, c**-0.5)
    assert uniform_within(model.head[3].weight, 512**-0.5)
    head = create_model("cast_seg_small", **options, num_classes=100).head
    assert uniform_within(head.weight, (6 / (c + 100)) ** 0.5)
    assert all(p.requires_grad for p in model.parameters())


def test_dense_deit_initialisation():
    """The fusion and the pools as PyTorch does; decoders as DeiT."""
    c = 192
    model = create_model("cast_segmenter_small", depths=(1,), num_clusters=(4,), embed_dim=c, num_classes=100)
    assert uniform_within(model.fusion.proj.weight, c**-0.5)
    assert uniform_within(model.stages[0].pool.fc1.weight, c**-0.5)
    for weight in (model.head.weight, model.decoder.proj_dec.weight, model.decoder.blocks[1].mlp.fc1.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.decoder.cls_emb.std().item() == pytest.approx(0.02, rel=0.05)
    for weight in (model.decoder.proj_patch, model.decoder.proj_classes):
        assert weight.std().item() == pytest.approx(c**-0.5, rel=0.05)
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    }


def test_patch_baseline_initialisation():
    model = create_model("vit_conv_small", depth=1, embed_dim=192)
    assert uniform_within(model.blocks[0].attn.qkv.weight, (6 / 384) ** 0.5)
    assert uniform_within(model.head.weight, (6 / 1192) ** 0.5)
    check_stem(model)


def test_a_new_classifier_follows_the_family():
    moco, deit = create_model("cast_mini"), create_model("cast_deit_small", embed_dim=192)
    for model in (moco, deit):
        model.reset_classifier(200)
        assert not model.head.bias.any()
    assert uniform_within(moco.head.weight, (6 / 392) ** 0.5)
    assert deit.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
