"""A model for photos: the one of the package, of a name, a file or a folder, or random in the same way every run."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cast import shipped
from cast._files import hash_file
from cast._weight_files import read_weights
from cast.checkpoints import build_official
from cast.models import create_model, from_pretrained
from cast.models.base import ImageModel
from cast.models.config import ImageConfig
from cast.models.official import load_official
from cast.models.official_config import registered_name
from cast.models.registry import CONFIGS
from cast.models.saving import WEIGHTS, read_config
from cast.models.trunk import Trunk

SEED = 0  # of random weights
DEFAULT_NAME = "cast_small"  # of weights that do not tell what they are of
SIZE = 224  # short side of the network's input, as published


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, and where its weights come from.

    Attributes:
        model: The model, on its device.
        name: Its registered name; its kind where it is of no registered size; "imagenette" of the package's weights.
        weights: The file or folder of its weights, absolute; None for random weights.
        weights_sha256: Hash of that file, or of the weights in that folder; or None.
        shipped: Whether the weights are those that come with the package.
    """

    model: Trunk
    name: str
    weights: str | None = None
    weights_sha256: str | None = None
    shipped: bool = False

    @property
    def random(self) -> bool:
        """Whether the weights are random, so that nothing the model says means anything."""
        return self.weights is None

    @property
    def size(self) -> int:
        """Short side of the network's input, in pixels, where nothing else is asked for."""
        return shipped.SIZE if self.shipped else SIZE

    @property
    def class_names(self) -> tuple[str, ...]:
        """What its classes are called; empty where nobody knows."""
        return shipped.class_names() if self.shipped else ()


def load_model(
    name: str | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    levels: Sequence[int] | None = None,
    device: str = "auto",
) -> LoadedModel:
    """Build a model for segmenting photos.

    Args:
        name: One of ``cast.list_models()``. None: what the weights are of, if they tell (published checkpoints and
            saved models do), else "cast_small".
        weights: File of weights, see ``load_weights``, or folder of a saved model. "imagenette", unless there is such
            a path: those that come with the package, in float32; they are for non-commercial research only. None:
            without a name the same; with one random weights drawn with seed 0 (the global random state is left as it
            was).
        levels: Number of segments of each level above the superpixels, fine to coarse; None: the model's own. Weights
            fit any granularity.
        device: ``"auto"`` (CUDA if there is one, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...

    Returns:
        The model in eval mode.

    Raises:
        ValueError: A name, a file, a granularity or a device that does not exist or does not fit; or the package's
            weights are missing.
    """
    place = find_device(device)
    path = _find_weights(name, weights)
    own = path == shipped.FOLDER
    if own and name == shipped.NAME:
        name = None
    model, sha256 = _random_model(name) if path is None else _loaded_model(name, path)
    if not isinstance(model, Trunk):
        raise ValueError(f"expected a model that makes segments, got {name or model.config.kind}")
    if own:
        model.float().init_non_persistent_buffers()  # weights are kept in half precision, positions made in it
    found = shipped.NAME if own else name or registered_name(model.config) or model.config.kind
    if levels is not None:
        steps = len(model.config.num_clusters)
        if len(levels) != steps:
            raise ValueError(f"{found} groups {steps} times, so expected {steps} levels, got {tuple(levels)}")
        model.set_granularity(levels)
    return LoadedModel(model.eval().to(place), found, None if path is None else str(path.resolve()), sha256, own)


def planned_config(name: str | None, weights: str | os.PathLike[str] | None) -> ImageConfig | None:
    """The settings of the model that `load_model` would build, where they can be told without reading weights.

    Raises:
        ValueError: The package's weights are meant, and are missing or broken.
        OSError: They cannot be read.
    """
    path = _find_weights(name, weights)
    return read_config(path)[0] if path == shipped.FOLDER else CONFIGS.get(name)


def _find_weights(name: str | None, weights: str | os.PathLike[str] | None) -> Path | None:
    """The file or folder of weights: `shipped.FOLDER` where the package's are meant, None for random ones."""
    if weights is None:
        return shipped.find_folder() if name in (None, shipped.NAME) else None
    return shipped.resolve(weights)


def _random_model(name: str) -> tuple[ImageModel, None]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)
        return _create(name), None


def _create(name: str) -> ImageModel:
    if name not in CONFIGS:
        raise ValueError(f"unknown model {name!r}; known are {', '.join(CONFIGS)}")
    return create_model(name)


def _loaded_model(name: str | None, path: Path) -> tuple[ImageModel, str]:
    if path.is_dir():
        model = from_pretrained(path)
        if name is not None and registered_name(model.config) != name:
            found = registered_name(model.config) or f"a {model.config.kind} of no registered size"
            raise ValueError(f"{path} holds {found}, not {name}")
        return model, hash_file(path / WEIGHTS)
    found = read_weights(path)
    published = any("patch_embed." in key for key in found.state)
    if name is None and published:
        return build_official(found, path).model, hash_file(path)
    model, _ = _random_model(name or DEFAULT_NAME)
    _load_state(model, found.state, path)
    if published and isinstance(model, Trunk):  # as without a name
        model.config = dataclasses.replace(model.config, superpixels=model.config.superpixels.as_published())
    return model, hash_file(path)


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


def load_weights(model: ImageModel, path: str | os.PathLike[str]) -> None:
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
    _load_state(model, read_weights(Path(path)).state, Path(path))


def _load_state(model: ImageModel, state: dict[str, Tensor], path: Path) -> None:
    try:
        if isinstance(model.get_classifier(), nn.Linear | nn.Identity):
            head = state.get("head.weight")
            if head is not None and (head.dim() != 2 or not head.numel()):
                raise ValueError(f"expected head.weight [num_classes, C], got shape {tuple(head.shape)}")
            classes = 0 if head is None else head.shape[0]
            if classes != model.config.num_classes:
                model.reset_classifier(classes)
        if any("patch_embed." in name for name in state):
            load_official(model, state)
        else:
            model.load_state_dict(state)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"the weights in {path} do not fit the model: {error}") from error
