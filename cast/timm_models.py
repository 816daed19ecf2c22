"""The models of this package by name in timm's registry: `register_timm`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cast._timm import import_timm
from cast.models import ImageConfig, create_model, list_models
from cast.models.features import data_settings
from cast.models.registry import CONFIGS

__all__ = ["register_timm"]  # timm adds the names of the models that it finds here
default_cfgs: dict[str, Any] = {}  # where timm looks for the data settings of each

_OF_THE_MODEL = ("input_size", "num_classes", "mean", "std")  # settings that follow from how a model is built


def register_timm() -> list[str]:
    """Make ``timm.create_model("cast_small", num_classes=10)`` work, and the same for every model of `list_models`.

    timm's names of options are understood: ``in_chans`` (all channels are normalised with the average over those of
    RGB where there are not 3, and such models have to be given their superpixels), ``num_classes``, ``drop_path_rate``,
    ``img_size`` (an integer or a square), ``features_only`` with ``out_indices`` (which give maps, as timm does, unless
    ``output_fmt`` says otherwise), ``device`` and ``dtype``. These models pool by ``global_pool="token"`` and have
    ``drop_rate=0``; other values are refused. Fields of the model's config pass through. There are no weights for
    ``pretrained=True`` to fetch; ``checkpoint_path=`` loads a state dict of this package.

    A model has ``pretrained_cfg``, from which ``timm.data.resolve_model_data_config`` makes the transforms.

    Returns:
        The names that timm knows now, sorted. Calling it again changes nothing.

    Raises:
        ImportError: timm cannot be imported.
        ValueError: timm has another model of one of these names.
    """
    timm = import_timm()
    from timm.models import generate_default_cfgs, register_model

    names = list_models()
    new = [name for name in names if not timm.is_model(name)]
    for name in names:
        if name not in new and timm.models.model_entrypoint(name) is not globals().get(name):
            raise ValueError(f"timm has another model named {name!r} already")
    default_cfgs.update(generate_default_cfgs({name: _registered_settings(CONFIGS[name]) for name in new}))
    for name in new:
        globals()[name] = register_model(_entrypoint(name))
    return names


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    def build(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: Any = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> nn.Module:
        from timm.models import resolve_pretrained_cfg

        if pretrained:
            raise ValueError(f"there are no weights to fetch for {name}; give those you have as checkpoint_path")
        settings = resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay).to_dict()
        model = create_model(name, **_translate(options, settings["mean"], settings["std"])).to(device, dtype)
        own = data_settings(model.config)
        model.pretrained_cfg = own | settings | {key: own[key] for key in _OF_THE_MODEL}
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"Return {name} with fresh weights; options as `register_timm` says."
    return build


def _translate(options: dict[str, Any], mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Any]:
    """Return the options of `create_model` that options in timm's names mean, for images normalised as told."""
    options = dict(options)
    for name, only in (("drop_rate", 0.0), ("global_pool", "token")):
        if options.pop(name, only) != only:
            raise ValueError(f"expected {name}={only!r}, which is all that these models have")
    if "drop_path_rate" in options:
        options["drop_path"] = options.pop("drop_path_rate")
    size = options.get("img_size")
    if isinstance(size, tuple | list):
        if len(set(size)) != 1:
            raise ValueError(f"expected a square img_size, got {size}; models take images of other shapes all the same")
        options["img_size"] = size[0]
    if options.get("features_only"):
        options.setdefault("output_fmt", "NCHW")
    channels = options.get("in_chans", 3)
    for name, values in (("mean", mean), ("std", std)):
        options.setdefault(name, values if len(values) == channels else (sum(values) / len(values),) * channels)
    return options


def _registered_settings(config: ImageConfig) -> dict[str, Any]:
    """Return the data settings of a model without those that timm does not know."""
    return {key: value for key, value in data_settings(config).items() if key != "superpixels"}
