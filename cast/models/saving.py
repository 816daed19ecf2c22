"""Models in folders of their own (``model.safetensors`` and ``config.json``) and on the Hugging Face Hub.

``config.json`` holds ``format``, ``class`` (the name of the model's class) and ``config`` (what `to_dict` of its config
returns). Nothing in a folder is executed, and nothing is built that its tensors do not fill.
"""

import json
import os
import re
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from cast._files import replace_files
from cast._weight_files import check_numbers
from cast_kernels import __version__

from .config import ImageConfig

FORMAT = "cast-model-1"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
_MOST_CONFIG_BYTES = 1 << 20
_LARGEST_IMAGE = 4096  # whose position table is made when a model is built, whatever its weights say
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Saving:
    """What every model can do: be saved, loaded and shared."""

    config: ImageConfig

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``model.safetensors`` and ``config.json`` into a folder, both or none.

        Args:
            folder: Made if needed; other files in it stay, an earlier model is replaced.

        Raises:
            ValueError: A tensor of the model is not finite, or ``folder`` is something else than a folder.
        """
        # Clones part tensors that share memory, which the format does not have.
        state = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
                 for name, value in self.state_dict().items()}  # fmt: skip
        for name, value in state.items():
            check_numbers(name, value)
        about = {
            "format": FORMAT,
            "class": type(self).__name__,
            "config": self.config.to_dict(),
            "cast_kernels_version": __version__,
        }
        with replace_files(folder) as temporary:
            save_file(state, temporary / WEIGHTS, metadata={"format": "pt"})
            (temporary / CONFIG).write_text(json.dumps(about, indent=2, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Load a model that `save_pretrained` or `push_to_hub` wrote.

        Args:
            source: A folder, or the name of a repository on the Hugging Face Hub, ``user/name``; a folder of that name
                comes first. The Hub needs the extra ``hub``.
            revision: Branch, tag or commit on the Hub.
            token: Access token for the Hub, as `huggingface_hub` takes it.
            cache_dir: Where files of the Hub are kept.
            local_files_only: Whether only files of the Hub that are kept already are used.
            device: Where the model is put.

        Returns:
            The model in eval mode, its tensors in the dtypes they were saved in.

        Raises:
            ValueError: There is no such folder or repository, or what is in it is not a model of this class, whole
                and with finite weights.
            ImportError: The Hub is asked without ``huggingface_hub``.
        """
        folder = Path(source)
        if not folder.is_dir():
            folder = _from_hub(os.fspath(source), revision, token, cache_dir, local_files_only)
        try:
            return _load(cls, folder).eval().to(device)
        except (OSError, SafetensorError, ValueError, RecursionError) as error:
            raise ValueError(f"cannot load a model from {source}: {_first_line(error)}") from error

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        message: str = "Upload model",
    ) -> str:
        """Save the model into a repository on the Hugging Face Hub, in one commit; needs the extra ``hub``.

        Args:
            name: ``user/name``; made if needed.
            private: Whether a repository that is made is private; None = the user's default.
            token: Access token, as `huggingface_hub` takes it.
            revision: Branch to commit to.
            message: Message of the commit.

        Returns:
            The address of the commit.

        Raises:
            ImportError: ``huggingface_hub`` is not installed.
            ValueError: ``name`` is not of that form, or a tensor of the model is not finite.
        """
        hub = _hub()
        if not _HUB_NAME.fullmatch(name):
            raise ValueError(f"expected the name of a repository, user/name, got {name!r}")
        with tempfile.TemporaryDirectory() as temporary:
            self.save_pretrained(temporary)
            api = hub.HfApi(token=token)
            api.create_repo(name, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=name, folder_path=temporary, commit_message=message, revision=revision)
        return str(commit)


def from_pretrained(source: str | os.PathLike[str], **options: Any) -> nn.Module:
    """Load a model of any class that `save_pretrained` or `push_to_hub` wrote; see ``Cast.from_pretrained``."""
    from .base import ImageModel

    return ImageModel.from_pretrained(source, **options)


