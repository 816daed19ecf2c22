"""The patch baseline: contract, sizes, gradients, loading, bad input."""

import pytest
import torch
from small_model import make_variant, photo

from cast.layers import sincos_2d
from cast.models import ViT


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 96), (16, 16)])
def test_shapes_at_any_size(height, width):
    model = make_variant("vit")
    image = photo(2, height, width)
    features = model.forward_features(image)
    assert features.shape == (2, 1 + height * width // 256, 48)
    assert torch.equal(model(image), model.forward_head(features))
    assert torch.equal(model.forward_head(features, pre_logits=True), features[:, 0])
    assert torch.equal(model(image.permute(0, 2, 3, 1)), model(image))
    torch.testing.assert_close(model((image / 255 - model.image_mean) / model.image_std), model(image))


def test_positions_follow_the_grid():
    model, native = make_variant("vit"), make_variant("vit", img_size=96)
    native.load_state_dict(model.state_dict())
    image = photo(1, 96, 96)
    torch.testing.assert_close(model(image), native(image))
    assert torch.equal(model.pos_embed, sincos_2d(4, 4, 48))


def test_gradients_reach_every_parameter():
    model = make_variant("vit").double().train()
    (model(torch.randn(2, 3, 64, 64)) * torch.randn(2, 5)).sum().backward()
    for name, p in model.named_parameters():
        assert p.grad.norm() > 1e-8, name


def test_checkpointing_and_drop_path():
    model = make_variant("vit", drop_path=0.3).eval()
    assert [block.drop_path.drop_prob for block in model.blocks] == pytest.approx([0.0, 0.15, 0.3])
    image, grads = photo(2, 64, 64), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(image).square().sum().backward()
        grads.append(model.stem.proj.weight.grad.clone())
    torch.testing.assert_close(*grads)


def test_loading_and_the_classifier():
    model, image = make_variant("vit"), photo(1, 64, 64)
    with torch.device("meta"):
        other = ViT(model.config).eval()
    other.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(other(image), model(image))
    assert model.no_weight_decay() == {"cls_token"}
    model.reset_classifier(0)
    assert torch.equal(model(image), model.forward_features(image)[:, 0])
    model.reset_classifier(9)
    assert model.to(torch.bfloat16)(image).shape == (1, 9)
    assert model.image_mean.dtype == torch.float32


@torch.no_grad()
def test_compiles_to_one_graph():
    model, image = make_variant("vit"), photo(2, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image), model(image))


def test_bad_input():
    model = make_variant("vit")
    with pytest.raises(ValueError, match="multiples of 16"):
        model(photo(1, 72, 64))
    with pytest.raises(TypeError, match="image"):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.int32))
    assert model(photo(1, 64, 64)[:0]).shape == (0, 5)
