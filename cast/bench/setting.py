"""What is measured: one model under one set of conditions, and the sets that the presets name."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAUNCHES = ("eager", "compile", "graph")
DIRECTIONS = ("forward", "forward+backward")
SUPERPIXELS = ("made", "workers", "given")
NO_SUPERPIXELS = "-"


@dataclass(frozen=True)
class Setting:
    """One measurement.

    Attributes:
        model: Name, see `cast.bench.models`.
        batch: Images at once.
        size: Height and width in pixels.
        dtype: Of weights and activations: "fp32", "bf16" or "fp16".
        launch: "eager", "compile" (torch.compile, full graph) or "graph" (replay of a CUDA graph).
        direction: "forward" (eval, no gradient) or "forward+backward" (train mode).
        superpixels: "made" by the model on its device from uint8 images; by "workers" on the CPU before the model, as
            the paper did; "given" beforehand; "-" for models that have none.
    """

    model: str
    batch: int
    size: int = 224
    dtype: str = "fp32"
    launch: str = "eager"
    direction: str = "forward"
    superpixels: str = NO_SUPERPIXELS

    @property
    def group(self) -> tuple[object, ...]:
        """What settings must share to be compared; they are measured in turns."""
        return (self.size, self.dtype, self.launch, self.direction, self.batch)

    def row(self) -> dict[str, object]:
        """Return the columns of a table that identify the measurement."""
        return dataclasses.asdict(self)


KEY = tuple(field.name for field in dataclasses.fields(Setting))


@dataclass(frozen=True)
class Grid:
    """All combinations of what it lists; superpixels apply to the models that take them.

    Raises:
        ValueError: A value is unknown, or there is none.
    """

    models: Sequence[str]
    batches: Sequence[int] = (1, 8)
    sizes: Sequence[int] = (224,)
    dtypes: Sequence[str] = ("fp32",)
    launches: Sequence[str] = ("eager",)
    directions: Sequence[str] = ("forward",)
    superpixels: Sequence[str] = SUPERPIXELS

    def __post_init__(self) -> None:
        known = {
            "dtypes": tuple(DTYPES),
            "launches": LAUNCHES,
            "directions": DIRECTIONS,
            "superpixels": SUPERPIXELS,
        }
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            if not values:
                raise ValueError(f"expected at least one of {field.name}")
            for value in values:
                if field.name in known and value not in known[field.name]:
                    raise ValueError(f"expected {field.name} among {', '.join(known[field.name])}, got {value!r}")
                if field.name in ("batches", "sizes") and value < 1:
                    raise ValueError(f"expected {field.name} of at least 1, got {value}")

    def groups(self) -> Iterator[list[Setting]]:
        """Yield the settings that are compared with each other, group by group."""
        for size, dtype, launch, direction, batch in itertools.product(
            self.sizes, self.dtypes, self.launches, self.directions, self.batches
        ):
            yield [
                Setting(model, batch, size, dtype, launch, direction, source)
                for model in self.models
                for source in self._sources(model)
            ]

    def _sources(self, model: str) -> Sequence[str]:
        if model.startswith("cast_"):
            return self.superpixels
        if model.startswith("published_"):  # the published model is handed its superpixels
            return [source for source in self.superpixels if source != "made"] or ["given"]
        return [NO_SUPERPIXELS]


def presets(cuda: bool) -> dict[str, Grid]:
    """Return the named grids, for a machine with CUDA or without."""
    small = ("cast_small", "vit_small")
    peers = ("cast_small", "vit_small", "vit_conv_small", "swin_tiny", "tome_small", "cast_base", "vit_base")
    grained = [f"cast_small:{g}" for g in ("196/32/16/8/4", "196/64/32/16/8", "196/128/64/32/16")]
    grained += [f"cast_small:{g}" for g in ("324/64/32/16/8", "324/128/64/32/16")]
    if not cuda:
        return {
            "default": Grid(small),
            "peers": Grid((*peers, "vit_conv_base", "tome_base"), superpixels=("made", "given")),
            "batches": Grid(small, batches=(1, 2, 4, 8, 16), superpixels=("made", "given")),
            "sizes": Grid(small, batches=(2,), sizes=(224, 320, 384, 512), superpixels=("made", "given")),
            "granularity": Grid((*grained, "vit_small"), batches=(8,), superpixels=("given",)),
            "train": Grid(small, batches=(8,), directions=("forward+backward",), superpixels=("given",)),
        }
    fast = {"dtypes": ("bf16",), "launches": ("graph",)}
    return {
        "default": Grid((*small, "cast_base", "vit_base"), batches=(1, 64, 256), **fast),
        "peers": Grid((*peers, "vit_conv_base", "tome_base"), batches=(1, 31, 64, 256), **fast),
        "batches": Grid(small, batches=(1, 2, 4, 8, 16, 31, 32, 64, 128, 256), **fast),
        "sizes": Grid(small, batches=(64,), sizes=(224, 320, 384, 512), **fast),
        "granularity": Grid((*grained, "vit_small"), batches=(256,), superpixels=("given",), **fast),
        "train": Grid(small, batches=(64, 256), dtypes=("bf16",), directions=("forward+backward",)),
    }
