"""`--against FILE`: which figures moved since an earlier run, beyond what repeated runs differ by."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .setting import KEY

SLACK = 0.05  # two runs on one machine differ by as much though nothing changed


@dataclass(frozen=True)
class Change:
    """A setting in both runs.

    Attributes:
        setting: Its values of ``KEY``.
        before: Median of the earlier run, ms.
        after: Median of this run, ms.
        noise: Relative difference that both runs' own spread explains.
    """

    setting: tuple[str, ...]
    before: float
    after: float
    noise: float

    @property
    def ratio(self) -> float:
        """New latency / old latency."""
        return self.after / self.before

    @property
    def moved(self) -> bool:
        """Whether the difference is beyond the noise."""
        return not 1 / (1 + self.noise) <= self.ratio <= 1 + self.noise


def compare(earlier: Iterable[Mapping[str, object]], now: Iterable[Mapping[str, object]]) -> list[Change]:
    """Match the rows of two runs by their settings; of repeated rows the last counts.

    The noise is 5 % plus, of each run, half of the distance between its 20th and 80th percentile.
    """
    before = {_key(row): row for row in earlier if row.get("p50_ms")}
    after = {_key(row): row for row in now if row.get("p50_ms")}
    return [
        Change(
            key,
            float(before[key]["p50_ms"]),
            float(after[key]["p50_ms"]),
            SLACK + _half_spread(before[key]) + _half_spread(after[key]),
        )
        for key in after
        if key in before
    ]


def differing_facts(earlier: Mapping[str, object], now: Mapping[str, object]) -> dict[str, tuple[str, str]]:
    """Return in what two machines differ, by name; times of different machines say nothing about a change of code."""
    names = ("cpu", "cores", "threads", "gpu", "driver", "torch", "cuda", "triton", "timm")
    pairs = {name: (str(earlier.get(name, "")), str(now.get(name, ""))) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _key(row: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(str(row.get(name, "")) for name in KEY)


def _half_spread(row: Mapping[str, object]) -> float:
    return (float(row["p80_ms"]) - float(row["p20_ms"])) / 2 / float(row["p50_ms"])
