"""What a model is built from: plain values, written to and read from JSON."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from cast.layers.graph_pool import MAX_KAPPA
from cast_kernels import seeds

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class SuperpixelConfig:
    """Settings of the SEEDS superpixels that a model makes of an image; see `cast_kernels.seeds` for their ranges.

    Attributes:
        num_superpixels: Number asked for at ``img_size``; scaled by area for other sizes.
        bins: Colour histogram bins per channel.
        iterations: Pixel-level passes.
        prior: Smoothness of the shape, 0 to 5.
        num_levels: Block levels.
        double_step: Whether each block level runs twice.
        order: Schedule of the updates.

    Raises:
        ValueError: `cast_kernels.seeds` does not take a value.
    """

    num_superpixels: int = 196
    bins: int = 15
    iterations: int = 20
    prior: int = 2
    num_levels: int = 1
    double_step: bool = False
    order: str = "sequential"

    def __post_init__(self) -> None:
        # SEEDS itself checks its arguments: of an empty batch without memory there is nothing else to do.
        nothing = torch.empty(0, 16, 16, 3, dtype=torch.uint8, device="meta")
        try:
            seeds(nothing, **dataclasses.asdict(self))
        except (TypeError, ValueError) as error:
            raise ValueError(f"superpixels: {error}") from None


@dataclass(frozen=True)
class CastConfig:
    """Everything that `Cast` needs to be built.

    Attributes:
        img_size: Height and width of the images it is meant for, a multiple of 8: where the learned position table and
            the number of superpixels are stated. Other sizes are accepted.
        in_chans: Image channels. SEEDS needs the 3 of RGB: with others, a model has to be given its superpixels.
        embed_dim: Width C.
        depths: Transformer blocks per stage.
        num_heads: Attention heads, in blocks and pools.
        mlp_ratio: Hidden width of blocks and pools, in multiples of ``embed_dim``.
        num_clusters: Granularity: the segments that remain after each stage.
        num_classes: Width of the classifier; 0 = none.
        pos_embed: "sincos" (fixed) or "learned", which also has a row for the class token.
        init: "moco" or "deit", the rule that fresh weights follow.
        pool_dropout: Dropout in each pool while training.
        drop_path: Probability of dropping a residual branch in the last block while training; it grows linearly from 0
            in the first. The published DeiT training uses 0.1, everything else 0.
        kappa: Sharpness of the assignment of segments to clusters, in (0, 40].
        mean: Channel means that images in [0, 1] are normalised with.
        std: Channel deviations that images in [0, 1] are normalised with.
        superpixels: How superpixels are made.
        pool_before_proj: Whether the stem's projection follows the average over superpixels or, as published, comes
            before it. Both are linear, so the results are equal to rounding; following costs 2.8 % fewer FLOPs.

    Raises:
        ValueError: A value is out of range, or values contradict each other.
    """

    img_size: int = 224
    in_chans: int = 3
    embed_dim: int = 384
    depths: tuple[int, ...] = (3, 3, 3, 2)
    num_heads: int = 12
    mlp_ratio: float = 4.0
    num_clusters: tuple[int, ...] = (64, 32, 16, 8)
    num_classes: int = 1000
    pos_embed: str = "sincos"
    init: str = "moco"
    pool_dropout: float = 0.1
    drop_path: float = 0.0
    kappa: float = 5.0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    superpixels: SuperpixelConfig = field(default_factory=SuperpixelConfig)
    pool_before_proj: bool = True

    def __post_init__(self) -> None:
        for name in ("depths", "num_clusters", "mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, tuple | list):  # JSON gives lists
                raise ValueError(f"expected {name} to be a tuple or a list, got {values!r}")
            object.__setattr__(self, name, tuple(values))
        if isinstance(self.superpixels, dict):
            object.__setattr__(self, "superpixels", _from_dict(SuperpixelConfig, self.superpixels))
        if not isinstance(self.superpixels, SuperpixelConfig):
            raise ValueError(
                f"expected superpixels to be a SuperpixelConfig or a dict of its values, got {self.superpixels!r}"
            )
        self._check_structure()
        self._check_ranges()

    def _check_structure(self) -> None:
        for name in ("img_size", "in_chans", "embed_dim", "num_heads"):
            _check_integer(name, getattr(self, name))
        for name in ("depths", "num_clusters"):
            for value in getattr(self, name):
                _check_integer(name, value)
        if self.img_size % 8:
            raise ValueError(f"expected img_size to be a multiple of 8, got {self.img_size}")
        if self.embed_dim % 8 or self.embed_dim % self.num_heads:
            raise ValueError(
                f"expected embed_dim to be a multiple of 8 and of num_heads, got embed_dim={self.embed_dim} "
                f"and num_heads={self.num_heads}"
            )
        if not self.depths or len(self.depths) != len(self.num_clusters):
            raise ValueError(
                f"expected as many num_clusters as depths, got {len(self.num_clusters)} and {len(self.depths)}"
            )
        if any(coarse > fine for fine, coarse in zip(self.num_clusters, self.num_clusters[1:], strict=False)):
            raise ValueError(f"expected num_clusters from fine to coarse, got {self.num_clusters}")

    def _check_ranges(self) -> None:
        _check_integer("num_classes", self.num_classes, least=0)
        if self.pos_embed not in ("sincos", "learned"):
            raise ValueError(f'expected pos_embed "sincos" or "learned", got {self.pos_embed!r}')
        if self.init not in ("moco", "deit"):
            raise ValueError(f'expected init "moco" or "deit", got {self.init!r}')
        for name in ("mlp_ratio", "pool_dropout", "drop_path", "kappa"):
            _check_finite(name, getattr(self, name))
        for value in (*self.mean, *self.std):
            _check_finite("mean and std", value)
        if int(self.embed_dim * self.mlp_ratio) < 1:
            raise ValueError(
                f"expected mlp_ratio to leave at least one of {self.embed_dim} channels, got {self.mlp_ratio}"
            )
        if not 0.0 < self.kappa <= MAX_KAPPA:
            raise ValueError(f"expected kappa in (0, {MAX_KAPPA:g}], got {self.kappa}")
        for name in ("pool_dropout", "drop_path"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"expected {name} in [0, 1), got {getattr(self, name)}")
        if not isinstance(self.pool_before_proj, bool):
            raise ValueError(f"expected pool_before_proj to be True or False, got {self.pool_before_proj!r}")
        if len(self.mean) != self.in_chans or len(self.std) != self.in_chans or min(self.std) <= 0:
            raise ValueError(f"expected mean and positive std of {self.in_chans} channels, got {self.mean}, {self.std}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, from which `from_dict` makes an equal config."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CastConfig":
        """Build a config from what `to_dict` returned; an unknown name is a ValueError."""
        return _from_dict(cls, values)


def _from_dict(cls: type, values: dict[str, Any]) -> Any:
    unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
    if unknown:
        raise ValueError(f"unknown {cls.__name__} values: {', '.join(unknown)}")
    return cls(**values)


def _check_integer(name: str, value: Any, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"expected integer {name} >= {least}, got {value!r}")


def _check_finite(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"expected {name} to be finite numbers, got {value!r}")
