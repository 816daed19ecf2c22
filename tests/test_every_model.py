"""Every registered model, at its own structure and a fraction of its size."""

import dataclasses

import pytest
import torch
from small_model import grid_labels, photo

from cast import create_model, list_models
from cast.models import CastSeg, CastSegmenter, ViT, build_model
from cast.models.registry import CONFIGS
from cast.models.trunk import Trunk

FAMILIES = {
    name.replace("_base", "_small").replace("_deep", "").replace("_mini", "_small"): name for name in list_models()
}  # one name of each
GRANULARITY = (12, 6, 4, 2)
FROZEN = {  # what the published training leaves alone
    "cast": ("stages.3.pool.",),
    "encoder": ("norm.", "head."),
}


def small(name, **overrides):
    """The model with an eighth of its width (small 48, base 96), few blocks and images of 64 x 64."""
    config = CONFIGS[name]
    changes = {"embed_dim": config.embed_dim // 8, "num_heads": 4, "img_size": 64}
    changes["num_classes"] = min(config.num_classes, 7)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        match field.name:
            case "depths":
                changes["depths"] = tuple(1 + depth // 4 for depth in value)  # deep models stay deeper
            case "depth":
                changes["depth"] = 2
            case "num_clusters":
                changes["num_clusters"] = GRANULARITY
            case "superpixels":
                changes["superpixels"] = dataclasses.replace(value, num_superpixels=25, quality="fast")
            case "projector_dims":
                changes["projector_dims"] = (20, 20, 12)
            case "pos_embed_size":
                changes["pos_embed_size"] = 32 if value else 0
            case "encoder_classes":
                changes["encoder_classes"] = 3 if value else 0
    return build_model(dataclasses.replace(config, **changes | overrides))


def inputs(model, batch=2, height=64, width=64):
    torch.manual_seed(1)  # the same photos at each call
    image = photo(batch, height, width)
    return (image,) if isinstance(model, ViT) else (image, grid_labels(batch, height, width, 12), 49)


def shape(model, batch, height, width):
    """Of what `forward` returns, from the published description of each variant."""
    config = model.config
    if isinstance(model, CastSegmenter):
        return (batch, config.num_classes, height, width)
    if isinstance(model, CastSeg) and config.stage == "encoder":
        return (batch, 1 + 49, config.embed_dim)
    if isinstance(model, CastSeg) and config.stage == "segmentation":
        return (batch, 49, 12 if config.head == "projector" else config.num_classes)
    return (batch, config.num_classes)


@pytest.mark.parametrize("name", list_models())
class TestEveryModel:
    @torch.no_grad()
    def test_forward_at_two_sizes_and_granularities(self, name):
        model = small(name).eval()
        for granularity in (GRANULARITY, (9, 9, 3, 1)):
            if isinstance(model, Trunk):
                model.set_granularity(granularity)
            for height, width in ((64, 64), (48, 80)):
                output = model(*inputs(model, 2, height, width))
                assert output.shape == shape(model, 2, height, width)
                assert output.isfinite().all()
                if isinstance(model, Trunk):
                    found = model.forward_hierarchy(*inputs(model, 2, height, width))
                    assert torch.equal(found.logits, output)
                    assert found.hierarchy.num_segments == (49, *granularity)

    def test_backward_reaches_every_parameter(self, name):
        model = small(name).train()
        kind = "encoder" if getattr(model.config, "stage", "") == "encoder" else model.config.kind
        frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
        assert frozen == {n for n, _ in model.named_parameters() if n.startswith(FROZEN.get(kind, ()) or ("-",))}
        output = model(*inputs(model))
        (output * torch.randn_like(output)).sum().backward()
        for n, p in model.named_parameters():
            assert (p.grad is None) == (n in frozen), n
            assert p.grad is None or p.grad.isfinite().all(), n

    @torch.no_grad()
    def test_saved_and_loaded(self, name, tmp_path):
        model = small(name).eval()
        expected = model(*inputs(model))
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path)
        assert again.config == model.config
        assert torch.equal(again(*inputs(model)), expected)
        other = small(name).eval()
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(*inputs(model)), expected)

    @torch.no_grad()
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, name, dtype):
        model = small(name).eval()
        with torch.autocast("cpu", dtype=dtype):
            output = model(*inputs(model))
        assert output.isfinite().all()
        output = model.to(dtype)(*inputs(model))
        assert output.dtype == dtype
        assert output.isfinite().all()

    @torch.no_grad()
    def test_fused(self, name):
        """To rounding in float64: centroids are the same ones."""
        model = small(name).eval().double()
        torch.testing.assert_close(model.fuse()(*inputs(model)), model(*inputs(model)), rtol=1e-10, atol=1e-12)

    @torch.no_grad()
    def test_intermediates(self, name):
        model = small(name).eval()
        count = len(model.blocks) if isinstance(model, ViT) else 4
        final, levels = model.forward_intermediates(*inputs(model))
        assert len(levels) == count == len(model.feature_info)
        assert torch.equal(model.forward_intermediates(*inputs(model), intermediates_only=True)[-1], levels[-1])
        (last,) = model.forward_intermediates(*inputs(model), indices=[count - 1], intermediates_only=True)
        assert torch.equal(last, levels[-1])
        assert torch.equal(final, model.forward_features(*inputs(model)))


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES.values())
def test_compiles_to_one_graph(name):
    """With a hierarchy where there is one; sizes of a family are one program."""
    torch.compiler.reset()
    model = small(name, **({"depth": 1} if "vit" in name else {"depths": (1, 1), "num_clusters": (6, 3)})).eval()
    forward = model.forward_hierarchy if isinstance(model, Trunk) else model
    found = torch.compile(forward, fullgraph=True, backend="eager")(*inputs(model))
    expected = forward(*inputs(model))
    if isinstance(model, Trunk):
        torch.testing.assert_close(found.logits, expected.logits)
        assert torch.equal(found.hierarchy.label_maps(), expected.hierarchy.label_maps())
    else:
        torch.testing.assert_close(found, expected)


def test_the_matrix_is_whole():
    assert set(FAMILIES) == {
        "cast_small", "cast_deit_small", "cast_seg_small", "cast_seg_small_pretrain", "cast_seg_small_retrieval",
        "cast_seg_small_voc", "cast_seg_deit_small", "cast_segmenter_small", "cast_segmenter_small_linear",
        "vit_conv_small",
    }  # fmt: skip
    assert type(create_model("cast_mini", embed_dim=24, depths=(1,), num_clusters=(4,))) is type(small("cast_mini"))
