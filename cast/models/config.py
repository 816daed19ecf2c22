"""What a model is built from: plain values, written to and read from JSON."""

import dataclasses
import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Self

import torch

from cast.layers.graph_pool import MAX_KAPPA
from cast_kernels import seeds, seeds_count

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PUBLISHED_ITERATIONS = {15: 20, 5: 15}  # of SEEDS in OpenCV's order, by its colour bins
_ORDER_OPTIONS = ("quality", "iterations", "prior", "num_levels", "double_step")  # each of one order only


@dataclass(frozen=True)
class SuperpixelConfig:
    """Settings of the SEEDS superpixels that a model makes of an image; see `cast_kernels.seeds` for their ranges.

    Options of one order are None with the other; with their own, None is the default of `cast_kernels.seeds`.

    Attributes:
        num_superpixels: Number asked for at ``img_size``; scaled by area for other sizes.
        bins: Colour histogram bins per channel.
        order: "parallel", or "sequential": OpenCV's, with which all published weights were trained.
        quality: Of order "parallel": "best" or "fast".
        iterations: Of order "sequential": pixel-level passes.
        prior: Of order "sequential": smoothness of the shape, 0 to 5.
        num_levels: Of order "sequential": block levels.
        double_step: Of order "sequential": whether each block level runs twice.

    Raises:
        ValueError: `cast_kernels.seeds` does not take a value.
    """

    num_superpixels: int = 196
    bins: int = 15
    order: str = "parallel"
    quality: str | None = None
    iterations: int | None = None
    prior: int | None = None
    num_levels: int | None = None
    double_step: bool | None = None

    def __post_init__(self) -> None:
        # SEEDS itself checks its arguments: of an empty batch without memory there is nothing else to do.
        nothing = torch.empty(0, 16, 16, 3, dtype=torch.uint8, device="meta")
        try:
            seeds(nothing, self.num_superpixels, **self.options())
        except (TypeError, ValueError) as error:
            raise ValueError(f"superpixels: {error}") from None

    def options(self) -> dict[str, Any]:
        """Return what `cast_kernels.seeds` takes besides images and number."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)[1:]}

    def count(self, height: int, width: int, num_superpixels: int) -> int:
        """Return how many superpixels come of a request for an image of this size."""
        return seeds_count(height, width, num_superpixels, self.num_levels or 1)

    def replace(self, **changes: Any) -> Self:
        """Return the settings with some of them changed; another ``order`` drops the options of this one."""
        dropped = dict.fromkeys(_ORDER_OPTIONS) if changes.get("order", self.order) != self.order else {}
        return dataclasses.replace(self, **(dropped | changes))

    def as_published(self) -> Self:
        """Return the settings in OpenCV's order, with as many iterations as the published recipe of these bins."""
        iterations = PUBLISHED_ITERATIONS.get(self.bins)
        return type(self)(self.num_superpixels, self.bins, order="sequential", iterations=iterations)


