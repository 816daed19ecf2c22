"""`cast bench latency`: settings measured group by group, a row for each."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from .gate import Refused
from .harness import Timing, measure
from .models import Missing
from .paths import Path, Workshop
from .setting import KEY, Grid, Setting

Row = dict[str, object]


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
    baseline: str | None,
    budget: Budget,
    done: Collection[Sequence[str]] = (),
    progress: Callable[[Setting], None] = lambda setting: None,
) -> Iterator[list[Row]]:
    """Yield the rows of each group, one per setting, as soon as it is measured.

    A model that is missing, that computes something else than its reference, or that fails, gets a row with the reason
    in ``note`` and no figure.

    Args:
        grid: What to measure.
        workshop: Makes the calls.
        baseline: The model that ``ratio`` refers to: latency / that of the baseline in the same group. None = of each
            model the ViT of its size, else the first ViT.
        budget: How long to measure.
        done: Values of ``KEY``, as text, of settings that need no measurement. A group with others is measured whole,
            so that what is compared ran together, unless none of the others can run.
        progress: Called with each setting before it is prepared.
    """
    for group in grid.groups():
        missing = [setting for setting in group if row_key(setting.row()) not in done]
        if missing:
            workshop.clear()
            yield _measure_group(group, missing, workshop, baseline, budget, progress)


def row_key(row: Row) -> tuple[str, ...]:
    """Return what identifies a row, as text; a column that an older file lacks is unset."""
    return tuple(str(row.get(name, "-")) for name in KEY)


def _measure_group(
    group: list[Setting],
    missing: list[Setting],
    workshop: Workshop,
    baseline: str | None,
    budget: Budget,
    progress: Callable[[Setting], None],
) -> list[Row]:
    paths: dict[Setting, Path] = {}
    notes: dict[Setting, str] = {}
    for setting in [*missing, *(setting for setting in group if setting not in missing)]:
        if setting not in missing and not paths:
            break
        progress(setting)
        try:
            paths[setting] = workshop.path(setting)
        except Missing as reason:
            notes[setting] = f"missing: {reason}"
        except Refused as reason:
            notes[setting] = f"refused: {reason}"
        except Exception as error:  # out of memory, a graph that cannot be captured, a size that a model does not take
            notes[setting] = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    times: dict[Setting, Timing] = {}
    if paths:
        calls = {str(i): paths[setting].call for i, setting in enumerate(group) if setting in paths}
        measured = measure(calls, device=workshop.device, **vars(budget))
        times = {setting: measured[str(i)] for i, setting in enumerate(group) if setting in paths}
    rows = []
    for setting in group:
        if setting in times:
            base = _base(setting, baseline, list(times))
            rows.append(
                setting.row() | _figures(setting, times[setting], paths[setting]) | _ratio(times, setting, base)
            )
        elif setting in notes:
            rows.append(setting.row() | {"note": notes[setting]})
    return rows


def _base(setting: Setting, baseline: str | None, measured: list[Setting]) -> Setting | None:
    """The measured setting that a ratio refers to: with the same superpixels, if the baseline has any."""
    if baseline is None:
        vits = [other.model for other in measured if other.model.startswith("vit_")]
        size = setting.model.partition(":")[0].split("_")[1]
        baseline = next((name for name in vits if name == f"vit_{size}"), vits[0] if vits else None)
    own = [other for other in measured if other.model == baseline]
    same = [other for other in own if (other.superpixels, other.quality) == (setting.superpixels, setting.quality)]
    return next(iter(same or own), None)


def _ratio(times: dict[Setting, Timing], setting: Setting, base: Setting | None) -> Row:
    if base is None:
        return {"ratio": "", "baseline": ""}
    return {"ratio": round(times[setting].p50 / times[base].p50, 4), "baseline": base.model}


def _figures(setting: Setting, time: Timing, path: Path) -> Row:
    return {
        "p20_ms": round(1e3 * time.p20, 4),
        "p50_ms": round(1e3 * time.p50, 4),
        "p80_ms": round(1e3 * time.p80, 4),
        "runs": len(time.samples),
        "images_per_s": round(setting.batch / time.p50, 2),
        "hours_per_million": round(1e6 * time.p50 / setting.batch / 3600, 3),
        "peak_MiB": "" if path.peak is None else round(path.peak, 1),
        "error": f"{path.error:.1e}",
        "note": path.note,
    }
