"""Time on the GPU: CUDA-graph replays between events, with the L2 cache flushed before each."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

FLUSH_BYTES = 256 << 20  # more than any L2


@dataclass(frozen=True)
class Timing:
    """Microseconds at the 20th, 50th and 80th percentile, and how the call was launched."""

    p20: float
    p50: float
    p80: float
    launch: str  # "graph" (kernels alone), "eager" (cannot be captured: launches included) or "host" (CPU, wall time)


def measure(call: Callable[[], object], repeats: int = 60) -> Timing:
    """Time ``call``, which must be warm: already run once on this device."""
    replay, launch = _capture(call), "graph"
    if replay is None:
        replay, launch = call, "eager"
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, end in events:
        flush.zero_()
        start.record()
        replay()
        end.record()
    torch.cuda.synchronize()
    times = sorted(1000 * start.elapsed_time(end) for start, end in events)
    return Timing(*(times[int(repeats * share)] for share in (0.2, 0.5, 0.8)), launch)


def measure_host(call: Callable[[], object], repeats: int = 5) -> Timing:
    """Time ``call``, which runs on the CPU alone."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1e6 * (time.perf_counter() - start))
    times.sort()
    return Timing(*(times[int(repeats * share)] for share in (0.2, 0.5, 0.8)), "host")


def _capture(call: Callable[[], object]) -> Callable[[], None] | None:
    """The replay of a CUDA graph of ``call``, or None where it synchronises or allocates in ways a graph forbids."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
            stream.synchronize()
            with torch.cuda.graph(graph, stream=stream):
                call()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay
