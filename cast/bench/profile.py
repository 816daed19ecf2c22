"""`cast bench profile`: where each millisecond of a forward pass goes, and a trace to look at."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from cast.models import Cast

PREFIX = "cast: "
ALL = "all"
# Ops that are parts of their own, wherever they are called.
OPS = {
    "cast_kernels::seeds_parallel": "superpixels",
    "cast_kernels::seeds_sequential": "superpixels",
    "cast_kernels::segment_mean": "means",
    "cast_kernels::farthest_point_sample": "sampling",
    "cast_kernels::assign_pool": "assignment",
}
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")


@dataclass(frozen=True)
class Part:
    """One named part of a forward pass.

    Attributes:
        name: Such as "stem", or "pool 1 / sampling", which is within "pool 1".
        host_ms: Per run, time between its begin and its end on the host: on the CPU the time it takes.
        device_ms: Per run, time that the kernels which it launched ran; 0 without CUDA.
        calls: Per run, kernels that it launched, or without CUDA operators that it called.
    """

    name: str
    host_ms: float
    device_ms: float
    calls: float


@dataclass(frozen=True)
class Profile:
    """What `profile_forward` returns.

    Attributes:
        parts: In the order of the forward pass; a part within another follows it. The last, "all", is the whole.
        launches: Kernels launched per run; 0 without CUDA.
        waits: Times per run that the host waited for the device; 0 without CUDA.
    """

    parts: tuple[Part, ...]
    launches: float
    waits: float

    def part(self, name: str) -> Part:
        """Return a part by name.

        Raises:
            KeyError: There is none of that name.
        """
        return {part.name: part for part in self.parts}[name]


def profile_forward(model: Cast, call: Callable[[], object], *, runs: int = 3, trace: Path | None = None) -> Profile:
    """Profile the forward pass of a model, its parts by name.

    Args:
        model: The model that ``call`` runs, not compiled.
        call: One forward pass.
        runs: Passes to average over, after one that does not count.
        trace: Where to write the trace of all passes, for https://ui.perfetto.dev; None = nowhere.
    """
    cuda = next(model.parameters()).is_cuda
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with _named(model), torch.no_grad():
        call()
        with profile(activities=activities) as profiler:
            for _ in range(runs):
                with record_function(PREFIX + ALL):
                    call()
                    if cuda:
                        torch.cuda.synchronize()
    if trace is not None:
        _write_trace(profiler, trace)
    return _summary(profiler.events(), runs, cuda)


@contextmanager
def _named(model: Cast) -> Iterator[None]:
    """Put a named range around the modules that make up the parts."""
    modules = {"stem": [model.stem.layers, model.stem.proj], "head": [model.norm, model.head]}
    for i, stage in enumerate(model.stages, start=1):
        modules[f"blocks {i}"] = list(stage.blocks)
        modules[f"pool {i}"] = [stage.pool]
        modules[f"pool {i} / attention"] = [stage.pool.norm, stage.pool.attn]
        modules[f"pool {i} / perceptron"] = [stage.pool.norm1, stage.pool.fc1, stage.pool.norm2, stage.pool.fc2]
    with ExitStack() as hooks:
        for name, members in modules.items():
            for member in members:
                for hook in _range(member, PREFIX + name):
                    hooks.callback(hook.remove)
        yield


def _range(module: nn.Module, name: str) -> tuple[Any, Any]:
    opened: list[Any] = []

    def enter(*_: object) -> None:
        opened.append(record_function(name))
        opened[-1].__enter__()

    def leave(*_: object) -> None:
        opened.pop().__exit__(None, None, None)

    return module.register_forward_pre_hook(enter), module.register_forward_hook(leave)


def _summary(events: Iterable[Any], runs: int, cuda: bool) -> Profile:
    events = [event for event in events if not event.is_async and str(event.device_type).endswith("CPU")]
    found: dict[str, list[float]] = {}
    for event in events:
        name = _part(event)
        if name is None:
            continue
        row = found.setdefault(name, [0.0, 0.0, 0.0])
        row[0] += event.cpu_time_total
        row[1] += event.device_time_total
        row[2] += _kernels(event) if cuda else _operators(event)
    whole = found.pop(ALL)
    order = sorted(found, key=lambda name: _first_start(events, name))
    parts = [Part(name, *_per_run(found[name], runs)) for name in order]
    return Profile(
        (*parts, Part(ALL, *_per_run(whole, runs))),
        sum(event.name in _LAUNCHES for event in events) / runs,
        # The one at the end of each run is this module's own.
        max(0.0, sum(event.name in _WAITS for event in events) / runs - 1) if cuda else 0.0,
    )


def _part(event: Any) -> str | None:
    """The part that an event is the begin and end of, or None."""
    if event.name.startswith(PREFIX):
        return event.name.removeprefix(PREFIX)
    if event.name not in OPS or (event.cpu_parent is not None and event.cpu_parent.name == event.name):
        return None  # an op that calls itself on another device counts once
    parent = event.cpu_parent
    while parent is not None and not parent.name.startswith(PREFIX + "pool"):
        parent = parent.cpu_parent
    inside = "" if parent is None else parent.name.removeprefix(PREFIX).split(" / ")[0] + " / "
    return inside + OPS[event.name]


def _first_start(events: Iterable[Any], name: str) -> float:
    return min(event.time_range.start for event in events if _part(event) == name)


def _per_run(row: list[float], runs: int) -> tuple[float, float, float]:
    host, device, calls = row
    return host / 1e3 / runs, device / 1e3 / runs, calls / runs


def _kernels(event: Any) -> int:
    return len(event.kernels) + sum(_kernels(child) for child in event.cpu_children)


def _operators(event: Any) -> int:
    """Operators that call no others."""
    return sum(_operators(child) if child.cpu_children else 1 for child in event.cpu_children)


def _write_trace(profiler: profile, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp.json")
    try:
        profiler.export_chrome_trace(str(temporary))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
