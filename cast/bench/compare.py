"""`--against FILE`: which figures moved since an earlier run, beyond what repeated runs differ by."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .latency import row_key

_FACTS = ("cpu", "cores", "threads", "workers", "gpu", "driver", "torch", "cuda", "triton", "timm")
SLACK = 0.05  # two runs on one machine differ by as much though nothing changed


@dataclass(frozen=True)
class Change:
    """A setting in both runs.

    Attributes:
        setting: Its values of ``KEY``.
        before: Median of the earlier run, ms.
        after: Median of this run, ms.
        noise: Relative difference that both runs' own spread explains.
        differing: In what the machines differ, see `differing_facts`.
    """

    setting: tuple[str, ...]
    before: float
    after: float
    noise: float
    differing: Mapping[str, tuple[str, str]] = field(default_factory=dict)

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
    before = {row_key(row): row for row in earlier if row.get("p50_ms")}
    after = {row_key(row): row for row in now if row.get("p50_ms")}
    return [
        Change(
            key,
            float(before[key]["p50_ms"]),
            float(after[key]["p50_ms"]),
            SLACK + _half_spread(before[key]) + _half_spread(after[key]),
            differing_facts(before[key], after[key]),
        )
        for key in after
        if key in before
    ]


def differing_facts(earlier: Mapping[str, object], now: Mapping[str, object]) -> dict[str, tuple[str, str]]:
    """Return in what two machines differ, by name; times of different machines say nothing about a change of code."""
    pairs = {name: (str(earlier.get(name, "")), str(now.get(name, ""))) for name in _FACTS}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def same_run(earlier: Mapping[str, object], now: Mapping[str, object]) -> bool:
    """Whether one run could go on with the rows of the other: the same code on the same machine."""
    return earlier.get("commit") == now.get("commit") and not differing_facts(earlier, now)


def _half_spread(row: Mapping[str, object]) -> float:
    return (float(row["p80_ms"]) - float(row["p20_ms"])) / 2 / float(row["p50_ms"])
