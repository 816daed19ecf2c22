"""What published checkpoints put around their weights, and the way to the weights inside.

A checkpoint is a state dict, or a mapping that holds one beside an optimizer and the like. In it, names may carry the
prefixes of wrappers, and of the part of a training that they belong to.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel and torch.compile put them before every name


@dataclass(frozen=True)
class Weights:
    """The weights in a checkpoint.

    Attributes:
        layout: What kind of checkpoint it is: "moco", "probe", "deit", "spml", "segmenter" or "state dict".
        state: Tensors by published name, or by ours, without any prefix.
        used: Where in the file they come from.
        left: What else is in the file, and what it is.
    """

    layout: str
    state: dict[str, Tensor]
    used: str
    left: dict[str, str] = field(default_factory=dict)


def unwrap(content: Any, *, encoder: str = "base", weights: str = "model", projector: bool = False) -> Weights:
    """Find the weights in what a checkpoint holds.

    Args:
        content: What the file holds.
        encoder: Which encoder of MoCo-v3 pre-training, "base" or "momentum".
        weights: Which weights of a DeiT training, "model" or "ema".
        projector: Whether the projector of MoCo-v3 pre-training is taken as well, as ``head.``.

    Raises:
        ValueError: It holds no state dict of tensors, or not what is asked for.
    """
    for name, value, choices in (("encoder", encoder, ("base", "momentum")), ("weights", weights, ("model", "ema"))):
        if value not in choices:
            raise ValueError(f"expected {name} to be {' or '.join(map(repr, choices))}, got {value!r}")
    if not isinstance(content, Mapping):
        raise ValueError("expected a state dict of tensors by name")
    if isinstance(content.get("embedding_model"), Mapping):
        found = _spml(content)
    elif isinstance(content.get("model"), Mapping):
        found = _deit_or_segmenter(content, weights)
    elif isinstance(content.get("state_dict"), Mapping):
        found = _moco_or_probe(content, encoder, projector)
    else:
        found = _encoder_of(_plain(content), encoder, "the file", {}, projector)
    if projector and not (found.layout == "moco" and any(name.startswith("head.") for name in found.state)):
        raise ValueError("there is no projector of MoCo-v3 pre-training in this checkpoint")
    if encoder == "momentum" and found.layout != "moco":
        raise ValueError("there is no momentum encoder in this checkpoint")
    if weights == "ema" and found.layout != "deit":
        raise ValueError("there is no moving average of the weights (model_ema) in this checkpoint")
    if not found.state:
        raise ValueError("expected a state dict of tensors, got an empty one")
    return found


def _moco_or_probe(content: Mapping[str, Any], encoder: str, projector: bool) -> Weights:
    others = _others(content, "state_dict")
    found = _encoder_of(_plain(content["state_dict"]), encoder, "state_dict", others, projector)
    if found.layout == "state dict" and "best_acc1" in content:
        return Weights("probe", found.state, found.used, found.left)
    return found


def _encoder_of(state: dict[str, Tensor], encoder: str, place: str, left: dict[str, str], projector: bool) -> Weights:
    """Take one encoder of MoCo-v3 pre-training, or everything if there is none."""
    if not any(name.startswith(("base_encoder.", "momentum_encoder.")) for name in state):
        return Weights("state dict", state, place, left)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = value
    wanted = f"{encoder}_encoder"
    if wanted not in parts:
        raise ValueError(f"there is no {encoder} encoder in this checkpoint")
    # its head is the projector of the contrastive loss, not a classifier
    head = {name for name in parts[wanted] if name.startswith("head.") and not projector}
    left = left | {part: f"{len(names)} tensors" for part, names in parts.items() if part != wanted}
    if head:
        left[f"{wanted}.head"] = f"{len(head)} tensors, the projector of the contrastive loss"
    taken = {name: value for name, value in parts[wanted].items() if name not in head}
    return Weights("moco", taken, f"{place}: {wanted}", left)


def _deit_or_segmenter(content: Mapping[str, Any], weights: str) -> Weights:
    state = _plain(content["model"])
    if any(name.startswith("encoder.") for name in state):
        return Weights("segmenter", state, "model", _others(content, "model"))
    if weights == "model":
        training = {"model_ema", "optimizer", "lr_scheduler", "args"} & content.keys()
        return Weights("deit" if training else "state dict", state, "model", _others(content, "model"))
    if not isinstance(content.get("model_ema"), Mapping):
        raise ValueError("there is no moving average of the weights (model_ema) in this checkpoint")
    return Weights("deit", _plain(content["model_ema"]), "model_ema", _others(content, "model_ema"))


def _spml(content: Mapping[str, Any]) -> Weights:
    used = [name for name in ("embedding_model", "prediction_model") if content.get(name)]
    state: dict[str, Tensor] = {}
    for part in used:
        state |= _plain(content[part])
    if len(used) == 1:  # an encoder alone
        state = {name.removeprefix("vit_backbone."): value for name, value in state.items()}
    return Weights("spml", state, " and ".join(used), _others(content, *used))


def _others(content: Mapping[str, Any], *used: str) -> dict[str, str]:
    """Say what else a checkpoint holds."""
    return {str(name): _describe(value) for name, value in content.items() if name not in used}


def _describe(value: Any) -> str:
    if isinstance(value, bool | int | float | str | None):
        return repr(value) if len(repr(value)) <= 60 else f"a text of {len(str(value))} characters"
    if isinstance(value, Mapping | list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def _plain(state: Any) -> dict[str, Tensor]:
    """Check that this is a state dict and remove what wrappers put before its names."""
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ValueError("expected a state dict of tensors by name")
    plain = {_unwrapped(name): value for name, value in state.items()}
    if len(plain) < len(state):
        raise ValueError(f"the same parameter is there with and without a prefix ({' or '.join(_WRAPPERS)})")
    if not plain or not all(isinstance(value, Tensor) for value in plain.values()):
        raise ValueError("expected a state dict of tensors")
    return plain


def _unwrapped(name: str) -> str:
    while prefix := next((p for p in _WRAPPERS if name.startswith(p)), ""):
        name = name.removeprefix(prefix)
    return name