@dataclass(frozen=True)
class ImageConfig:
    """What every model has: images of some size in, classes out.

    Attributes:
        img_size: Height and width of the images it is meant for, a multiple of the stem's stride.
        in_chans: Image channels.
        embed_dim: Width C.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of blocks, in multiples of ``embed_dim``.
        num_classes: Width of the classifier; 0 = none.
        init: "moco" or "deit", the rule that fresh weights follow.
        drop_path: Probability of dropping a residual branch in the last block while training; it grows linearly from 0
            in the first. The published DeiT training uses 0.1, everything else 0.
        mean: Channel means that images in [0, 1] are normalised with.
        std: Channel deviations that images in [0, 1] are normalised with.
        fused: Whether the batch norms are folded into the layers beside them, as by `ImageModel.fuse`; such a model has
            no train mode.

    Raises:
        ValueError: A value is out of range, or values contradict each other.
    """

    kind: ClassVar[str]  # names the class in what `to_dict` returns
    stride: ClassVar[int] = 8  # of the stem

    img_size: int = 224
    in_chans: int = 3
    embed_dim: int = 384
    num_heads: int = 12
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    init: str = "moco"
    drop_path: float = 0.0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    fused: bool = False

    def __post_init__(self) -> None:
        self._make_tuples("mean", "std")
        self._check()

    def _make_tuples(self, *names: str) -> None:
        for name in names:
            values = getattr(self, name)
            if not isinstance(values, tuple | list):  # JSON gives lists
                raise ValueError(f"expected {name} to be a tuple or a list, got {values!r}")
            object.__setattr__(self, name, tuple(values))

    def _check(self) -> None:
        for name in ("img_size", "in_chans", "embed_dim", "num_heads"):
            _check_integer(name, getattr(self, name))
        if self.img_size % self.stride:
            raise ValueError(f"expected img_size to be a multiple of {self.stride}, got {self.img_size}")
        if self.embed_dim % 8 or self.embed_dim % self.num_heads:
            raise ValueError(
                f"expected embed_dim to be a multiple of 8 and of num_heads, got embed_dim={self.embed_dim} "
                f"and num_heads={self.num_heads}"
            )
        _check_integer("num_classes", self.num_classes, least=0)
        _check_choice("init", self.init, ("moco", "deit"))
        for name in ("mlp_ratio", "drop_path"):
            _check_finite(name, getattr(self, name))
        for value in (*self.mean, *self.std):
            _check_finite("mean and std", value)
        if int(self.embed_dim * self.mlp_ratio) < 1:
            raise ValueError(
                f"expected mlp_ratio to leave at least one of {self.embed_dim} channels, got {self.mlp_ratio}"
            )
        _check_probability("drop_path", self.drop_path)
        if len(self.mean) != self.in_chans or len(self.std) != self.in_chans or min(self.std) <= 0:
            raise ValueError(f"expected mean and positive std of {self.in_chans} channels, got {self.mean}, {self.std}")
        _check_flag("fused", self.fused)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, from which `from_dict` makes an equal config; ``kind`` names the class."""
        values = dataclasses.asdict(self).items()
        return {"kind": self.kind} | {name: list(v) if isinstance(v, tuple) else v for name, v in values}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a config from what `to_dict` returned, of the class that its ``kind`` names (default: this one).

        Raises:
            ValueError: An unknown name or value, or the kind is not this class or one derived from it.
        """
        values = dict(values)
        kind = values.pop("kind", getattr(cls, "kind", None))
        known = {c.kind: c for c in _family(cls) if "kind" in vars(c)}
        if kind not in known:
            raise ValueError(f"expected kind to be one of {', '.join(sorted(known))}, got {kind!r}")
        return _from_dict(known[kind], values)


