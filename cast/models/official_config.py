"""Which model published weights are of, read from their names and shapes."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cast.layers import sincos_2d

from .config import CastSegConfig, CastSegmenterConfig, ImageConfig, ViTConfig
from .official_names import read_depths
from .registry import CONFIGS

_PREFIXES = ("vit_backbone.", "encoder.", "")
_SAME_TABLE = 1e-3  # a resized table is off by far more, float32 sines by far less


def infer_config(state: Mapping[str, Tensor], **settings: Any) -> ImageConfig:
    """Find the config of the model that published weights are of.

    Family, width, depths, classes and image size follow from names and shapes; granularity, SEEDS settings, mean and
    std are those of the family. The superpixels are made in OpenCV's order, with which all published weights were
    trained. The number of attention heads leaves no trace; all published models have 12.

    Args:
        state: Published names, of one model, without a prefix such as ``module.``.
        **settings: Fields of the config that are set instead of found; ``superpixels`` also as a dict of those of its
            fields that are.

    Returns:
        The config.

    Raises:
        ValueError: These are not the weights of a published model, or settings contradict them.
        TypeError: A setting is not a field of this family's config.
    """
    prefix = next(p for p in _PREFIXES if not p or any(name.startswith(p) for name in state))
    encoder = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    template = CONFIGS[_family(prefix, encoder, state)]
    found = _shapes(encoder, template) | _head(prefix, encoder, state, template) | _positions(encoder, template)
    changes = settings.get("superpixels", {})
    if isinstance(template, ViTConfig) or not isinstance(changes, dict):
        return dataclasses.replace(template, **(found | settings))
    config = dataclasses.replace(template, **(found | settings | {"superpixels": template.superpixels}))
    area = (config.img_size / template.img_size) ** 2
    count = max(1, round(template.superpixels.num_superpixels * area))
    own = template.superpixels.replace(num_superpixels=count).as_published()
    return dataclasses.replace(config, superpixels=own.replace(**changes))


def registered_name(config: ImageConfig) -> str | None:
    """Return the name of the registered model that a config is of, or None.

    Number of classes, order of superpixels, ``compat`` and the folding of batch norms may differ.
    """
    free = {"num_classes": 1, "encoder_classes": 1}

    def core(c: ImageConfig) -> ImageConfig:
        changes: dict[str, Any] = {name: value for name, value in free.items() if hasattr(c, name)}
        if getattr(c, "head", "linear") == "projector":
            changes["num_classes"] = 0
        if hasattr(c, "superpixels"):
            changes["superpixels"] = c.superpixels.as_published()
        own = {"compat": None, "fused": False}
        changes |= {name: value for name, value in own.items() if hasattr(c, name)}
        return dataclasses.replace(c, **changes)

    return next((name for name, c in CONFIGS.items() if type(c) is type(config) and core(c) == core(config)), None)


def _family(prefix: str, encoder: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Return a registered model of the family, whose config is the template."""
    if "stem.proj.weight" in state:
        raise ValueError(
            "these are weights in this package's own names; load them with cast.from_pretrained from the folder of "
            "save_pretrained, or with load_state_dict"
        )
    for name in ("cls_token", "pos_embed"):
        if name not in encoder or encoder[name].ndim != 3:
            raise ValueError(f"expected weights of a published model, but there is no {prefix}{name} [1, N, C]")
    if prefix == "encoder.":
        return "cast_segmenter_small" if "decoder.cls_emb" in state else "cast_segmenter_small_linear"
    if prefix == "vit_backbone.":
        return "cast_seg_small_voc"
    if "patch_embed.proj.weight" in encoder:
        raise ValueError("these are weights of a ViT with patch embedding, as timm builds them; load them with timm")
    if not any(name.startswith("pool1.") for name in encoder):
        return "vit_conv_small"
    if not any(name.startswith("block_fusion.") for name in encoder):
        return "cast_small" if "pe_token" in encoder else "cast_deit_small"
    if "pe_token" not in encoder:
        return "cast_seg_deit_small"
    if any(name.startswith("head.3.") for name in encoder):
        return "cast_seg_small_retrieval"
    native = CONFIGS["cast_seg_small"]
    large = _side(encoder["pos_embed"].shape[1]) * native.stride >= native.img_size
    return "cast_seg_small" if large else "cast_seg_small_pretrain"


def _shapes(encoder: Mapping[str, Tensor], template: ImageConfig) -> dict[str, Any]:
    """Read width, depths and channels."""
    dim = encoder["cls_token"].shape[2]
    found: dict[str, Any] = {"embed_dim": dim, "in_chans": _size(encoder, "patch_embed.proj.0.weight", 1)}
    if isinstance(template, ViTConfig):
        found["depth"] = len({name.split(".")[1] for name in encoder if name.startswith("blocks.")})
        first = "blocks.0"
    else:
        found["depths"] = read_depths(encoder)
        first = "blocks1.0"
    found["mlp_ratio"] = _size(encoder, f"{first}.mlp.fc1.weight", 0) / max(1, dim)
    return found


def _head(
    prefix: str, encoder: Mapping[str, Tensor], state: Mapping[str, Tensor], template: ImageConfig
) -> dict[str, Any]:
    """Read what comes out."""
    classes = _size(encoder, "head.weight", 0) if "head.weight" in encoder else 0
    if not isinstance(template, CastSegmenterConfig):
        if isinstance(template, CastSegConfig) and template.head == "projector":
            widths = [_size(encoder, f"head.{i}.weight", 0) for i in (0, 3, 6) if f"head.{i}.weight" in encoder]
            return {"num_classes": 0, "projector_dims": tuple(widths)}
        return {"num_classes": classes}
    if prefix == "vit_backbone.":
        return {"num_classes": _size(state, "semantic_classifier.3.weight", 0), "encoder_classes": classes}
    if template.decoder == "linear":
        return {"num_classes": _size(state, "decoder.head.weight", 0), "encoder_classes": classes}
    depth = len({name.split(".")[2] for name in state if name.startswith("decoder.blocks.")})
    return {
        "num_classes": _size(state, "decoder.cls_emb", 1),
        "encoder_classes": classes,
        "decoder_depth": depth,
    }


def _positions(encoder: Mapping[str, Tensor], template: ImageConfig) -> dict[str, Any]:
    """Read the image size, and of a fixed table whether it is its own or resized."""
    table = encoder["pos_embed"]
    side = _side(table.shape[1] - (0 if "pe_token" in encoder else 1))
    if getattr(template, "head", "linear") == "projector":
        return {}  # applied at another size than it was trained at
    found: dict[str, Any] = {"img_size": side * template.stride}
    if isinstance(template, CastSegConfig) and "pe_token" in encoder and template.pos_embed_size:
        own = sincos_2d(side, side, table.shape[2])
        if table.shape[0] == 1 and (table.float() - own).abs().max() < _SAME_TABLE:
            found["pos_embed_size"] = 0
    return found


def _side(cells: int) -> int:
    side = math.isqrt(max(0, cells))
    if side < 1 or side * side != cells:
        raise ValueError(f"expected a pos_embed of a square grid, got one of {cells} cells")
    return side


def _size(state: Mapping[str, Tensor], name: str, axis: int) -> int:
    value = state.get(name, torch.empty(0))
    if value.ndim <= axis or not value.numel():
        raise ValueError(f"expected {name} to tell the model's size, got {tuple(value.shape)}")
    return value.shape[axis]
