"""Names of the published weights (https://github.com/twke18/CAST) and ours, by renaming alone.

The published state dicts hold each block twice: flat, ``blocks.N``, and per stage, ``blocksL.N`` with the flat index
kept (``blocks2.3`` is the first block of the second stage). Those of the "sincos" family also hold the frozen position
table and ``pe_token``, a frozen zero; both are constants of ours, so they are verified instead of loaded.
"""

import math
import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from cast.layers import sincos_2d

from .cast import Cast

# Parts of a pool: ours -> published, below "poolL.pool_block.".
POOL_NAMES = {
    "bias": "centroid_fc.bias",
    "norm.": "centroid_fc.norm.",
    "attn.": "centroid_fc.attn.",
    "norm1.": "fc1.0.",
    "fc1.": "fc1.1.",
    "norm2.": "fc2.0.",
    "fc2.": "fc2.1.",
}
_TABLE_TOLERANCE = 2e-6  # float32 sines of angles up to 27 differ that much between machines


def official_prefixes(depths: Iterable[int]) -> dict[str, tuple[str, ...]]:
    """Return the published names of every module or parameter of a model with these ``depths``.

    Keys that end in a dot are prefixes, the others whole names. The first published name is the canonical one, further
    ones are aliases of the same tensors.
    """
    names: dict[str, tuple[str, ...]] = {name: (name,) for name in ("cls_token", "pos_embed", "norm.", "head.")}
    for i in range(4):  # convolution, norm and activation are three entries of one sequence
        names[f"stem.layers.{i}.conv."] = (f"patch_embed.proj.{3 * i}.",)
        names[f"stem.layers.{i}.norm."] = (f"patch_embed.proj.{3 * i + 1}.",)
    names["stem.proj."] = ("patch_embed.proj.12.",)
    flat = 0
    for level, depth in enumerate(depths):
        for i in range(depth):
            names[f"stages.{level}.blocks.{i}."] = (f"blocks.{flat}.", f"blocks{level + 1}.{flat}.")
            flat += 1
        for ours, published in POOL_NAMES.items():
            names[f"stages.{level}.pool.{ours}"] = (f"pool{level + 1}.pool_block.{published}",)
    return names


def official_names(name: str, depths: Iterable[int]) -> tuple[str, ...]:
    """Return the published names of one of our parameters or buffers, the canonical one first.

    Raises:
        KeyError: A model with these ``depths`` has no such name.
    """
    for ours, published in official_prefixes(depths).items():
        if name == ours or (ours.endswith(".") and name.startswith(ours)):
            return tuple(p + name[len(ours) :] for p in published)
    raise KeyError(name)


def from_official(state_dict: Mapping[str, Tensor], depths: Iterable[int] | None = None) -> dict[str, Tensor]:
    """Rename a published classification state dict to our names.

    Aliases are checked to hold the same values, and the frozen position table and ``pe_token`` of the "sincos" family
    to be what we compute; the latter two are left out. Tensors are passed on, not copied.

    Args:
        state_dict: Published names, without a prefix such as ``module.``.
        depths: Blocks per stage. Default: read from the ``blocksL.N`` names.

    Returns:
        Our names, fit for ``load_state_dict``.

    Raises:
        ValueError: A name is not of this family, aliases differ, or a frozen table is not the published one.
    """
    depths = _depths_of(state_dict) if depths is None else tuple(depths)
    ours_of = {p: ours for ours, published in official_prefixes(depths).items() for p in published}
    state: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    unknown = []
    for name, value in state_dict.items():
        if name == "pe_token" or (name == "pos_embed" and "pe_token" in state_dict):
            _check_constant(name, value)
            continue
        prefix = next((p for p in _prefixes_of(name) if p in ours_of), None)
        if prefix is None:
            unknown.append(name)
            continue
        ours = ours_of[prefix] + name[len(prefix) :]
        if ours in state and not torch.equal(state[ours], value):
            raise ValueError(f"{source[ours]} and {name} should be the same tensor, but differ")
        if ours not in state:
            state[ours], source[ours] = value, name
    if unknown:
        raise ValueError(f"not names of a published classification model with depths {depths}: {_some(unknown)}")
    return state


def to_official(model: Cast) -> dict[str, Tensor]:
    """Return a model's tensors under their published names, aliases and frozen tables included.

    The tensors are those of ``model.state_dict()``, not copies; ``from_official`` is the inverse.
    """
    state = {}
    for name, value in model.state_dict().items():
        for published in official_names(name, model.config.depths):
            state[published] = value
    if model.config.pos_embed == "sincos":
        state["pos_embed"] = model.pos_embed
        state["pe_token"] = torch.zeros_like(model.cls_token).detach()
    return state


def load_official(model: Cast, state_dict: Mapping[str, Tensor]) -> None:
    """Load a published classification state dict into a model.

    Args:
        model: A model of the same shape; one with ``num_classes=0`` for weights without classifier.
        state_dict: Published names, without a prefix such as ``module.``.

    Raises:
        ValueError: A name is unknown or missing, a shape does not fit, or a check of `from_official` fails. Nothing
            has been loaded then.
    """
    state = from_official(state_dict, model.config.depths)
    own = model.state_dict()
    positions = "sincos" if "pe_token" in state_dict else "learned"
    if positions != model.config.pos_embed and "pos_embed" in state_dict:
        raise ValueError(f'the weights have {positions} positions, the model pos_embed="{model.config.pos_embed}"')
    missing = [official_names(name, model.config.depths)[0] for name in own if name not in state]
    unknown = [official_names(name, model.config.depths)[0] for name in state if name not in own]
    shapes = [
        f"{official_names(name, model.config.depths)[0]} {tuple(value.shape)} instead of {tuple(own[name].shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    problems = [
        f"{what}: {_some(names)}"
        for what, names in (("missing", missing), ("unknown", unknown), ("does not fit", shapes))
        if names
    ]
    if problems:
        raise ValueError("the weights are not those of this model; " + "; ".join(problems))
    model.load_state_dict(state)


def _depths_of(names: Iterable[str]) -> tuple[int, ...]:
    """Read the depths from the per-stage names ``blocksL.N``."""
    blocks = {tuple(map(int, found.groups())) for name in names if (found := re.match(r"blocks(\d+)\.(\d+)\.", name))}
    levels = sorted({level for level, _ in blocks})
    depths = tuple(sum(1 for block in blocks if block[0] == level) for level in levels)
    if not depths or levels != list(range(1, len(levels) + 1)):
        raise ValueError("expected names blocks1.N, blocks2.N, ... to read the depths from; pass depths without them")
    return depths


def _prefixes_of(name: str) -> Iterable[str]:
    """Yield a name, and what of it ends in a dot, longest first."""
    yield name
    for i in range(len(name) - 1, -1, -1):
        if name[i] == ".":
            yield name[: i + 1]


def _check_constant(name: str, value: Tensor) -> None:
    if name == "pe_token":
        expected = torch.zeros_like(value)
    else:
        side = math.isqrt(value.shape[1]) if value.ndim == 3 else 0
        if value.ndim != 3 or value.shape[1] != side * side:
            raise ValueError(f"expected a pos_embed [1, N, C] of a square grid, got shape {tuple(value.shape)}")
        expected = sincos_2d(side, side, value.shape[2]).to(value)
    error = (value.detach() - expected).abs().max().item() if value.numel() else 0.0
    if not error <= _TABLE_TOLERANCE:
        raise ValueError(f"{name} is not the published constant: off by {error:g}")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
