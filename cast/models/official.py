"""Published weights (https://github.com/twke18/CAST) to ours and back, by renaming alone.

What is a constant of ours, the frozen position table and ``pe_token``, is verified instead of loaded. The names are in
`official_names`.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from cast.layers import sincos_2d

from .base import ImageModel, fixed_positions
from .config import CastConfig, ImageConfig
from .official_names import encoder_prefix, official_names, official_prefixes, prefixes_of

_TABLE_TOLERANCE = 2e-6  # float32 sines of angles up to 27 differ that much between machines


def from_official(state_dict: Mapping[str, Tensor], config: ImageConfig) -> dict[str, Tensor]:
    """Rename a published state dict to our names.

    Aliases are checked to hold the same values, and the frozen position table and ``pe_token`` of models with sin-cos
    positions to be what we compute; the latter two are left out. A table of another grid than the model's is the one
    of pretraining, and left out as well. Tensors are passed on, not copied.

    Args:
        state_dict: Published names, without a prefix such as ``module.``.
        config: Of the model that the weights are for.

    Returns:
        Our names, fit for ``load_state_dict``.

    Raises:
        ValueError: A name is not of this family, aliases differ, or a frozen table is not the published one.
    """
    ours_of = {p: ours for ours, published in official_prefixes(config).items() for p in published}
    constants = _constant_names(config)
    state: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    unknown = []
    for name, value in state_dict.items():
        if name in constants:
            _check_constant(name, value, config)
            continue
        prefix = next((p for p in prefixes_of(name) if p in ours_of), None)
        if prefix is None:
            unknown.append(name)
            continue
        ours = ours_of[prefix] + name[len(prefix) :]
        if ours in state and not torch.equal(state[ours], value):
            raise ValueError(f"{source[ours]} and {name} should be the same tensor, but differ")
        if ours not in state:
            state[ours], source[ours] = value, name
    if unknown:
        raise ValueError(f"not names of a published {_described(config)}: {_some(unknown)}")
    return state


def to_official(model: ImageModel) -> dict[str, Tensor]:
    """Return a model's tensors under their published names, aliases and frozen tables included.

    The tensors are those of ``model.state_dict()``, not copies; ``from_official`` is the inverse.
    """
    state = {}
    for name, value in model.state_dict().items():
        for published in official_names(name, model.config):
            state[published] = value
    for name in _constant_names(model.config):
        zero = torch.zeros_like(model.cls_token).detach()
        if name.endswith("pe_token"):
            state[name] = zero
        else:
            state[name] = model.pos_embed if _has_pe_token(model.config) else torch.cat([zero, model.pos_embed], dim=1)
    return state


def load_official(
    model: ImageModel, state_dict: Mapping[str, Tensor], *, partial: bool = False, assign: bool = False
) -> list[str]:
    """Load a published state dict into a model.

    Args:
        model: A model of the same shape; one with ``num_classes=0`` for weights without classifier.
        state_dict: Published names, without a prefix such as ``module.``.
        partial: Start from weights of an earlier stage: parameters that they do not hold stay as they are, a ``head``
            that the model has no place for is left out, and an encoder's names need no ``encoder.`` or
            ``vit_backbone.`` in front.
        assign: Take the tensors over instead of copying them, as a model on the meta device needs.

    Returns:
        Our names that the weights do not hold; none without ``partial``.

    Raises:
        ValueError: A name is unknown or missing, a shape does not fit, or a check of `from_official` fails. Nothing
            has been loaded then.
    """
    config = model.config
    own = model.state_dict()
    _check_positions(state_dict, config)
    if partial:
        state_dict = _as_encoder(state_dict, own, config)
    state = from_official(state_dict, config)
    missing = [name for name in own if name not in state]
    unknown = [official_names(name, config)[0] for name in state if name not in own]
    shapes = [
        f"{official_names(name, config)[0]} {tuple(value.shape)} instead of {tuple(own[name].shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    lacking = [] if partial and state else [official_names(name, config)[0] for name in missing]
    problems = [
        f"{what}: {_some(names)}"
        for what, names in (("missing", lacking), ("unknown", unknown), ("does not fit", shapes))
        if names
    ]
    if problems:
        raise ValueError("the weights are not those of this model; " + "; ".join(problems))
    model.load_state_dict(state, strict=not partial, assign=assign)
    return missing


def _as_encoder(state_dict: Mapping[str, Tensor], own: Mapping[str, Tensor], config: ImageConfig) -> dict[str, Tensor]:
    """Put the encoder's prefix before names that lack it, and leave out a head that the model has no place for."""
    prefix = encoder_prefix(config)
    decoder = official_prefixes(config).get("decoder.", ())
    state = {}
    for name, value in state_dict.items():
        bare = name.removeprefix(prefix)
        if name.startswith(decoder):
            state[name] = value
        elif not bare.startswith("head.") or (bare in own and own[bare].shape == value.shape):
            state[prefix + bare] = value
    return state


def _has_pe_token(config: ImageConfig) -> bool:
    return isinstance(config, CastConfig) and config.pos_embed == "sincos"


def _constant_names(config: ImageConfig) -> tuple[str, ...]:
    """Return the published names of what is a constant of ours."""
    prefix = encoder_prefix(config)
    if _has_pe_token(config):
        return f"{prefix}pos_embed", f"{prefix}pe_token"
    return () if isinstance(config, CastConfig) else (f"{prefix}pos_embed",)


def _check_positions(state_dict: Mapping[str, Tensor], config: ImageConfig) -> None:
    if not isinstance(config, CastConfig) or not any(name.endswith("pos_embed") for name in state_dict):
        return
    positions = "sincos" if any(name.endswith("pe_token") for name in state_dict) else "learned"
    if positions != config.pos_embed:
        raise ValueError(f'the weights have {positions} positions, the model pos_embed="{config.pos_embed}"')


def _check_constant(name: str, value: Tensor, config: ImageConfig) -> None:
    expected = torch.zeros_like(value) if name.endswith("pe_token") else _expected_table(name, value, config)
    error = (value.detach() - expected).abs().max().item() if value.numel() else 0.0
    if not error <= _TABLE_TOLERANCE:
        raise ValueError(f"{name} is not the published constant: off by {error:g}{_hint(value, config)}")


def _expected_table(name: str, value: Tensor, config: ImageConfig) -> Tensor:
    rows = 0 if _has_pe_token(config) else 1  # of the class token
    side = math.isqrt(max(0, value.shape[1] - rows)) if value.ndim == 3 else 0
    if value.ndim != 3 or value.shape[1] != rows + side * side:
        raise ValueError(f"expected a {name} [1, N, C] of a square grid, got shape {tuple(value.shape)}")
    native = side == config.img_size // config.stride and value.shape[2] == config.embed_dim
    table = fixed_positions(config) if native else sincos_2d(side, side, value.shape[2])
    return torch.cat([torch.zeros(1, rows, value.shape[2]), table], dim=1).to(value)


def _hint(value: Tensor, config: ImageConfig) -> str:
    """Say so if the table would be that of another ``pos_embed_size``."""
    size = getattr(config, "pos_embed_size", None)
    if size is None or value.ndim != 3 or value.shape[1] != (config.img_size // config.stride) ** 2:
        return ""
    return f"; the model has pos_embed_size={size}, these weights may need {0 if size else 224}"


def _described(config: ImageConfig) -> str:
    depths = f" with depths {config.depths}" if isinstance(config, CastConfig) else ""
    return f"{config.kind} model{depths}"


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
