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
QUALITIES = ("best", "fast")
NO_SUPERPIXELS = UNSET = "-"


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
        quality: Of superpixels that are "made" in order "parallel", see `cast_kernels.seeds`; "-" = in the order and
            quality that the model's own settings say.
    """

    model: str
    batch: int
    size: int = 224
    dtype: str = "fp32"
    launch: str = "eager"
    direction: str = "forward"
    superpixels: str = NO_SUPERPIXELS
    quality: str = UNSET

    @property
    def trained(self) -> bool:
        """Whether it runs backward, too."""
        return self.direction != "forward"

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
    qualities: Sequence[str] = (UNSET,)

    def __post_init__(self) -> None:
        known = {
            "dtypes": tuple(DTYPES),
            "launches": LAUNCHES,
            "directions": DIRECTIONS,
            "superpixels": SUPERPIXELS,
            "qualities": (*QUALITIES, UNSET),
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
                Setting(model, batch, size, dtype, self._launch(model, launch), direction, *source)
                for model in dict.fromkeys(self.models)
                for source in self._sources(model)
            ]

    def _launch(self, model: str, launch: str) -> str:
        return "eager" if model.startswith("published_") else launch  # it reads sizes back from the device

    def _sources(self, model: str) -> list[tuple[str, str]]:
        if model.startswith("published_"):  # the published model is handed its superpixels
            return [(source, UNSET) for source in self.superpixels if source != "made"] or [("given", UNSET)]
        if not model.startswith("cast_"):
            return [(NO_SUPERPIXELS, UNSET)]
        made = [("made", quality) for quality in self.qualities] if "made" in self.superpixels else []
        return made + [(source, UNSET) for source in self.superpixels if source != "made"]


def presets(cuda: bool) -> dict[str, Grid]:
    """Return the named grids, for a machine with CUDA or without."""
    small = ("cast_small", "vit_small")
    peers = ("cast_small", "vit_small", "vit_conv_small", "swin_tiny", "tome_small")
    peers += ("cast_base", "vit_base", "vit_conv_base", "tome_base")
    counts = ("196/32/16/8/4", "196/64/32/16/8", "196/128/64/32/16", "324/64/32/16/8", "324/128/64/32/16")
    grained = (*(f"cast_small:{count}" for count in counts), "vit_small")
    tokens = (*(f"cast_small:{count}/64/32/16/8" for count in (100, 196, 400, 576, 784)), "vit_small")
    if not cuda:
        apart = {"superpixels": ("made", "given")}
        return {
            "default": Grid(small),
            "peers": Grid(peers, **apart),
            "batches": Grid(small, batches=(1, 2, 3, 4, 7, 8, 16), **apart),
            "sizes": Grid(small, batches=(2,), sizes=(224, 320, 384, 512), **apart),
            "superpixels": Grid(tokens, batches=(8,), **apart),
            "granularity": Grid(grained, batches=(8,), superpixels=("given",)),
            "train": Grid(small, batches=(8,), directions=DIRECTIONS[1:], superpixels=("given",)),
        }
    fast = {"dtypes": ("bf16",), "launches": ("graph",), "qualities": ("fast", "best")}
    published = ("published_small", "published_small_without_sampling")
    return {  # the largest batch first: a run that is cut short has what matters
        "default": Grid((*small, "cast_base", "vit_base", *published), batches=(256, 64, 1), **fast),
        "peers": Grid(peers, batches=(256, 64, 31, 1), **fast),
        "batches": Grid(small, batches=(256, 128, 64, 32, 31, 16, 8, 7, 4, 2, 1), **fast),
        "sizes": Grid(small, batches=(64,), sizes=(224, 320, 384, 512), **fast),
        "superpixels": Grid(tokens, batches=(64,), **fast),
        "granularity": Grid(grained, batches=(256,), superpixels=("given",), **fast),
        "train": Grid(small, batches=(256, 64), dtypes=("bf16",), directions=DIRECTIONS[1:]),
    }
