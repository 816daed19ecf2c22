"""What every kernel must hold on a GPU: ``run(*case)`` returns tensors, ``case`` holds the inputs."""

from contextlib import contextmanager

import pytest
import torch

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
needs_second_gpu = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second CUDA device")


@contextmanager
def no_synchronisation():
    """A context in which to wait for the GPU is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def assert_no_synchronisation(run, case):
    run(*case)
    with no_synchronisation():
        run(*case)


def assert_graph_replays(run, case, other):
    """A graph captured with one case and fed the tensors of another gives what eager gives."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run(*case)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(*case)
    for kept, new in zip(case, other, strict=True):
        if isinstance(kept, torch.Tensor):
            kept.copy_(new)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, run(*other), strict=True))


def assert_second_stream_agrees(run, case):
    expected = run(*case)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        found = run(*case)
    side.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def assert_devices_agree(run, case, same_elsewhere):
    found, expected = run(*same_elsewhere), run(*case)
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(found, expected, strict=True))
