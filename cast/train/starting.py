"""Weights that a run starts from: folders of saved models, published checkpoints, plain state dicts."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cast._weight_files import read_weights
from cast.checkpoints import build_official
from cast.models import build_model, from_pretrained
from cast.models.base import ImageModel
from cast.models.config import CastConfig, ImageConfig
from cast.models.official import load_official
from cast.models.trunk import Trunk
from cast.shipped import resolve

from .config import TrainConfig
from .networks import build_network, check_fits, check_superpixels

_SHOWN = 5  # names in a message


def load_start(model: ImageModel, config: TrainConfig) -> None:
    """Load ``config.weights``, if there are any, into a network that is going to be trained.

    All of it but its head has to be there; the head is taken over where it is of the same shape. After published
    weights a network makes superpixels in OpenCV's order, as those were trained with, unless ``model_overrides`` say
    how.

    Raises:
        ValueError: The weights cannot be read or are not those of this network.
    """
    if not config.weights:
        return
    path = resolve(config.weights)
    source = from_pretrained(path) if path.is_dir() else None
    state = read_weights(path).state if source is None else source.state_dict()
    try:
        if source is not None:
            _check_heads(source.config, model.config)
        if not _is_published(state):
            _load_own(model, state)
            return
        _check_missing(load_official(model, state, partial=True))
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"the weights in {path} do not fit {config.model}: {error}") from error
    if isinstance(model, Trunk) and "superpixels" not in config.model_overrides:
        model.config = dataclasses.replace(model.config, superpixels=model.config.superpixels.as_published())


def load_encoder(config: TrainConfig) -> ImageModel:
    """Build the network that ``config.weights`` are of, without a head.

    Folders of saved models and published checkpoints tell which model they are of; ``config.model`` is for state dicts
    in this package's names, and for no weights at all: then they are random.

    Returns:
        The network in eval mode, in float32.

    Raises:
        ValueError: The weights cannot be read, or are not of a model for whole images that fits the settings.
    """
    if not config.weights:
        model = build_network(config, num_classes=0)
    elif (path := resolve(config.weights)).is_dir():
        model = _with_overrides(from_pretrained(path), config.model_overrides)
    else:
        found = read_weights(path)
        if _is_published(found.state):
            settings = dict(config.model_overrides)
            own = {"superpixels": settings.pop("superpixels")} if "superpixels" in settings else {}
            try:
                model = _with_overrides(build_official(found, path, **settings).model, own)
            except TypeError as error:  # no field of the config
                raise ValueError(f"model_overrides do not fit the weights: {error}") from error
        else:
            model = build_network(config, num_classes=0)
            load_start(model, config)
    check_fits(model.config, f"a {model.config.kind} from {config.weights}")
    if config.compat and isinstance(model.config, CastConfig):
        model.config = dataclasses.replace(model.config, compat=config.compat)
    check_superpixels(model.config, config.img_size)
    model.reset_classifier(0)
    model.float().init_non_persistent_buffers()  # of weights in half precision, positions too are made in it
    return model.eval()


def _is_published(state: Mapping[str, Tensor]) -> bool:
    return any("patch_embed." in name for name in state)


def _load_own(model: ImageModel, state: Mapping[str, Tensor]) -> None:
    """Load tensors by this package's names."""
    own = model.state_dict()
    state = {
        name: value
        for name, value in state.items()
        if not name.startswith("head.") or (name in own and own[name].shape == value.shape)
    }
    # of a head that does not fit whole, nothing: its layers belong together
    if any(name.startswith("head.") and name not in state for name in own):
        state = {name: value for name, value in state.items() if not name.startswith("head.")}
    found = model.load_state_dict(state, strict=False)
    if found.unexpected_keys:
        raise ValueError(f"unknown: {_some(found.unexpected_keys)}")
    _check_missing(found.missing_keys)


def _check_missing(names: list[str]) -> None:
    if missing := [name for name in names if not name.startswith("head.")]:
        raise ValueError(f"missing: {_some(missing)}")


def _check_heads(found: ImageConfig, wanted: ImageConfig) -> None:
    """Attention heads are the one part of a size that no shape of a weight tells."""
    if found.num_heads != wanted.num_heads:
        raise ValueError(f"they are of a model with {found.num_heads} attention heads, not {wanted.num_heads}")


def _with_overrides(model: ImageModel, overrides: Mapping[str, Any]) -> ImageModel:
    """Return the model with changed settings, as far as its weights fit them."""
    if not overrides:
        return model
    changes = dict(overrides)
    if isinstance(changes.get("superpixels"), dict) and isinstance(model.config, CastConfig):
        changes["superpixels"] = model.config.superpixels.replace(**changes["superpixels"])
    try:
        changed = build_model(dataclasses.replace(model.config, **changes))
        changed.load_state_dict(model.state_dict())
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"model_overrides do not fit the weights: {error}") from error
    return changed


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
