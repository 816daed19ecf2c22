"""Published checkpoints, whatever is in the file: the model that they are of, its weights, and a report."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cast._layouts import Weights
from cast._weight_files import read_weights
from cast.models import build_model
from cast.models.base import ImageModel
from cast.models.official import load_official as load_state
from cast.models.official_config import infer_config, registered_name

_STATISTICS = {"vit": (0.5, 0.5, 0.5)}  # of Segmenter's normalization "vit", mean and std; "deit" is ImageNet's
_SETTINGS_FILE = "variant.yml"  # of Segmenter, beside the weights
_MOST_SETTINGS_BYTES = 1 << 20


@dataclass(frozen=True)
class CheckpointReport:
    """What was found in a checkpoint.

    Attributes:
        file: Its path, absolute.
        layout: "moco", "probe", "deit", "spml", "segmenter" or "state dict".
        model: Registered name of the model, or its kind where it is of no registered size.
        used: The part of the file that the weights come from.
        num_tensors: How many tensors that part holds, aliases and constants included.
        left: What else is in the file: name -> what it is.
        notes: What the file does not say and was assumed, or comes from elsewhere.
    """

    file: str
    layout: str
    model: str
    used: str
    num_tensors: int
    left: dict[str, str]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.model} from {self.file} ({self.layout})", f"  used {self.used}: {self.num_tensors} tensors"]
        lines += [f"  left {name}: {what}" for name, what in self.left.items()]
        return "\n".join([*lines, *(f"  note {note}" for note in self.notes)])


class OfficialModel(NamedTuple):
    """A model with published weights."""

    model: ImageModel  # in eval mode, on the CPU, in float32
    report: CheckpointReport


def load_official(
    path: str | os.PathLike[str],
    *,
    encoder: str = "base",
    weights: str = "model",
    projector: bool = False,
    **settings: Any,
) -> OfficialModel:
    """Load a published checkpoint: find out which model it is of, build that and load it.

    All published layouts are read: MoCo-v3 pre-training, linear probes, DeiT, SPML, Segmenter (with the ``variant.yml``
    beside it, if there is one), and plain state dicts of published names. Files are read with ``weights_only=True``,
    so that they cannot run code.

    Args:
        path: The file, of PyTorch or ``.safetensors``.
        encoder: Which encoder of MoCo-v3 pre-training: "base" or "momentum".
        weights: Which weights of a DeiT training: "model", which the paper evaluates, or "ema", their moving average.
        projector: Whether the projector of MoCo-v3 pre-training becomes the head, as in segment retrieval; only dense
            models have a place for it.
        **settings: Fields of the model's config to set, such as ``num_clusters=(32, 16, 8, 4)`` or
            ``compat="published"``. By default they are read from the weights, or those of the family: SEEDS settings,
            granularity, mean and std; superpixels in OpenCV's order.

    Returns:
        The model in eval mode, and a report, which can be printed.

    Raises:
        ValueError: The file cannot be read safely and whole, holds values that are not finite, has not what is asked
            for, or is not of a published model.
        TypeError: A setting is not a field of the config.
    """
    path = Path(path)
    return build_official(read_weights(path, encoder=encoder, weights=weights, projector=projector), path, **settings)


def build_official(found: Weights, path: Path, **settings: Any) -> OfficialModel:
    """Build the model that the weights read from a file are of; see `load_official`."""
    statistics, notes = _normalisation(path) if found.layout == "segmenter" else ({}, [])
    try:
        config = infer_config(found.state, **(statistics | settings))
        with torch.device("meta"):  # no memory before the tensors are known to fit
            model = build_model(config)
        state = {name: v.float() if v.is_floating_point() else v for name, v in found.state.items()}
        load_state(model, state, assign=True)
    except (ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"cannot load the weights in {path} ({found.layout}, {found.used}): {error}") from error
    if "num_heads" not in settings:
        notes.append(f"{config.num_heads} attention heads, as all published models have; weights do not tell")
    report = CheckpointReport(
        str(path.resolve()),
        found.layout,
        registered_name(config) or config.kind,
        found.used,
        len(found.state),
        found.left,
        tuple(notes),
    )
    return OfficialModel(model.eval(), report)


def _normalisation(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Read mean and std from Segmenter's settings."""
    file = path.with_name(_SETTINGS_FILE)
    if not file.is_file():
        return {}, [f"mean and std of ImageNet; no {_SETTINGS_FILE} beside the file"]
    with open(file, "rb") as opened:
        text = opened.read(_MOST_SETTINGS_BYTES).decode("utf-8", errors="replace")
    names = set(re.findall(r"^\s*normalization:\s*[\"']?(\w+)", text, flags=re.MULTILINE))
    if len(names) != 1 or not names <= {"vit", "deit"}:
        raise ValueError(
            f"expected one normalization, vit or deit, in {file}, got {', '.join(sorted(names)) or 'none'}"
        )
    name = names.pop()
    values = _STATISTICS.get(name)
    note = f'normalization "{name}" from {_SETTINGS_FILE}'
    return ({} if values is None else {"mean": values, "std": values}), [note]
