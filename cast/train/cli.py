"""The command line of `cast train` and `cast probe`: an option for every setting, its help taken from the config."""

import argparse
import dataclasses
import inspect
import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .config import CONFIGS, TrainConfig
from .presets import PRESETS

_KINDS = {
    "moco": ("self-supervised, with MoCo v3", "Train on images without their classes, with MoCo v3."),
    "supervised": ("on classes, with the recipe of DeiT", "Train on classes, with the recipe of DeiT."),
    "probe": (
        "measure features with a linear classifier",
        "Train a linear classifier on the features of a model that stays as it is (Appendix F.5 of the paper).",
    ),
}
_ENDING = (
    " Writes to RUN: config.json, log.jsonl, last.pt and best.pt, and in the end the folder model/, which `--weights` "
    "takes. The same command continues a run that was stopped. Under torchrun, one process a device."
)


def add_train(commands: argparse._SubParsersAction) -> None:
    """Add `cast train` and `cast probe` to the subcommands of `cast`."""
    train = commands.add_parser("train", help="train a model on a folder of images", description="Train a model.")
    kinds = train.add_subparsers(dest="kind", required=True, metavar="KIND")
    for task in ("moco", "supervised"):
        _add_task(kinds, task, task)
    _add_task(commands, "probe", "probe")


def parse_changes(arguments: argparse.Namespace, config: type[TrainConfig]) -> dict[str, Any]:
    """Return the settings that the command line names."""
    given = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(config)}
    return {name: value for name, value in given.items() if value is not None}


def _add_task(commands: argparse._SubParsersAction, command: str, task: str) -> None:
    title, description = _KINDS[task]
    parser = commands.add_parser(command, help=title, description=description + _ENDING)
    parser.add_argument("data", nargs="?", metavar="DATA", help=_help_texts(CONFIGS[task])["data"])
    parser.add_argument("--out", required=True, type=_run_folder, metavar="RUN", help="folder of the run")
    parser.add_argument("--preset", default="", choices=PRESETS[task], help="settings of an experiment of the paper")
    parser.add_argument("--config", default="", metavar="FILE", help="settings in a .toml, .yaml or .json file")
    settings = parser.add_argument_group("settings", "Each overrides the file, which overrides the preset.")
    texts = _help_texts(CONFIGS[task])
    for f in dataclasses.fields(CONFIGS[task]):
        if f.name != "data":
            _add_setting(settings, f, texts.get(f.name, ""))
    parser.set_defaults(run=_run(task))


def _add_setting(parser: Any, f: dataclasses.Field, text: str) -> None:
    flag = f"--{f.name.replace('_', '-')}"
    default = "" if f.default in ("", dataclasses.MISSING) else f" (default: {_written(f.default)})"
    text = f"{text.replace('%', '%%')}{default}"
    if f.type is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
    elif f.name == "model_overrides":
        parser.add_argument(
            "--model-set", dest=f.name, action=_AddOverride, metavar="FIELD=VALUE", help=f"{text} May be repeated."
        )
    elif isinstance(f.default, tuple):
        parser.add_argument(flag, nargs=len(f.default), type=float, metavar="X", help=text)
    else:
        parser.add_argument(flag, type=f.type, metavar={int: "N", float: "X", str: "TEXT"}[f.type], help=text)


class _AddOverride(argparse.Action):
    """Collect ``FIELD=VALUE`` in a dict; values are JSON, or text where they are not."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, text: Any, option: str | None = None) -> None:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            parser.error(f"argument {option}: expected FIELD=VALUE, got {text!r}")
        with suppress(ValueError):  # a plain word stays one
            value = json.loads(value)
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), name: value})


def _written(value: Any) -> str:
    return " ".join(f"{x:g}" for x in value) if isinstance(value, tuple) else f"{value}"


def _help_texts(config: type[TrainConfig]) -> dict[str, str]:
    """Return what the docstrings of a config and its bases say of each field, its first sentence."""
    texts: dict[str, str] = {}
    for cls in reversed(config.__mro__[:-1]):
        entries = re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", inspect.getdoc(cls) or "", re.MULTILINE)
        texts |= {name: " ".join(text.split()).rstrip(".") for name, text in entries}
    return texts


def _run_folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("expected a folder, got an empty name")
    return Path(text)


def _run(task: str) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        from .command import run_command

        return run_command(task, arguments)

    return run
