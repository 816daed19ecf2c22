"""The dense models and their decoders: contract, sizes, granularity, gradients, batch norm, precision, bad input."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from small_model import VARIANTS, grid_labels, make_model, make_variant, photo
from torch import nn
from torch._subclasses import FakeTensorMode

from cast.layers import tokens_to_pixels
from cast_kernels import seeds_count

DENSE = [name for name in VARIANTS if name != "vit"]
FULL = [name for name in DENSE if name != "pretrain"]  # tokens from all pixels


def expected_shape(name, count, height, width):
    """Of the output for a batch of 2."""
    tables = {"pretrain": (5,), "segmentation": (count, 5), "retrieval": (count, 8), "encoder": (1 + count, 48)}
    return (2, *tables.get(name, (5, height, width)))


# --- forward


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 96)])
def test_shapes_at_any_size(name, height, width):
    model = make_variant(name)
    image, labels = photo(2, height, width), grid_labels(2, height, width, 8)
    n = int(labels.max()) + 3
    out = model.forward_hierarchy(image, labels, n)
    assert out.logits.shape == expected_shape(name, n, height, width)
    assert out.cls.shape == (2, 48)
    assert out.tokens.shape == (2, n, 48)
    assert out.hierarchy.num_segments == (n, 16, 8, 4)
    assert [level.tokens.shape[1] for level in out.levels] == [n, 16, 8]
    assert torch.equal(model(image, labels, n), out.logits)
    features = model.forward_features(image, labels, n)
    assert torch.equal(features, torch.cat([out.cls[:, None], out.tokens], 1))
    assert torch.equal(model(image.permute(0, 2, 3, 1), labels, n), out.logits)


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize(("height", "width"), [(50, 75), (65, 8), (67, 61)])
def test_images_need_not_be_multiples_of_8(name, height, width):
    model = make_variant(name)
    labels = grid_labels(2, height, width, 7)
    n = int(labels.max()) + 1
    assert model(photo(2, height, width), labels, n).shape == expected_shape(name, n, height, width)


def test_pretraining_needs_multiples_of_8():
    with pytest.raises(ValueError, match="multiples of 8"):
        make_variant("pretrain")(photo(1, 60, 64), grid_labels(1, 60, 64), 16)


@pytest.mark.parametrize("name", DENSE)
def test_superpixels_are_made_of_the_image(name):
    model = make_variant(name)
    image = photo(2, 72, 104)
    labels, n = model.superpixels(image), seeds_count(72, 104, round(25 * 72 * 104 / 64**2))
    assert torch.equal(model(image), model(image, labels, n))
    asked = model.forward_hierarchy(image, num_superpixels=60)
    assert asked.tokens.shape[1] == seeds_count(72, 104, 60)


def test_heads():
    image, labels = photo(2, 64, 64), grid_labels(2, 64, 64)
    model = make_variant("pretrain")
    features = model.forward_features(image, labels, 20)
    assert torch.equal(model.forward_head(features, pre_logits=True), features[:, 1:].mean(1))
    assert torch.equal(model.forward_head(features), model.head(features[:, 1:].mean(1)))
    model = make_variant("segmentation")
    features = model.forward_features(image, labels, 20)
    assert torch.equal(model.forward_head(features, pre_logits=True), features[:, 1:])
    model = make_variant("encoder")
    features = model.forward_features(image, labels, 20)
    assert torch.equal(model.forward_head(features), features)
    model = make_variant("voc")
    features = model.forward_features(image, labels, 20)
    assert torch.equal(model.forward_head(features), model.decoder(features[:, 1:]))


def test_pixels_take_the_logits_of_their_superpixel():
    model = make_variant("segmenter_linear")
    image, labels = photo(1, 64, 64), grid_labels(1, 64, 64, 8)
    labels[0, :3, :5] = 70  # no segment
    logits = model(image, labels, 64)
    segments = model.forward_head(model.forward_features(image, labels, 64))
    assert torch.equal(logits[0, :, 20, 33], segments[0, labels[0, 20, 33]])
    assert not logits[0, :, :3, :5].any()
    assert logits[0, :, 3:, 5:].abs().amin() > 0


@pytest.mark.parametrize("name", ["voc", "segmenter"])
def test_labels_of_another_resolution(name):
    model = make_variant(name)
    image, labels = photo(1, 64, 64), grid_labels(1, 64, 64, 8)[:, ::2, ::2]
    segments = model.forward_head(model.forward_features(image, labels, 64))
    small = tokens_to_pixels(segments, labels)
    mode = {"mode": "bilinear", "align_corners": False} if name == "voc" else {"mode": "nearest"}
    torch.testing.assert_close(model(image, labels, 64), F.interpolate(small, (64, 64), **mode))


@pytest.mark.parametrize("name", DENSE)
def test_empty_superpixels_take_part_but_are_not_sampled(name):
    model = make_variant(name)
    image, labels = photo(1, 64, 64), grid_labels(1, 64, 64)
    out = model.forward_hierarchy(image, labels, 20)
    assert out.levels[0].mask[0].tolist() == [True] * 16 + [False] * 4
    assert set(out.levels[0].indices[0].tolist()) == set(range(16))
    assert not torch.allclose(out.tokens[:, :16], model.forward_features(image, labels, 16)[:, 1:])


@pytest.mark.parametrize("name", DENSE)
def test_labels_outside_are_ignored(name):
    model = make_variant(name)
    image, labels = photo(1, 64, 64), grid_labels(1, 64, 64, 8)
    a, b = labels.clone(), labels.clone()
    a[labels >= 40], b[labels >= 40] = 1000, -1
    assert torch.equal(model(image, labels, 40), model(image, a, 40))
    assert torch.equal(model(image, labels, 40), model(image, b, 40))


@pytest.mark.parametrize("name", DENSE)
def test_images_of_a_batch_are_independent_in_eval_mode(name):
    model = make_variant(name).double()
    image, labels = torch.randn(3, 3, 64, 64), grid_labels(3, 64, 64)
    labels[1] = labels[1].clamp(max=9)
    together = model(image, labels, 20)
    for b in range(3):
        torch.testing.assert_close(model(image[b : b + 1], labels[b : b + 1], 20)[0], together[b])
    assert torch.equal(model(image, labels, 20), together)


# --- sizes and granularity


@pytest.mark.parametrize("name", DENSE)
def test_weights_fit_any_granularity(name):
    model, other = make_variant(name), make_variant(name, num_clusters=(10, 3, 2))
    other.load_state_dict(model.state_dict())
    image, labels = photo(1, 64, 64), grid_labels(1, 64, 64)
    model.set_granularity((10, 3, 2))
    assert model.config == other.config
    assert torch.equal(model(image, labels, 16), other(image, labels, 16))
    assert model.forward_hierarchy(image, labels, 16).hierarchy.num_segments == (16, 10, 3, 2)


@pytest.mark.parametrize("name", ["segmentation", "segmenter"])
def test_many_superpixels_on_few_cells(name):
    """Every superpixel of 4 pixels has a token of its own, though 16 of them share a cell of the stem."""
    model = make_variant(name)
    labels = grid_labels(1, 64, 64, 2)
    out = model.forward_hierarchy(photo(1, 64, 64), labels, 1024)
    assert out.levels[0].mask.all()
    assert out.tokens[0].unique(dim=0).shape[0] == 1024


@pytest.mark.parametrize("name", ["classification", "pretrain", "segmentation", "segmenter"])
def test_large_images(name):
    """2048 on a side, on tensors without memory."""
    model = make_model() if name == "classification" else make_variant(name)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        image = mode.from_tensor(torch.empty(1, 3, 2048, 1024, dtype=torch.uint8, device="meta"))
        labels = mode.from_tensor(torch.empty(1, 2048, 1024, dtype=torch.int32, device="meta"))
        model = model.to("meta")
        out = model(image, labels, 5000)
    expected = expected_shape("pretrain" if name == "classification" else name, 5000, 2048, 1024)
    assert out.shape == (1, *expected[1:])


def test_positions_are_stretched_over_images_of_any_shape():
    """A ramp along the width, in each of them, reaches from the left edge to the right one."""
    model = make_variant("segmentation", pos_embed_size=0)
    model.pos_embed[0] = torch.arange(8.0).repeat(8)[:, None]
    seen = []
    model.stages[0].blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0, 1:, 0].detach()))
    nn.init.zeros_(model.stem.proj.weight)
    nn.init.zeros_(model.stem.proj.bias)
    for height, width in ((64, 64), (32, 128), (96, 40)):
        columns = (torch.arange(width) * 20 // width).expand(1, height, -1).contiguous()
        model(photo(1, height, width), columns, 20)
    for other in seen[1:]:
        torch.testing.assert_close(other, seen[0], rtol=0, atol=0.15)
    assert seen[0][0] < 0.3
    assert seen[0][-1] > 6.7


# --- training


def gradients(model, image, labels, count):
    model.zero_grad()
    out = model(image, labels, count)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=out.dtype)).sum().backward()
    return {name: p.grad for name, p in model.named_parameters()}


GROUPING = tuple(f"stages.2.pool.{part}" for part in ("norm.", "attn.", "bias"))


@pytest.mark.parametrize("name", DENSE)
def test_gradients_reach_every_parameter_in_training(name):
    """But those frozen, the part of the last pool that groups, and shifts that a centring or a batch norm removes."""
    model = make_variant(name).double().train()
    grads = gradients(model, torch.randn(2, 3, 64, 64), grid_labels(2, 64, 64, 8), 64)
    frozen = {"norm.weight", "norm.bias", "head.weight", "head.bias"} if "norm.weight" in grads else set()
    for key, p in model.named_parameters():
        assert p.requires_grad == (key not in frozen), key
        if key in frozen:
            assert grads[key] is None, key
        elif key.startswith(GROUPING):
            assert not grads[key].any(), key  # zero, not None: nothing is unused in the eyes of DDP
        elif key.endswith("pool.attn.proj.bias") or (key == "fusion.proj.bias" and name in ("retrieval", "voc")):
            assert grads[key].norm() < 1e-10, key
        else:
            assert grads[key].norm() > 1e-8, key


@pytest.mark.parametrize("name", ["pretrain", "segmentation", "voc"])
def test_the_last_perceptron_learns_through_batch_statistics_alone(name):
    model = make_variant(name).double().eval()
    grads = gradients(model, torch.randn(2, 3, 64, 64), grid_labels(2, 64, 64, 8), 64)
    for key, grad in grads.items():
        if key.startswith("stages.2.pool."):
            assert not grad.any(), key


@pytest.mark.parametrize("name", DENSE)
def test_batch_norm_couples_images_class_and_empty_tokens(name):
    model = make_variant(name, pool_dropout=0.0, fusion_dropout=0.0).double().train()
    for m in model.modules():
        if isinstance(m, nn.Dropout):
            m.p = 0.0
        if isinstance(m, nn.BatchNorm2d):
            m.eval()  # so that only the fusion couples
    image, labels = torch.randn(2, 3, 64, 64), grid_labels(2, 64, 64)
    seen = []
    model.fusion.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    first = model(image, labels, 20)
    assert seen[0].shape == (2 * 21, 3 * 48)
    torch.testing.assert_close(model.fusion.norm.running_mean, 0.1 * seen[0].mean(0))
    torch.testing.assert_close(model.fusion.norm.running_var, 0.9 + 0.1 * seen[0].var(0))
    other = model(torch.cat([image[:1], image[1:] + 1]), labels, 20)
    assert not torch.allclose(first[0], other[0])


def test_conv_decoder_trains_on_pixels():
    """A segment counts as often as it has pixels in the batch statistics."""
    model = make_variant("voc", fusion_dropout=0.0, pool_dropout=0.0).train()
    image, labels = photo(2, 64, 64), grid_labels(2, 64, 64, 24)
    seen = []
    model.decoder[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    model(image, labels, 20)
    assert seen == [(2, 48, 64, 64)]
    model.eval()(image, labels, 20)
    assert seen[1:] == [(2, 48, 20, 1)]


@pytest.mark.parametrize("name", DENSE)
def test_checkpointing_gives_the_same_gradients(name):
    model = make_variant(name, pool_dropout=0.0, fusion_dropout=0.0).eval()
    image, labels = torch.randn(2, 3, 64, 64), grid_labels(2, 64, 64)
    plain = gradients(model, image, labels, 16)
    model.set_grad_checkpointing()
    for key, grad in gradients(model, image, labels, 16).items():
        if grad is not None:
            torch.testing.assert_close(grad, plain[key], msg=key)


def test_a_classifier_below_a_decoder_is_frozen():
    """Nothing uses it, and DDP would miss its gradient."""
    model = make_variant("voc", encoder_classes=3)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["head.weight", "head.bias"]


def test_no_weight_decay():
    assert make_variant("segmentation").no_weight_decay() == {"cls_token"}
    assert make_variant("encoder").no_weight_decay() == {"cls_token", "pos_embed"}
    assert make_variant("segmenter").no_weight_decay() == {"cls_token", "pos_embed", "decoder.cls_emb"}


# --- changing and keeping


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("assign", [False, True])
def test_built_on_the_meta_device_and_loaded(name, assign):
    model = make_variant(name)
    image, labels = photo(1, 64, 64), grid_labels(1, 64, 64)
    with torch.device("meta"):
        other = type(model)(model.config).eval()
    if not assign:
        other.to_empty(device="cpu")
        for buffer in other.buffers():
            buffer.fill_(77)
    other.load_state_dict(model.state_dict(), assign=assign)
    assert torch.equal(other.pos_embed, model.pos_embed)
    assert torch.equal(other(image, labels, 16), model(image, labels, 16))
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(image, labels, 16), model(image, labels, 16))


@pytest.mark.parametrize("name", ["pretrain", "segmentation", "retrieval"])
def test_reset_classifier(name):
    model = make_variant(name).double()
    image, labels = photo(1, 64, 64), grid_labels(1, 64, 64)
    shape = model(image, labels, 16).shape[:-1]
    model.reset_classifier(7)
    assert model(image, labels, 16).shape == (*shape, 7)
    assert model.head.weight.dtype == torch.float64
    assert (model.config.head, model.config.num_classes) == ("linear", 7)
    model.reset_classifier(0)
    assert model(image, labels, 16).shape == (*shape, 48)


@pytest.mark.parametrize("name", ["voc", "segmenter", "segmenter_linear"])
def test_reset_decoder(name):
    model = make_variant(name).double()
    image, labels = photo(1, 64, 64), grid_labels(1, 64, 64)
    model.reset_classifier(7)
    assert model(image, labels, 16).shape == (1, 7, 64, 64)
    assert {p.dtype for p in model.decoder.parameters()} == {torch.float64}
    assert not any(m.training for m in model.modules())
    assert model.config.num_classes == 7


@pytest.mark.parametrize(
    ("name", "classes"),
    [("segmentation", -1), ("retrieval", 2.5), ("encoder", 5), ("segmenter", 0), ("voc", "7"), ("pretrain", True)],
)
def test_a_classifier_that_cannot_be_leaves_the_model_as_it_was(name, classes):
    model = make_variant(name)
    config, modules = model.config, list(model.modules())
    with pytest.raises(ValueError, match="num_classes"):
        model.reset_classifier(classes)
    assert model.config is config
    assert list(model.modules()) == modules


# --- precision and compilation


@pytest.mark.parametrize("name", DENSE)
def test_bfloat16(name):
    model = make_variant(name)
    image, labels = photo(2, 64, 64), grid_labels(2, 64, 64)
    plain = model(image, labels, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(image, labels, 16)
    assert (mixed.float() - plain).norm() < 0.1 * plain.norm()
    mixed.float().sum().backward()
    half = model.to(torch.bfloat16)(image, labels, 16)
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("name", ["segmentation", "segmenter"])
def test_compiles_to_one_graph(name):
    model = make_variant(name, depths=(1, 1), num_clusters=(8, 4))
    image, labels = photo(2, 64, 64), grid_labels(2, 64, 64).int()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image, labels), model(image, labels))
    torch.testing.assert_close(compiled(image), model(image))


def test_devices_agree_without_a_host_sync(device):
    for name in DENSE:
        model = make_variant(name)
        image, labels = photo(2, 64, 96), grid_labels(2, 64, 96)
        expected = model(image, labels, 24)
        model, image, labels = model.to(device), image.to(device), labels.to(device)
        model(image, labels, 24)  # whatever is built at the first call
        try:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            logits = model(image, labels, 24)
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        torch.testing.assert_close(logits.cpu(), expected, rtol=1e-3, atol=1e-3)


# --- bad input


@pytest.mark.parametrize("name", DENSE)
def test_bad_input(name):
    model = make_variant(name)
    image, labels = photo(2, 64, 64), grid_labels(2, 64, 64)
    for call in (model, model.forward_features, model.forward_hierarchy):
        with pytest.raises(ValueError, match=r"num_clusters\[0\] = 16 superpixels, got 15"):
            call(image, labels, 15)
        with pytest.raises(ValueError, match=r"expected labels \[2, H, W\]"):
            call(image, labels[:1], 16)
        with pytest.raises(TypeError, match="labels"):
            call(image, labels.float(), 16)
        with pytest.raises(ValueError, match="expected an image"):
            call(image[:, :2], labels, 16)
        with pytest.raises(TypeError, match="num_segments"):
            call(image, labels, 16.0)
        with pytest.raises(ValueError, match="pass num_segments=64"):
            call(image, grid_labels(2, 64, 64, 8))


@pytest.mark.parametrize("name", FULL)
def test_images_of_fewer_than_8_pixels(name):
    with pytest.raises(ValueError, match="of at least 8"):
        make_variant(name)(photo(1, 7, 64), grid_labels(1, 7, 64, 1), 448)


@pytest.mark.parametrize("name", DENSE)
def test_empty_batch(name):
    image, labels = torch.zeros(0, 3, 64, 64), torch.zeros(0, 64, 64, dtype=torch.int64)
    assert make_variant(name)(image, labels, 16).shape == (0, *expected_shape(name, 16, 64, 64)[1:])
