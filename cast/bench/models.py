"""The models that are measured, by name: ours, and the ones that they are compared with."""

import dataclasses
import importlib
from collections.abc import Callable

import torch
from torch import nn

from cast.models import CastConfig, SuperpixelConfig, ViTConfig, create_model
from cast.models.registry import CONFIGS

from .published import PublishedForward
from .setting import UNSET

SEED = 0
GAIN = 2.5


class Missing(Exception):
    """A peer cannot be built here; the message says why."""


def build(name: str, size: int = 224, quality: str = UNSET) -> nn.Module:
    """Build a model with random weights that are the same in every run, in eval mode, on the CPU in float32.

    Args:
        name: One of `known`; ours may say their granularity, as "cast_small:324/128/64/32/16": the superpixels at this
            size, then the segments that each stage leaves.
        size: Height and width of its images.
        quality: Of the superpixels that ours make, in order "parallel"; "-" = as the model's settings say.

    Raises:
        Missing: What it needs is not installed.
        ValueError: The name is not known, or the model does not take the size or granularity.
    """
    check_name(name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)
        model = PEERS[name](size) if name in PEERS else _ours(name, size, quality)
        _spread(model)
    return model.eval()


@torch.no_grad()
def _spread(model: nn.Module) -> None:
    """Scale linear layers up: with fresh weights logits depend on the image by no more than bf16 rounds them."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight *= GAIN


def check_name(name: str) -> None:
    """Raise ValueError unless `build` knows the name."""
    base, colon, counts = name.partition(":")
    if base not in known():
        raise ValueError(f"unknown model {base!r}; known are {', '.join(known())}")
    if colon and (not base.startswith("cast_") or not all(count.isdecimal() for count in counts.split("/"))):
        raise ValueError(f"expected a granularity only with our models, as in cast_small:196/64/32/16/8, got {name!r}")


def known() -> list[str]:
    """Return all names, sorted."""
    return sorted({*PEERS, *(name for name, config in CONFIGS.items() if type(config) in (CastConfig, ViTConfig))})


def _ours(name: str, size: int, quality: str = UNSET) -> nn.Module:
    base, _, counts = name.partition(":")
    if not base.startswith("cast_"):
        return create_model(base, img_size=size)
    config = CONFIGS[base]
    # As many superpixels as a ViT has patches: 196 at 224 pixels.
    count = max(1, round(config.superpixels.num_superpixels * size**2 / config.img_size**2))
    clusters = config.num_clusters
    if counts:
        count, *clusters = (int(number) for number in counts.split("/"))
    return create_model(
        base,
        img_size=size,
        num_clusters=tuple(clusters),
        superpixels=superpixel_settings(config.superpixels, count, quality),
    )


def superpixel_settings(settings: SuperpixelConfig, count: int, quality: str) -> SuperpixelConfig:
    """Return settings for another number of superpixels and, unless it is "-", a quality, which is that of an order."""
    chosen = {} if quality == UNSET else {"order": "parallel", "quality": quality}
    return dataclasses.replace(settings, num_superpixels=count, **chosen)


def _published(name: str, *, sampling: bool = True) -> Callable[[int], nn.Module]:
    return lambda size: PublishedForward(_ours(f"cast_{name}", size), sampling=sampling)


def _timm(name: str, **options: object) -> nn.Module:
    try:
        timm = importlib.import_module("timm")
    except Exception as error:  # timm imports torchvision, which raises anything where it was built for another torch
        raise Missing(f"timm does not import ({error}); pip install 'cast-kernels[bench]'") from error
    return timm.create_model(name, **options)


def _vit(name: str) -> Callable[[int], nn.Module]:
    return lambda size: _timm(f"vit_{name}_patch16_224", img_size=size)


def _swin(size: int) -> nn.Module:
    return _timm("swin_tiny_patch4_window7_224", img_size=size, drop_path_rate=0.0)  # no other drops branches


def _tome(name: str, merged: int = 16) -> Callable[[int], nn.Module]:
    """ToMe's own patch of a timm ViT, merging as many tokens per block as in the paper's comparison (E.6)."""

    def make(size: int) -> nn.Module:
        try:
            tome = importlib.import_module("tome")
        except Exception as error:
            raise Missing(f"ToMe (github.com/facebookresearch/ToMe) does not import: {error}") from error
        model = _vit(name)(size)
        try:
            tome.patch.timm(model)
        except Exception as error:  # it follows the timm of 2022
            raise Missing(f"ToMe does not patch this timm: {error}") from error
        model.r = merged
        return model

    return make


PEERS: dict[str, Callable[[int], nn.Module]] = {
    "vit_small": _vit("small"),
    "vit_base": _vit("base"),
    "published_small": _published("small"),
    "published_base": _published("base"),
    "published_small_without_sampling": _published("small", sampling=False),
    "published_base_without_sampling": _published("base", sampling=False),
    "swin_tiny": _swin,
    "tome_small": _tome("small"),
    "tome_base": _tome("base"),
}
