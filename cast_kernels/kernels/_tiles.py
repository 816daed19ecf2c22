"""Tile sizes as data: a table per architecture that ``python -m bench.tune`` writes, over defaults that fit everywhere.

Nothing is tuned in the hot path: a launcher asks ``tiles`` for its constants, by kernel, architecture and the size
class of its shapes, and gets the tuned entry if there is one.
"""

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch

OLDEST = 80  # what the interpreter and other devices without an architecture count as


def architecture(device: torch.device) -> int:
    """Compute capability as one number, 90 for sm_90."""
    if device.type != "cuda":
        return OLDEST
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def size_class(**sizes: int) -> str:
    """Name of a class of shapes that share tuned tiles: each size rounded up to a power of two."""
    return ",".join(f"{name}={1 << max(0, size - 1).bit_length()}" for name, size in sorted(sizes.items()))


@dataclass(frozen=True)
class Launch:
    """What a launcher asked for: tuning tries other constants for the same question."""

    kernel: str
    arch: int
    size_class: str
    constants: dict[str, Any]


_recorder: list[Launch] | None = None  # only while tuning
_trials: dict[tuple[str, str], dict[str, Any]] = {}


def tiles(kernel: str, arch: int, default: dict[str, Any], **sizes: int) -> dict[str, Any]:
    """Constants of one launch: ``default``, overridden by the table for this architecture and size class."""
    name = size_class(**sizes)
    chosen = default | _table().get(str(arch), {}).get(kernel, {}).get(name, {}) | _trials.get((kernel, name), {})
    if _recorder is not None:
        _recorder.append(Launch(kernel, arch, name, chosen))
    return chosen


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Collect what launchers ask for."""
    global _recorder  # noqa: PLW0603
    _recorder = []
    try:
        yield _recorder
    finally:
        _recorder = None


@contextmanager
def trial(launch: Launch, constants: dict[str, Any]) -> Iterator[None]:
    """Give ``constants`` to launches that ask the same question."""
    key = (launch.kernel, launch.size_class)
    _trials[key] = constants
    try:
        yield
    finally:
        del _trials[key]


@functools.cache
def _table() -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Return architecture -> kernel -> size class -> constants."""
    return json.loads(resources.files(__package__).joinpath("tiles.json").read_text())
