"""Time of an op on the GPU: CUDA-graph replays where it can be captured, by the harness of `cast bench`."""

from collections.abc import Callable
from dataclasses import dataclass

from cast.bench import harness


@dataclass(frozen=True)
class Timing:
    """Microseconds at the 20th, 50th and 80th percentile, and how the call was launched."""

    p20: float
    p50: float
    p80: float
    # "graph" (kernels alone), "eager" (where the call cannot be captured: launches included), or "host"
    launch: str


def measure(call: Callable[[], object], repeats: int = 60) -> Timing:
    """Time ``call``, which must be warm: already run once on this device."""
    try:
        timed, launch = harness.capture(call), "graph"
    except RuntimeError:  # it waits for the device, or allocates in ways that a graph forbids
        timed, launch = call, "eager"
    found = harness.measure({"call": timed}, device="cuda", least=repeats, most=repeats, warmup=0)["call"]
    return Timing(1e6 * found.p20, 1e6 * found.p50, 1e6 * found.p80, launch)


def measure_host(call: Callable[[], object], repeats: int = 5) -> Timing:
    """Time ``call``, which runs on the CPU alone."""
    found = harness.measure({"call": call}, least=repeats, most=repeats, warmup=0)["call"]
    return Timing(1e6 * found.p20, 1e6 * found.p50, 1e6 * found.p80, "host")
