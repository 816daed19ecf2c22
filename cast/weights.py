"""A model by name, with the weights of a file or, without one, random weights that are the same in every run."""

import argparse
import hashlib
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cast.models import Cast, create_model
from cast.models.official import load_official
from cast.models.registry import CONFIGS

SEED = 0  # of random weights


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, and where its weights come from.

    Attributes:
        model: The model, on its device.
        name: Its registered name.
        weights: The file of its weights, absolute; None for random weights.
        weights_sha256: Hash of that file, or None.
    """

    model: Cast
    name: str
    weights: str | None = None
    weights_sha256: str | None = None

    @property
    def random(self) -> bool:
        """Whether the weights are random, so that nothing the model says means anything."""
        return self.weights is None


def load_model(
    name: str = "cast_small",
    *,
    weights: str | os.PathLike[str] | None = None,
    levels: Sequence[int] | None = None,
    device: str = "auto",
) -> LoadedModel:
    """Build a model for segmenting photos.

    Args:
        name: One of ``cast.list_models()``.
        weights: File of weights, see ``load_weights``. None: random weights drawn with seed 0 (the global random state
            is left as it was).
        levels: Number of segments of each level above the superpixels, fine to coarse; None: the model's own. Weights
            fit any granularity.
        device: ``"auto"`` (CUDA if there is one, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...

    Returns:
        The model in eval mode.

    Raises:
        ValueError: A name, a file, a granularity or a device that does not exist or does not fit.
    """
    place = find_device(device)
    overrides = {}
    if levels is not None:
        steps = len(CONFIGS[name].num_clusters) if name in CONFIGS else len(levels)
        if len(levels) != steps:
            raise ValueError(f"{name} groups {steps} times, so expected {steps} levels, got {tuple(levels)}")
        overrides["num_clusters"] = tuple(levels)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)
        model = create_model(name, **overrides)
    sha256 = None
    if weights is not None:
        load_weights(model, weights)
        sha256 = hash_file(weights)
        weights = str(Path(weights).resolve())
    return LoadedModel(model.eval().to(place), name, weights, sha256)


def find_device(device: str) -> torch.device:
    """The device meant by a name; ``"auto"`` is CUDA where there is one, else the CPU.

    Raises:
        ValueError: There is no such device on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"expected a device such as auto, cpu, cuda or cuda:1, got {device!r}") from error
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"expected a cpu or cuda device, got {device!r}")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but PyTorch {torch.__version__} finds no CUDA device")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r} was asked for, but there are {torch.cuda.device_count()} CUDA devices")
    return found


def load_weights(model: Cast, path: str | os.PathLike[str]) -> None:
    """Load a file of weights into a model; its classifier takes the file's number of classes, or goes if there is none.

    Args:
        model: The model, changed in place.
        path: A ``.safetensors`` file with this package's parameter names, or a PyTorch file with these or the published
            names: a state dict, or a published checkpoint around one (of MoCo-v3 pre-training the base encoder is
            taken). PyTorch files are read with ``weights_only=True``, so they cannot run code.

    Raises:
        ValueError: The file cannot be read, or its weights are not those of this model.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no such file of weights: {path}")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _state_dict(_load_pickle(path))
    except pickle.UnpicklingError as error:  # PyTorch's own words recommend to lift the protection
        raise ValueError(f"{path} is not a PyTorch file of plain tensors, or not safe to read") from error
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise ValueError(f"cannot read weights from {path}: {reason}") from error
    published = any(name.startswith("patch_embed.") for name in state)
    try:
        head = state.get("head.weight")
        classes = 0 if head is None else head.shape[0]
        if classes != model.config.num_classes:
            model.reset_classifier(classes)
        if published:
            load_official(model, state)
        else:
            model.load_state_dict(state)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"the weights in {path} do not fit the model: {error}") from error


def hash_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load_pickle(path: Path) -> Mapping:
    # the published DeiT checkpoints carry their command line as a Namespace, which cannot do anything either
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _state_dict(checkpoint: Mapping) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, without the prefixes that training wrappers leave."""
    state = checkpoint
    if isinstance(checkpoint, Mapping):
        state = next((checkpoint[k] for k in ("state_dict", "model") if isinstance(checkpoint.get(k), Mapping)), state)
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ValueError("expected a state dict of tensors by name")
    encoder = "module.base_encoder."
    if any(name.startswith(encoder) for name in state):
        state = {name.removeprefix(encoder): value for name, value in state.items() if name.startswith(encoder)}
        # its head is the projector of the contrastive loss, not a classifier
        state = {name: value for name, value in state.items() if not name.startswith("head.")}
    state = {name.removeprefix("module."): value for name, value in state.items()}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("expected a state dict of tensors")
    return state
