"""Time calls that take turns, so that all of them see the machine in the same state."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

FLUSH_BYTES = 256 << 20  # more than any L2


@dataclass(frozen=True)
class Timing:
    """How long one call took.

    Attributes:
        samples: Seconds of each run, ascending.
    """

    samples: tuple[float, ...]

    def at(self, share: float) -> float:
        """Return the time below which ``share`` of the samples lie, between samples in proportion, in seconds."""
        place = share * (len(self.samples) - 1)
        low = int(place)
        high = min(low + 1, len(self.samples) - 1)
        return self.samples[low] + (place - low) * (self.samples[high] - self.samples[low])

    @property
    def p20(self) -> float:
        """20th percentile, seconds."""
        return self.at(0.2)

    @property
    def p50(self) -> float:
        """Median, seconds."""
        return self.at(0.5)

    @property
    def p80(self) -> float:
        """80th percentile, seconds."""
        return self.at(0.8)


def measure(
    calls: Mapping[str, Callable[[], object]],
    *,
    device: str | torch.device = "cpu",
    seconds: float = 2.0,
    least: int = 5,
    most: int = 100,
    warmup: int = 2,
) -> dict[str, Timing]:
    """Run calls in turns and time each run.

    Every round runs each call once, in an order that rotates by one, so that none is always the first. On CUDA a run
    is timed by events around it, on a device that had nothing else to do and whose L2 cache was flushed: what the host
    needs to launch it counts. Elsewhere the clock times it.

    Args:
        calls: What to run, by name.
        device: Where the calls work.
        seconds: Rounds go on until a call has been running that long in total, on average over the calls.
        least: Rounds at least, whatever they take.
        most: Rounds at most.
        warmup: Runs of each call before the first round, not timed.

    Returns:
        The timing of each call, in the order of ``calls``.

    Raises:
        ValueError: There is no call, or ``least`` rounds are not in ``1..most``.
    """
    if not calls or not 1 <= least <= most:
        raise ValueError(f"expected calls and 1 <= least <= most, got {len(calls)} calls, {least}, {most}")
    run = _Cuda(device) if torch.device(device).type == "cuda" else _Clock()
    names = list(calls)
    for _ in range(warmup):
        for name in names:
            calls[name]()
    samples: dict[str, list[float]] = {name: [] for name in names}
    spent = 0.0
    for turn in range(most):
        if turn >= least and spent >= seconds * len(names):
            break
        shift = turn % len(names)
        for name, took in run.round({name: calls[name] for name in names[shift:] + names[:shift]}).items():
            samples[name].append(took)
            spent += took
    return {name: Timing(tuple(sorted(samples[name]))) for name in names}


class _Clock:
    """Wall-clock time of calls that return when they are done."""

    def round(self, calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        took = {}
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            took[name] = time.perf_counter() - start
        return took


class _Cuda:
    """Device time between events, one call after the other: none hides its launches behind the kernels of another."""

    def __init__(self, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=self.device)

    def round(self, calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        took = {}
        with torch.cuda.device(self.device):
            for name, call in calls.items():
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                torch.cuda.synchronize()
                self.flush.zero_()
                start.record()
                call()
                end.record()
                end.synchronize()
                took[name] = start.elapsed_time(end) / 1e3
        return took


def capture(call: Callable[[], object], device: str | torch.device = "cuda", warmup: int = 3) -> Callable[[], None]:
    """Record a call as a CUDA graph and return its replay.

    Args:
        call: What to record; it works on ``device`` alone.
        device: The device; the current one for "cuda".
        warmup: Runs before, on the stream that records.

    Raises:
        RuntimeError: The call waits for the device, or does what else a graph cannot hold.
    """
    with torch.cuda.device(torch.device(device)):  # a graph of another device's stream would hold nothing
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(stream):
                for _ in range(warmup):
                    call()
                stream.synchronize()
                with torch.cuda.graph(graph, stream=stream):
                    call()
        finally:
            torch.cuda.synchronize()
        torch.cuda.current_stream().wait_stream(stream)
    return graph.replay
