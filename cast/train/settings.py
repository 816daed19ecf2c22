"""From a preset, a file and the command line to a config, and the config beside the run."""

import json
import os
import tomllib
from pathlib import Path
from typing import Any

from cast._files import replace_file

from .config import CONFIGS, TrainConfig
from .presets import PRESETS

FILE_NAME = "config.json"  # of the resolved config in the folder of a run


def resolve(
    task: str, *, preset: str = "", file: str | os.PathLike[str] = "", changes: dict[str, Any] | None = None
) -> TrainConfig:
    """Put a config together: defaults, then the preset, then the file, then the changes; the last word counts.

    Args:
        task: "moco", "supervised" or "probe".
        preset: A name in `PRESETS` of this task; "" = none. A file may name one too, as ``preset``.
        file: Settings in TOML, YAML or JSON, see `read_settings`; "" = none. The saved config of a run is such a file.
        changes: Single values. Those of ``model_overrides`` are added to the file's.

    Raises:
        ValueError: An unknown task, preset or setting, a value that does not fit, or a file that cannot be read.
        ImportError: The file is YAML, and PyYAML is not installed.
    """
    if task not in CONFIGS:
        raise ValueError(f"expected a task of {', '.join(CONFIGS)}, got {task!r}")
    settings = read_settings(file) if file else {}
    preset = preset or settings.pop("preset", "")
    settings.pop("preset", None)
    if preset and preset not in PRESETS[task]:
        raise ValueError(f"expected a preset of {task}: {', '.join(PRESETS[task])}; got {preset!r}")
    changes = dict(changes or {})
    values = (PRESETS[task][preset] if preset else {}) | settings | changes
    if "model_overrides" in settings and "model_overrides" in changes and "model" not in changes:
        values["model_overrides"] = settings["model_overrides"] | changes["model_overrides"]
    return CONFIGS[task].from_dict(values)


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a table of settings from a file that ends in .toml, .yaml, .yml or .json.

    Raises:
        ValueError: The file cannot be read or is no table.
        ImportError: The file is YAML, and PyYAML is not installed.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".toml":
            values = tomllib.loads(text)
        elif path.suffix == ".json":
            values = json.loads(text)
        elif path.suffix in (".yaml", ".yml"):
            values = _read_yaml(text)
        else:
            raise ValueError("expected a name that ends in .toml, .yaml, .yml or .json")
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read settings from {path}: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"expected a table of settings in {path}, got {type(values).__name__}")
    return values


def save_config(config: TrainConfig, folder: Path) -> None:
    """Write the config into the folder of a run, for people and for ``--config``."""
    with replace_file(folder / FILE_NAME) as file:
        file.write((json.dumps(config.to_dict(), indent=2) + "\n").encode())


def _read_yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ImportError("settings in YAML need PyYAML: pip install 'cast-kernels[train]'; TOML needs none") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {error}") from error