@dataclass(frozen=True)
class CastConfig(ImageConfig):
    """Everything that `Cast` needs to be built: the attributes of `ImageConfig`, and these.

    ``img_size`` is where the learned position table and the number of superpixels are stated; other sizes are accepted.
    SEEDS needs the 3 channels of RGB: with others, a model has to be given its superpixels.

    Attributes:
        depths: Transformer blocks per stage.
        num_clusters: Granularity: the segments that remain after each stage.
        pos_embed: "sincos" (fixed) or "learned", which also has a row for the class token.
        pool_dropout: Dropout in each pool while training.
        kappa: Sharpness of the assignment of segments to clusters, in (0, 40].
        superpixels: How superpixels are made.
        compat: None, or "published": results are those of the published pipelines where these depend on the batch or
            on accidents, see `cast.models.compat`.
        pool_before_proj: Whether the stem's projection follows the average over superpixels or, as published, comes
            before it. Both are linear, so the results are equal to rounding; following costs 2.8 % fewer FLOPs.

    Raises:
        ValueError: A value is out of range, or values contradict each other.
    """

    kind: ClassVar[str] = "cast"

    depths: tuple[int, ...] = (3, 3, 3, 2)
    num_clusters: tuple[int, ...] = (64, 32, 16, 8)
    pos_embed: str = "sincos"
    pool_dropout: float = 0.1
    kappa: float = 5.0
    superpixels: SuperpixelConfig = field(default_factory=SuperpixelConfig)
    pool_before_proj: bool = True
    compat: str | None = None

    def __post_init__(self) -> None:
        self._make_tuples("depths", "num_clusters")
        if isinstance(self.superpixels, dict):
            object.__setattr__(self, "superpixels", _from_dict(SuperpixelConfig, self.superpixels))
        if not isinstance(self.superpixels, SuperpixelConfig):
            raise ValueError(
                f"expected superpixels to be a SuperpixelConfig or a dict of its values, got {self.superpixels!r}"
            )
        super().__post_init__()

    def _check(self) -> None:
        super()._check()
        for name in ("depths", "num_clusters"):
            for value in getattr(self, name):
                _check_integer(name, value)
        if not self.depths or len(self.depths) != len(self.num_clusters):
            raise ValueError(
                f"expected as many num_clusters as depths, got {len(self.num_clusters)} and {len(self.depths)}"
            )
        if any(coarse > fine for fine, coarse in pairwise(self.num_clusters)):
            raise ValueError(f"expected num_clusters from fine to coarse, got {self.num_clusters}")
        _check_choice("pos_embed", self.pos_embed, ("sincos", "learned"))
        _check_probability("pool_dropout", self.pool_dropout)
        _check_finite("kappa", self.kappa)
        if not 0.0 < self.kappa <= MAX_KAPPA:
            raise ValueError(f"expected kappa in (0, {MAX_KAPPA:g}], got {self.kappa}")
        _check_choice("compat", self.compat, (None, "published"))
        _check_flag("pool_before_proj", self.pool_before_proj)


@dataclass(frozen=True)
class CastSegConfig(CastConfig):
    """Everything that `CastSeg` needs to be built: the attributes of `CastConfig`, and these.

    Attributes:
        stage: What the tokens are averaged over and what comes out. "pretrain": cells of the stem grid, one output per
            image, of the mean of all segments; "segmentation": pixels, one output per segment; "encoder": pixels, the
            fused class token and tokens themselves, for a decoder.
        head: "linear", or "projector", the perceptron of MoCo-v3 applied per segment; the latter goes with
            ``num_classes=0``.
        projector_dims: Widths of the projector's layers.
        fusion_dropout: Dropout in the fusion of the levels while training.
        pos_embed_size: Image size whose sin-cos table is resized (bicubic) to the grid of ``img_size``, as published
            fine-tuning does with the table of pretraining; 0 = ``img_size``, a table of its own.

    Raises:
        ValueError: A value is out of range, or values contradict each other.
    """

    kind: ClassVar[str] = "cast_seg"

    img_size: int = 512
    num_classes: int = 21
    num_clusters: tuple[int, ...] = (320, 160, 80, 40)
    superpixels: SuperpixelConfig = SuperpixelConfig(num_superpixels=1024, bins=5)
    stage: str = "segmentation"
    head: str = "linear"
    projector_dims: tuple[int, ...] = (4096, 4096, 256)
    fusion_dropout: float = 0.2
    pos_embed_size: int = 0

    @property
    def head_classes(self) -> int:
        """Width of the linear classifier on top of the encoder."""
        return self.num_classes

    def __post_init__(self) -> None:
        self._make_tuples("projector_dims")
        super().__post_init__()

    def _check(self) -> None:
        super()._check()
        _check_choice("stage", self.stage, ("pretrain", "segmentation", "encoder"))
        _check_choice("head", self.head, ("linear", "projector"))
        _check_probability("fusion_dropout", self.fusion_dropout)
        for width in self.projector_dims:
            _check_integer("projector_dims", width)
        if not self.projector_dims:
            raise ValueError("expected projector_dims to name at least one layer, got ()")
        if self.head == "projector" and (self.stage == "encoder" or self.head_classes):
            raise ValueError(
                f'expected a stage with a head and num_classes=0 to go with head="projector", got stage={self.stage!r} '
                f"and num_classes={self.head_classes}"
            )
        _check_integer("pos_embed_size", self.pos_embed_size, least=0)
        if self.pos_embed_size % self.stride or (self.pos_embed_size and self.pos_embed == "learned"):
            raise ValueError(
                f"expected pos_embed_size to be a multiple of {self.stride}, and 0 for learned positions, "
                f"got {self.pos_embed_size} with pos_embed={self.pos_embed!r}"
            )


