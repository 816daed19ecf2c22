"""Models by name."""

import dataclasses
import fnmatch
from typing import Any

from .cast import Cast
from .config import CastConfig, SuperpixelConfig

CLASSES = {CastConfig: Cast}

_DEEP = (6, 3, 3, 3)
_MOCO = CastConfig()
_DEIT = CastConfig(pos_embed="learned", init="deit", superpixels=SuperpixelConfig(bins=5, iterations=15))

CONFIGS: dict[str, CastConfig] = {
    "cast_mini": dataclasses.replace(_MOCO, embed_dim=192),  # not published: for laptops and tests of pipelines
    "cast_small": _MOCO,
    "cast_small_deep": dataclasses.replace(_MOCO, depths=_DEEP),
    "cast_base": dataclasses.replace(_MOCO, embed_dim=768),
    "cast_base_deep": dataclasses.replace(_MOCO, embed_dim=768, depths=_DEEP),
    "cast_deit_small": _DEIT,
    "cast_deit_small_deep": dataclasses.replace(_DEIT, depths=_DEEP),
    "cast_deit_base": dataclasses.replace(_DEIT, embed_dim=768),
    "cast_deit_base_deep": dataclasses.replace(_DEIT, embed_dim=768, depths=_DEEP),
}


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that `create_model` knows and that match a shell pattern, sorted."""
    return sorted(fnmatch.filter(CONFIGS, pattern))


def create_model(name: str, **overrides: Any) -> Cast:
    """Build a model with fresh weights, in train mode.

    Args:
        name: One of `list_models()`.
        **overrides: Fields of `CastConfig` that differ from the named model's, such as ``num_classes=10`` or
            ``num_clusters=(32, 16, 8, 4)``. ``superpixels`` takes a `SuperpixelConfig`, or a dict of the fields of it
            that differ.

    Returns:
        The model, its settings in ``model.config``.

    Raises:
        ValueError: The name or a value is not known or does not fit.
        TypeError: An override is not a field of the config.
    """
    if name not in CONFIGS:
        raise ValueError(f"unknown model {name!r}; known are {', '.join(list_models())}")
    config = CONFIGS[name]
    if isinstance(overrides.get("superpixels"), dict):
        overrides["superpixels"] = dataclasses.replace(config.superpixels, **overrides["superpixels"])
    return Cast(dataclasses.replace(config, **overrides))
