"""`cast bench latency`: settings measured group by group, a row for each."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from .gate import Refused
from .harness import Timing, measure
from .models import Missing
from .paths import Path, Workshop
from .setting import KEY, Grid, Setting


@dataclass(frozen=True)
class Budget:
    """How long to measure.

    Attributes:
        seconds: Of running per call, on average over a group.
        least: Runs of each call at least.
        most: Runs of each call at most.
        warmup: Runs before the first that counts.
    """

    seconds: float = 2.0
    least: int = 5
    most: int = 100
    warmup: int = 2


def measure_grid(
    grid: Grid,
    workshop: Workshop,
    *,
    baseline: str,
    budget: Budget,
    done: Iterable[Sequence[str]] = (),
    progress: Callable[[Setting], None] = lambda setting: None,
) -> Iterator[dict[str, object]]:
    """Yield a row per setting, as soon as its group is measured.

    A model that is missing, or that computes something else than its reference, gets a row with the reason in ``note``
    and no figure.

    Args:
        grid: What to measure.
        workshop: Makes the calls.
        baseline: The model that ``ratio`` refers to: latency / that of the baseline in the same group.
        budget: How long to measure.
        done: Values of ``KEY``, as text, of settings that need no measurement; a group goes if all of it is done.
        progress: Called with each setting before it is prepared.
    """
    done = {tuple(values) for values in done}
    for group in grid.groups():
        if all(tuple(str(value) for value in setting.row().values()) in done for setting in group):
            continue
        paths: dict[Setting, Path] = {}
        notes: dict[Setting, str] = {}
        memory: dict[Setting, float] = {}
        for setting in group:
            progress(setting)
            try:
                paths[setting] = workshop.path(setting)
            except Missing as reason:
                notes[setting] = f"missing: {reason}"
            except Refused as reason:
                notes[setting] = f"refused: {reason}"
            else:
                memory[setting] = _peak(paths[setting], workshop.device)
        calls = {str(i): paths[setting].call for i, setting in enumerate(group) if setting in paths}
        times = {}
        if calls:
            measured = measure(calls, device=workshop.device, **vars(budget))
            times = {setting: measured[str(i)] for i, setting in enumerate(group) if setting in paths}
        base = next((times[setting] for setting in group if setting.model == baseline and setting in times), None)
        for setting in group:
            if setting in times:
                yield setting.row() | _figures(setting, times[setting], base, paths[setting], memory[setting])
            else:
                yield setting.row() | {"note": notes[setting]}


def row_key(row: dict[str, object]) -> tuple[str, ...]:
    """Return what identifies a row, as text."""
    return tuple(str(row.get(name, "")) for name in KEY)


def _figures(setting: Setting, time: Timing, base: Timing | None, path: Path, memory: float) -> dict[str, object]:
    return {
        "p20_ms": round(1e3 * time.p20, 4),
        "p50_ms": round(1e3 * time.p50, 4),
        "p80_ms": round(1e3 * time.p80, 4),
        "runs": len(time.samples),
        "images_per_s": round(setting.batch / time.p50, 2),
        "hours_per_million": round(1e6 * time.p50 / setting.batch / 3600, 3),
        "ratio": "" if base is None else round(time.p50 / base.p50, 4),
        "peak_MiB": round(memory, 1) if memory else "",
        "error": f"{path.error:.1e}",
        "note": path.note,
    }


def _peak(path: Path, device: torch.device) -> float:
    """MiB that one run allocates at its peak, weights included; 0 where PyTorch does not count."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    path.call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / 2**20
