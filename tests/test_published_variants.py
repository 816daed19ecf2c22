"""Every registered family, narrow, against the published forward pass written out in plain float64 PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from published_forward import (
    classify,
    conv_decoder,
    dense,
    linear,
    mask_decoder,
    patch_classify,
    projector,
    sincos,
    sub,
    to_pixels,
)
from small_model import grid_labels
from torch import nn

from cast import create_model
from cast.models.official import load_official, to_official
from cast.models.official_names import official_names

DEPTHS, CLUSTERS = (2, 1, 1, 1), (12, 6, 4, 2)
WIDTH = {"embed_dim": 48, "img_size": 64}  # 12 heads of 4 channels
NARROW = {**WIDTH, "depths": DEPTHS, "num_clusters": CLUSTERS}
COUNT = 40


def make_model(name, **overrides):
    """A float64 model with published weights in which every part shows, and those weights."""
    model = create_model(name, **(WIDTH if name.startswith("vit") else NARROW) | overrides).eval()
    state = to_official(model)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            state |= dict.fromkeys(official_names(name, model.config), fresh(name, value.shape))
    load_official(model, state)
    return model.double(), {key: value.double() for key, value in state.items()}


def fresh(name, shape):
    if len(shape) < 2:
        return 1 + torch.rand(shape) / 5 if name.endswith(("weight", "var")) else torch.randn(shape) / 9
    return torch.randn(shape) * (2 / shape[1:].numel()) ** 0.5


def inputs(height=64, width=64, cell=10):
    image = torch.randn(2, 3, height, width, dtype=torch.float64)
    labels = grid_labels(2, height, width, cell)
    labels[1] = labels[1].flip(1)
    labels[1][labels[1] == 3] = 4  # one that is empty
    return image, labels


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["cast_small_deep", "cast_base", "cast_deit_base_deep"])
def test_classification(name):
    model, state = make_model(name)
    image, labels = inputs()
    same(model(image, labels, COUNT + 9), classify(state, image, labels, COUNT + 9, DEPTHS, CLUSTERS))


@pytest.mark.parametrize("name", ["cast_seg_small_deep_pretrain", "cast_seg_base_pretrain"])
def test_dense_pretraining(name):
    model, state = make_model(name)
    image, labels = inputs()
    features, _ = dense(state, image, labels, 49, DEPTHS, CLUSTERS, upsample=False)
    same(model.forward_features(image, labels, 49), features)
    same(model(image, labels, 49), linear(features[:, 1:].mean(1), sub(state, "head.")))


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(("height", "width", "cell"), [(64, 64, 10), (50, 75, 11), (64, 40, 7)])
def test_segmentation(height, width, cell, before):
    model, state = make_model("cast_seg_small_deep", pos_embed_size=40, pool_before_proj=before)
    image, labels = inputs(height, width, cell)
    n = int(labels.max()) + 2
    features, chain = dense(state, image, labels, n, DEPTHS, CLUSTERS, upsample=True)
    out = model.forward_hierarchy(image, labels, n)
    same(out.logits, linear(features[:, 1:], sub(state, "head.")))
    same(model.forward_features(image, labels, n), features)
    assert torch.equal(out.hierarchy.labels(4).long(), to_pixels(chain[..., None], labels)[:, 0])


def test_the_stretched_table_is_resized_twice():
    """As published: first to the grid of the model, then to the labels."""
    model, _ = make_model("cast_seg_small", pos_embed_size=40)
    expected = F.interpolate(sincos(5, 48), (8, 8), mode="bicubic", align_corners=False)
    torch.testing.assert_close(model.pos_embed, expected.flatten(2).transpose(1, 2), rtol=0, atol=2e-6)


def test_labels_of_half_the_resolution():
    model, state = make_model("cast_seg_small", pos_embed_size=0)
    image, labels = inputs()
    labels = labels[:, ::2, ::2]
    features, _ = dense(state, image, labels, 49, DEPTHS, CLUSTERS, upsample=True)
    same(model.forward_features(image, labels, 49), features)


def test_segment_retrieval():
    model, state = make_model("cast_seg_base_retrieval", projector_dims=(40, 32, 16))
    image, labels = inputs()
    features, chain = dense(state, image, labels, 49, DEPTHS, CLUSTERS, upsample=True)
    out = model.forward_hierarchy(image, labels, 49)
    same(out.logits, projector(features[:, 1:], sub(state, "head.")))
    assert torch.equal(out.hierarchy.labels(4).long(), to_pixels(chain[..., None], labels)[:, 0])
    assert torch.equal(model(image, labels, 49), out.logits)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (72, 48)])
def test_dense_encoder(height, width):
    model, state = make_model("cast_seg_deit_base_deep")
    image, labels = inputs(height, width)
    n = int(labels.max()) + 2
    same(model(image, labels, n), dense(state, image, labels, n, DEPTHS, CLUSTERS, upsample=True)[0])


@pytest.mark.parametrize("decoder", ["", "_linear"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (52, 75)])
def test_segmenter(decoder, height, width):
    """Images are padded to multiples of 8, labels are not."""
    model, state = make_model(f"cast_segmenter_small{decoder}", num_classes=7, decoder_heads=3)
    image, labels = inputs(height, width)
    n = int(labels.max()) + 2
    padded = F.pad(image, (0, -width % 8, 0, -height % 8))
    encoder, decoder = sub(state, "encoder."), sub(state, "decoder.")
    tokens = dense(encoder, padded, labels, n, DEPTHS, CLUSTERS, upsample=True)[0][:, 1:]
    logits = mask_decoder(tokens, decoder, 2, 3) if "cls_emb" in decoder else linear(tokens, sub(decoder, "head."))
    same(model(image, labels, n), to_pixels(logits, labels))


@pytest.mark.parametrize("scale", [1, 2])
def test_voc_decoder(scale):
    """Labels of half the size as in its training: logits are brought to the image bilinearly."""
    model, state = make_model("cast_seg_small_deep_voc", num_classes=7)
    image, labels = inputs()
    labels = labels[:, ::scale, ::scale]
    encoder = sub(state, "vit_backbone.")
    tokens = dense(encoder, image, labels, 49, DEPTHS, CLUSTERS, upsample=True)[0][:, 1:]
    logits = conv_decoder(to_pixels(tokens, labels), sub(state, "semantic_classifier."))
    same(model(image, labels, 49), F.interpolate(logits, (64, 64), mode="bilinear", align_corners=False))


def test_patch_baseline():
    model, state = make_model("vit_conv_small", depth=3)
    image, _ = inputs()
    same(model(image), patch_classify(state, image, 3))


# --- in training: batch statistics, and every gradient


def forward_pretrain(state, image, labels, count):
    features, _ = dense(state, image, labels, count, DEPTHS, CLUSTERS, upsample=False)
    return linear(features[:, 1:].mean(1), sub(state, "head."))


def forward_retrieval(state, image, labels, count):
    features, _ = dense(state, image, labels, count, DEPTHS, CLUSTERS, upsample=True)
    return projector(features[:, 1:], sub(state, "head."))


def forward_encoder(state, image, labels, count):
    return dense(state, image, labels, count, DEPTHS, CLUSTERS, upsample=True)[0]


def forward_segmenter(state, image, labels, count):
    tokens = forward_encoder(sub(state, "encoder."), image, labels, count)[:, 1:]
    return to_pixels(mask_decoder(tokens, sub(state, "decoder."), 2, 3), labels)


def forward_voc(state, image, labels, count):
    labels = labels[:, ::2, ::2]
    tokens = forward_encoder(sub(state, "vit_backbone."), image, labels, count)[:, 1:]
    logits = conv_decoder(to_pixels(tokens, labels), sub(state, "semantic_classifier."))
    return F.interpolate(logits, image.shape[2:], mode="bilinear", align_corners=False)


@pytest.mark.parametrize(
    ("name", "forward", "overrides"),
    [
        ("cast_seg_small_deep_pretrain", forward_pretrain, {}),
        ("cast_seg_small_retrieval", forward_retrieval, {"projector_dims": (40, 32, 16)}),
        ("cast_seg_deit_small", forward_encoder, {}),
        ("cast_segmenter_small", forward_segmenter, {"num_classes": 7, "decoder_heads": 3}),
        ("cast_seg_small_voc", forward_voc, {"num_classes": 7}),
    ],
)
def test_training_step(name, forward, overrides):
    model, state = make_model(name, **overrides)
    image, labels = inputs()
    model.train()
    for m in model.modules():
        if isinstance(m, nn.Dropout):
            m.p = 0.0
    state = {key: value.requires_grad_() for key, value in state.items() if "running" not in key}
    theirs = forward(state, image, labels, 49)
    ours = model(image, labels[:, ::2, ::2] if "voc" in name else labels, 49)
    same(ours, theirs)
    weight = torch.randn_like(ours)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    largest = max(p.grad.norm() for p in model.parameters() if p.grad is not None)
    for key, p in model.named_parameters():
        grad = state[official_names(key, model.config)[0]].grad
        grad = torch.zeros_like(p) if grad is None else grad
        assert (grad - (0.0 if p.grad is None else p.grad)).norm() <= 1e-9 * largest, key