def is_saved_model(folder: Path) -> bool:
    """Whether a folder has the files of `save_pretrained`, whatever is in them."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def _load(cls: type, folder: Path) -> Any:
    config, found = read_config(folder)
    if not issubclass(found, cls):
        raise ValueError(f"it holds a {found.__name__}, not a {cls.__name__}")
    state = {}
    with safe_open(folder / WEIGHTS, framework="pt", device="cpu") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        model = _build_empty(found, config, shapes)
        for name in shapes:
            state[name] = file.get_tensor(name)
            check_numbers(name, state[name])
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:  # a buffer that must be an integer, say
        raise ValueError(str(error)) from error
    return model


def read_config(folder: Path) -> tuple[ImageConfig, type]:
    """Return the checked settings in a folder, and the class that they are for.

    Raises:
        ValueError: The folder is not one of a saved model, or its settings are not those of a model.
        OSError: The file cannot be read.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"there is no {name}")
    with open(folder / CONFIG, "rb") as file:
        text = file.read(_MOST_CONFIG_BYTES + 1)
    if len(text) > _MOST_CONFIG_BYTES:
        raise ValueError(f"{CONFIG} has more than {_MOST_CONFIG_BYTES} bytes")
    try:
        about = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise ValueError(f"{CONFIG} is not JSON: {error}") from error
    if not isinstance(about, dict) or not isinstance(about.get("format"), str):
        raise ValueError(f'{CONFIG} does not name its "format"; expected {FORMAT!r}')
    if about["format"] != FORMAT:
        raise ValueError(f"{CONFIG} is of format {about['format']!r}; this version reads {FORMAT!r}")
    values = about.get("config")
    if not isinstance(values, dict) or not isinstance(values.get("kind"), str):
        raise ValueError(f'{CONFIG} has no "config" with a "kind"')
    try:
        config = ImageConfig.from_dict(values)
    except TypeError as error:  # a value of a type that the checks do not expect
        raise ValueError(f"{CONFIG}: {error}") from error
    from .registry import CLASSES

    found = CLASSES[type(config)]
    if about.get("class") != found.__name__:
        raise ValueError(
            f"{CONFIG} names the class {about.get('class')!r}, but its settings are those of {found.__name__!r}"
        )
    return config, found


def _build_empty(cls: type, config: ImageConfig, shapes: dict[str, tuple[int, ...]]) -> Any:
    """Build a model without memory, after a look at whether the tensors can be its own."""
    counts = (*getattr(config, "depths", ()), *(getattr(config, name, 0) for name in ("depth", "decoder_depth")))
    count = sum(counts) + len(getattr(config, "projector_dims", ())) * (getattr(config, "head", "") == "projector")
    if count > len(shapes):
        raise ValueError(f"{CONFIG} states {count} blocks and layers, but {WEIGHTS} has {len(shapes)} tensors")
    for name in ("img_size", "pos_embed_size"):
        if getattr(config, name, 0) > _LARGEST_IMAGE:
            raise ValueError(f"{CONFIG} states {name}={getattr(config, name)}; expected at most {_LARGEST_IMAGE}")
    widest = max((max(shape, default=0) for shape in shapes.values()), default=0)
    if config.embed_dim > widest:
        raise ValueError(f"{CONFIG} states embed_dim={config.embed_dim}, but no tensor in {WEIGHTS} is that wide")
    try:
        with torch.device("meta"):
            model = cls(config)
    except (RuntimeError, TypeError, OverflowError) as error:  # sizes that no tensor can have
        raise ValueError(f"{CONFIG} does not describe a model: {_first_line(error)}") from error
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    differ = [
        f"{name} {shapes[name]} instead of {own[name]}" for name in own if shapes.get(name, own[name]) != own[name]
    ]
    problems = {
        "missing": sorted(own.keys() - shapes.keys()),
        "unknown": sorted(shapes.keys() - own.keys()),
        "does not fit": differ,
    }
    said = [
        f"{what}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}" for what, names in problems.items() if names
    ]
    if said:
        raise ValueError(f"{WEIGHTS} does not belong to its {CONFIG}; {'; '.join(said)}")
    return model


def _from_hub(
    name: str, revision: str | None, token: str | bool | None, cache_dir: Any, local_files_only: bool
) -> Path:
    """Fetch the two files from the Hub, both of one commit, and return the folder that they lie in."""
    if not _HUB_NAME.fullmatch(name) or ".." in name:
        raise ValueError(f"no such folder, and not the name of a repository on the Hub (user/name): {name!r}")
    hub = _hub()
    try:
        folder = hub.snapshot_download(
            name,
            allow_patterns=[CONFIG, WEIGHTS],
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
    except Exception as error:  # the errors of the Hub, of the network, and of its cache have no common class
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise ValueError(f"no folder {name}, and no such repository on the Hub ({reason})") from error
    return Path(folder)


def _hub() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            "the Hugging Face Hub needs huggingface_hub: pip install 'cast-kernels[hub]' (or pass a folder)"
        ) from error
    return huggingface_hub


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
