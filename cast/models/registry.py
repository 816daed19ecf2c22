"""Models by name."""

import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import Any

from torch import nn

from cast._timm import import_timm

from .base import ImageModel
from .cast import Cast
from .cast_seg import CastSeg
from .cast_segmenter import CastSegmenter
from .config import CastConfig, CastSegConfig, CastSegmenterConfig, ImageConfig, SuperpixelConfig, ViTConfig
from .extractor import FeatureExtractor
from .vit import ViT

CLASSES: dict[type[ImageConfig], type[ImageModel]] = {
    CastConfig: Cast,
    CastSegConfig: CastSeg,
    CastSegmenterConfig: CastSegmenter,
    ViTConfig: ViT,
}

_SIZES: dict[str, dict[str, Any]] = {
    "small": {},
    "small_deep": {"depths": (6, 3, 3, 3)},
    "base": {"embed_dim": 768},
    "base_deep": {"embed_dim": 768, "depths": (6, 3, 3, 3)},
}
_MOCO = CastConfig()
_DEIT = CastConfig(pos_embed="learned", init="deit", superpixels=SuperpixelConfig(bins=5))
_SEG = CastSegConfig(pos_embed_size=224)
_SEG_PRETRAIN = CastSegConfig(
    stage="pretrain",
    img_size=224,
    num_classes=1000,
    num_clusters=_MOCO.num_clusters,
    superpixels=_MOCO.superpixels,
)
_VOC = CastSegmenterConfig(stage="segmentation", decoder="conv", pos_embed_size=224)
_DEIT_ENCODER = {
    "stage": "encoder",
    "img_size": 224,
    "pos_embed": "learned",
    "init": "deit",
    "superpixels": SuperpixelConfig(num_superpixels=196, bins=5),  # one per 256 pixels
}
_SEG_DEIT = CastSegConfig(num_classes=1000, **_DEIT_ENCODER)
_SEGMENTER = CastSegmenterConfig(num_classes=150, encoder_classes=1000, **_DEIT_ENCODER)


def _sizes(pattern: str, config: CastConfig) -> dict[str, ImageConfig]:
    return {pattern.format(size): dataclasses.replace(config, **changes) for size, changes in _SIZES.items()}


CONFIGS: dict[str, ImageConfig] = {
    "cast_mini": dataclasses.replace(_MOCO, embed_dim=192),  # not published: for laptops and tests of pipelines
    **_sizes("cast_{}", _MOCO),
    **_sizes("cast_deit_{}", _DEIT),
    **_sizes("cast_seg_{}", _SEG),
    **_sizes("cast_seg_{}_pretrain", _SEG_PRETRAIN),
    **_sizes("cast_seg_{}_retrieval", dataclasses.replace(_SEG, head="projector", num_classes=0)),
    **_sizes("cast_seg_{}_voc", _VOC),
    **_sizes("cast_seg_deit_{}", _SEG_DEIT),
    **_sizes("cast_segmenter_{}", _SEGMENTER),
    **_sizes("cast_segmenter_{}_linear", dataclasses.replace(_SEGMENTER, decoder="linear")),
    "vit_conv_small": ViTConfig(),
    "vit_conv_base": ViTConfig(embed_dim=768),
}

# Baselines that timm builds; `create_model` passes on what it is given.
TIMM_NAMES = {
    "vit_deit_tiny": "deit_tiny_patch16_224",
    "vit_deit_small": "deit_small_patch16_224",
    "vit_deit_base": "deit_base_patch16_224",
}


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of this package's models that match a shell pattern, sorted."""
    return sorted(fnmatch.filter(CONFIGS, pattern))


def create_model(
    name: str,
    *,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    output_fmt: str = "levels",
    **overrides: Any,
) -> nn.Module:
    """Build a model with fresh weights, in train mode.

    Args:
        name: One of `list_models()`; or ``vit_deit_tiny``, ``vit_deit_small`` or ``vit_deit_base``, which timm builds.
        **overrides: Fields of the model's config that differ from the named model's, such as ``num_classes=10`` or
            ``num_clusters=(32, 16, 8, 4)``. ``superpixels`` takes a `SuperpixelConfig`, or a dict of the fields of it
            that differ; with ``compat`` they start from the published ones. For timm's models, the arguments of
            ``timm.create_model``.
        features_only: Whether the model returns features of several levels instead of classes; see `FeatureExtractor`.
        out_indices: Which levels, with ``features_only``; None = all, an integer n = the last n.
        output_fmt: Their form, with ``features_only``: "levels" (tokens and label map), "NLC" or "NCHW". timm's
            models return maps.

    Returns:
        The model, its settings in ``model.config``; a `FeatureExtractor` around it; or timm's.

    Raises:
        ValueError: The name or a value is not known or does not fit.
        TypeError: An override is not a field of the config.
        ImportError: The model is timm's, and timm is not installed.
    """
    if name in TIMM_NAMES:
        if features_only:
            if output_fmt not in ("levels", "NCHW", "maps"):
                raise ValueError(f'expected output_fmt="NCHW": {name} is timm\'s and returns maps, got {output_fmt!r}')
            overrides |= {"features_only": True, "out_indices": out_indices}
        return import_timm().create_model(TIMM_NAMES[name], **overrides)
    if name not in CONFIGS:
        raise ValueError(f"unknown model {name!r}; known are {', '.join([*list_models(), *TIMM_NAMES])}")
    config = CONFIGS[name]
    if overrides.get("compat") and isinstance(config, CastConfig):
        config = dataclasses.replace(config, superpixels=config.superpixels.as_published())
    if isinstance(overrides.get("superpixels"), dict) and isinstance(config, CastConfig):
        overrides["superpixels"] = config.superpixels.replace(**overrides["superpixels"])
    model = build_model(dataclasses.replace(config, **overrides))
    return FeatureExtractor(model, out_indices, output_fmt) if features_only else model


def build_model(config: ImageConfig) -> ImageModel:
    """Build the model that a config is of, with fresh weights, in train mode."""
    return CLASSES[type(config)](config)