@dataclass(frozen=True)
class CastSegmenterConfig(CastSegConfig):
    """Everything that `CastSegmenter` needs to be built: the attributes of `CastSegConfig`, and these.

    ``num_classes`` is the decoder's.

    Attributes:
        decoder: "mask_transformer" or "linear", of Segmenter; or "conv", two 1x1 convolutions on pixels.
        decoder_depth: Blocks of the mask transformer.
        decoder_heads: Attention heads of the mask transformer; 0 = one per 64 channels.
        decoder_dropout: Dropout in the mask transformer while training.
        encoder_classes: Width of the encoder's own classifier, which nothing uses and which published weights hold;
            0 = none.

    Raises:
        ValueError: A value is out of range, or values contradict each other.
    """

    kind: ClassVar[str] = "cast_segmenter"

    stage: str = "encoder"
    decoder: str = "mask_transformer"
    decoder_depth: int = 2
    decoder_heads: int = 0
    decoder_dropout: float = 0.1
    encoder_classes: int = 0

    @property
    def head_classes(self) -> int:
        """Width of the linear classifier on top of the encoder."""
        return self.encoder_classes

    def _check(self) -> None:
        super()._check()
        _check_integer("num_classes", self.num_classes)
        _check_choice("decoder", self.decoder, ("mask_transformer", "linear", "conv"))
        _check_integer("decoder_depth", self.decoder_depth)
        _check_integer("decoder_heads", self.decoder_heads, least=0)
        _check_integer("encoder_classes", self.encoder_classes, least=0)
        _check_probability("decoder_dropout", self.decoder_dropout)
        if self.stage == "pretrain" or self.head != "linear":
            raise ValueError(
                f'expected stage "segmentation" or "encoder" and a linear head to go with a decoder, got '
                f"stage={self.stage!r} and head={self.head!r}"
            )


@dataclass(frozen=True)
class ViTConfig(ImageConfig):
    """Everything that `ViT` needs to be built: the attributes of `ImageConfig`, and this.

    Attributes:
        depth: Transformer blocks.

    Raises:
        ValueError: A value is out of range, or values contradict each other.
    """

    kind: ClassVar[str] = "vit"
    stride: ClassVar[int] = 16

    depth: int = 11

    def _check(self) -> None:
        super()._check()
        _check_integer("depth", self.depth)


def _from_dict(cls: type, values: dict[str, Any]) -> Any:
    unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
    if unknown:
        raise ValueError(f"unknown {cls.__name__} values: {', '.join(unknown)}")
    return cls(**values)


def _family(cls: type) -> list[type]:
    """Return a class and all that are derived from it."""
    return [cls, *(c for child in cls.__subclasses__() for c in _family(child))]


def _check_integer(name: str, value: Any, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"expected integer {name} >= {least}, got {value!r}")


def _check_finite(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"expected {name} to be finite numbers, got {value!r}")


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"expected {name} to be True or False, got {value!r}")


def _check_choice(name: str, value: Any, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        raise ValueError(f"expected {name} {' or '.join(map(repr, choices))}, got {value!r}")


def _check_probability(name: str, value: Any) -> None:
    _check_finite(name, value)
    if not 0.0 <= value < 1.0:
        raise ValueError(f"expected {name} in [0, 1), got {value}")
