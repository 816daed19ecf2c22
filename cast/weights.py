"""A model by name, with the weights of a file or, without one, random weights that are the same in every run."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cast._files import hash_file
from cast._weight_files import read_weights
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
        path: A ``.safetensors`` file or a PyTorch file, with this package's parameter names or the published ones: a
            state dict, or a published checkpoint around one (of MoCo-v3 pre-training the base encoder is taken).
            The prefixes of ``DataParallel`` and ``torch.compile`` are removed. PyTorch files are read with
            ``weights_only=True``, so they cannot run code.

    Raises:
        ValueError: The file cannot be read, its weights are not finite floating point numbers, or they are not those
            of this model.
    """
    path = Path(path)
    state = read_weights(path).state
    published = any(name.startswith("patch_embed.") for name in state)
    try:
        head = state.get("head.weight")
        if head is not None and (head.dim() != 2 or not head.numel()):
            raise ValueError(f"expected head.weight [num_classes, C], got shape {tuple(head.shape)}")
        classes = 0 if head is None else head.shape[0]
        if classes != model.config.num_classes:
            model.reset_classifier(classes)
        if published:
            load_official(model, state)
        else:
            model.load_state_dict(state)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"the weights in {path} do not fit the model: {error}") from error
