"""What a training run is made of: plain values, from a preset, a file and the command line, saved beside the run."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

PRECISIONS = ("float32", "bfloat16", "float16", "float64")

# What may differ between the runs that continue each other: it changes where and how fast, not what comes out.
FREE_TO_CHANGE = frozenset(
    ("data", "val", "classes", "workers", "device", "log_every", "save_every", "time_limit", "tensorboard")
)


@dataclass(frozen=True)
class TrainConfig:
    """What every kind of training has.

    Attributes:
        data: Training images: a folder with one folder per class, a folder of images, or tar shards (a pattern).
        val: Held-out images of the same form; "" = none.
        classes: A file that names the folders of classes to use, one a line, in the order of their numbers; "" = all,
            sorted.
        model: A name of `cast.list_models()`.
        model_overrides: Fields of the model's config that differ from the named model's.
        weights: What the model starts from, as `cast segment --weights` takes it ("imagenette": the package's own, of
            ``cast_mini`` as in recipes/imagenette_cpu.toml); "" = fresh weights.
        img_size: Side of the square crops that the network sees.
        superpixels_on: "device": in the training step; "cpu": in the workers that load images.
        cache: "none", or "device": the whole set is kept on the device as uint8 and augmented there.
        cache_size: Side of the images so kept; 0 = ``img_size``.
        epochs: Passes over the data.
        max_steps: Optimizer steps after which training ends, whatever ``epochs`` says; the schedules keep to
            ``epochs``. 0 = no limit.
        warmup_epochs: Epochs in which the learning rate rises.
        batch: Images per optimizer step, of all processes and all accumulated parts together.
        accumulate: Parts that a process computes its share of the batch in.
        lr: Learning rate for ``lr_batch`` images per step; the one used is ``lr * batch / lr_batch``.
        lr_batch: See ``lr``.
        weight_decay: Weight decay.
        clip_grad: Largest norm of the gradient; 0 = not clipped.
        precision: "float32"; "bfloat16" or "float16": autocast; "float64": everything, for comparisons.
        compile: Whether the network is compiled.
        grad_checkpointing: Whether blocks are computed again in the backward pass, to save memory.
        sync_batchnorm: Whether batch norms see the batch of all processes.
        fsdp: Whether parameters are divided among processes.
        seed: Of weights, order, augmentation and dropout.
        skip_broken: Whether a broken image is replaced by the next one (held out: left out) instead of ending the run.
        workers: Processes that load images; -1 = as many as there are cores to use, 0 = none.
        device: "auto", "cpu", "cuda", ...
        log_every: Steps between lines of the log.
        save_every: Steps between checkpoints, besides those at the end of each epoch; 0 = only there.
        eval_every: Epochs between evaluations on ``val``.
        time_limit: Minutes after which the run is saved and ends, to be continued by the same command; 0 = none. What
            comes before the first step, as images kept on the device or features, counts, but is not cut short.
        tensorboard: Whether there is a log for TensorBoard too.
        compat: "", or "published": what the published code did differently, see `cast.models.compat`; in supervised
            training superpixels are then made of the erased and unmixed image as well.

    Raises:
        ValueError: A value is of the wrong type, out of range, or contradicts another.
    """

    task: ClassVar[str]  # the command that it is of

    data: str = ""
    val: str = ""
    classes: str = ""
    model: str = "cast_small"
    model_overrides: dict[str, Any] = field(default_factory=dict)
    weights: str = ""
    img_size: int = 224
    superpixels_on: str = "device"
    cache: str = "none"
    cache_size: int = 0
    epochs: int = 100
    max_steps: int = 0
    warmup_epochs: int = 10
    batch: int = 256
    accumulate: int = 1
    lr: float = 1.5e-4
    lr_batch: int = 256
    weight_decay: float = 0.1
    clip_grad: float = 0.0
    precision: str = "float32"
    compile: bool = False
    grad_checkpointing: bool = False
    sync_batchnorm: bool = True
    fsdp: bool = False
    seed: int = 0
    skip_broken: bool = False
    workers: int = -1
    device: str = "auto"
    log_every: int = 20
    save_every: int = 500
    eval_every: int = 1
    time_limit: float = 0.0
    tensorboard: bool = False
    compat: str = ""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            self._check_type(f.name, f.type)
        self._check()

    @property
    def learning_rate(self) -> float:
        """The highest learning rate, that of a batch of ``batch`` images."""
        return self.lr * self.batch / self.lr_batch

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, from which `from_dict` makes an equal config."""
        return {"task": self.task} | dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a config of this class; ``task``, if there, has to be its own.

        Raises:
            ValueError: An unknown name, a value that does not fit, or another task.
        """
        values = dict(values)
        if (task := values.pop("task", cls.task)) != cls.task:
            raise ValueError(f"expected settings of task {cls.task!r}, got those of {task!r}")
        if unknown := sorted(set(values) - {f.name for f in dataclasses.fields(cls)}):
            raise ValueError(f"unknown settings of {cls.task}: {', '.join(unknown)}")
        return cls(**values)

    def _check_type(self, name: str, kind: Any) -> None:
        value = getattr(self, name)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        elif isinstance(value, list):  # from TOML or JSON
            value = tuple(value)
        object.__setattr__(self, name, value)
        plain = kind if isinstance(kind, type) else getattr(kind, "__origin__", object)
        if isinstance(value, bool) != (plain is bool) or not isinstance(value, plain):
            raise ValueError(f"expected {name} to be of type {getattr(kind, '__name__', kind)}, got {value!r}")
        if plain is float and not math.isfinite(value):
            raise ValueError(f"expected {name} to be finite, got {value}")

    def _check(self) -> None:
        for name in ("epochs", "batch", "accumulate", "lr_batch", "log_every", "eval_every"):
            self._check_least(name, 1)
        for name in ("warmup_epochs", "max_steps", "seed", "save_every", "time_limit", "cache_size"):
            self._check_least(name, 0)
        for name in ("lr", "weight_decay", "clip_grad"):
            self._check_least(name, 0.0)
        self._check_least("workers", -1)
        self._check_choice("precision", PRECISIONS)
        self._check_choice("superpixels_on", ("device", "cpu"))
        self._check_choice("cache", ("none", "device"))
        self._check_choice("compat", ("", "published"))
        if self.img_size < 8 or self.img_size % 8:
            raise ValueError(f"expected img_size to be a positive multiple of 8, got {self.img_size}")
        if self.batch % self.accumulate:
            raise ValueError(f"expected accumulate to divide batch, got {self.accumulate} and {self.batch}")
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"expected warmup_epochs <= epochs, got {self.warmup_epochs} and {self.epochs}")
        if self.cache == "device" and self.superpixels_on == "cpu":
            raise ValueError('expected superpixels_on="device" to go with cache="device": nothing is loaded on the CPU')

    def _check_least(self, name: str, least: float) -> None:
        if getattr(self, name) < least:
            raise ValueError(f"expected {name} >= {least}, got {getattr(self, name)}")

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        if getattr(self, name) not in choices:
            raise ValueError(f"expected {name} {' or '.join(map(repr, choices))}, got {getattr(self, name)!r}")

    def _check_share(self, *names: str) -> None:
        for name in names:
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"expected {name} in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True)
class MocoConfig(TrainConfig):
    """Self-supervised training with MoCo v3; the defaults are Table 11's for ImageNet-1k.

    Attributes:
        temperature: Of the contrastive loss.
        momentum: Of the momentum encoder at the start; it rises to 1 along half a cosine.
        dim: Width of the embeddings that are compared.
        hidden_dim: Width of the hidden layers of projector and predictor.
        crop_scale: Share of the image's area that a crop takes, least and most.
        last_pool_weight: Weight of an auxiliary loss that trains the last pool; 0 = as published, it is not trained.
    """

    task: ClassVar[str] = "moco"

    temperature: float = 0.2
    momentum: float = 0.99
    dim: int = 256
    hidden_dim: int = 4096
    crop_scale: tuple[float, float] = (0.08, 1.0)
    last_pool_weight: float = 0.0

    def _check(self) -> None:
        super()._check()
        for name, least in (("dim", 1), ("hidden_dim", 1), ("last_pool_weight", 0.0)):
            self._check_least(name, least)
        self._check_share("momentum")
        _check_scale(self.crop_scale)
        if self.temperature <= 0:
            raise ValueError(f"expected temperature > 0, got {self.temperature}")


@dataclass(frozen=True)
class SupervisedConfig(TrainConfig):
    """Supervised training with the recipe of DeiT; the defaults are Table 12's.

    Attributes:
        warmup_lr: Learning rate that the warm-up starts from.
        min_lr: Learning rate at the end.
        crop_scale: Share of the image's area that a crop takes, least and most.
        rand_augment: Magnitude of RandAugment, 0 to 10; 0 = none.
        rand_augment_std: Deviation of the magnitude.
        repeats: How often an image appears in an epoch, differently augmented (repeated augmentation).
        mixup: Parameter of the Beta distribution of mixup; 0 = none.
        cutmix: The same of cutmix.
        mix_prob: Probability that a batch is mixed at all.
        mix_switch_prob: Probability of cutmix where both are there.
        smoothing: Label smoothing.
        erasing: Probability that a part of an image is erased.
        drop_path: Stochastic depth of the last block.
        ema: Decay of the moving average of weights; 0 = none.
        last_pool_weight: Weight of an auxiliary loss that trains the last pool; 0 = as published, it is not trained.
    """

    task: ClassVar[str] = "supervised"

    model: str = "cast_deit_small"
    epochs: int = 300
    warmup_epochs: int = 5
    batch: int = 1024
    lr: float = 5e-4
    lr_batch: int = 512
    weight_decay: float = 0.05
    sync_batchnorm: bool = False
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    crop_scale: tuple[float, float] = (0.08, 1.0)
    rand_augment: float = 9.0
    rand_augment_std: float = 0.5
    repeats: int = 3
    mixup: float = 0.8
    cutmix: float = 1.0
    mix_prob: float = 1.0
    mix_switch_prob: float = 0.5
    smoothing: float = 0.1
    erasing: float = 0.25
    drop_path: float = 0.1
    ema: float = 0.99996
    last_pool_weight: float = 0.0

    def _check(self) -> None:
        super()._check()
        for name in ("warmup_lr", "min_lr", "rand_augment_std", "mixup", "cutmix", "last_pool_weight"):
            self._check_least(name, 0.0)
        self._check_least("repeats", 1)
        self._check_share("mix_prob", "mix_switch_prob", "smoothing", "erasing", "drop_path", "ema")
        _check_scale(self.crop_scale)
        if not 0.0 <= self.rand_augment <= 10.0:
            raise ValueError(f"expected rand_augment in [0, 10], got {self.rand_augment}")


@dataclass(frozen=True)
class ProbeConfig(TrainConfig):
    """A linear classifier on frozen features; the defaults are the paper's protocol for ImageNet-1k (Appendix F.5).

    Attributes:
        augment: Whether training images are cropped and flipped anew in each epoch, as in the paper. Without, the
            features of their central squares are computed once, which takes a small part of the time.
        crop_scale: Share of the image's area that a crop takes, least and most.
    """

    task: ClassVar[str] = "probe"

    epochs: int = 90
    warmup_epochs: int = 0
    batch: int = 1024
    lr: float = 30.0
    weight_decay: float = 0.0
    sync_batchnorm: bool = False
    augment: bool = True
    crop_scale: tuple[float, float] = (0.08, 1.0)

    def _check(self) -> None:
        super()._check()
        _check_scale(self.crop_scale)
        if self.fsdp and not self.augment:
            raise ValueError("expected augment=True with fsdp: features that are computed once need a whole network")


CONFIGS: dict[str, type[TrainConfig]] = {c.task: c for c in (MocoConfig, SupervisedConfig, ProbeConfig)}


def _check_scale(scale: tuple[float, float]) -> None:
    if len(scale) != 2 or not 0.0 < scale[0] <= scale[1] <= 1.0:
        raise ValueError(f"expected crop_scale (least, most) in (0, 1], got {scale}")
