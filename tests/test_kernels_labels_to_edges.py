import pytest
import torch
from conftest import KERNEL_DEVICE
from gpu_checks import (
    assert_devices_agree,
    assert_graph_replays,
    assert_no_synchronisation,
    assert_second_stream_agrees,
    needs_gpu,
    needs_second_gpu,
)
from test_labels_to_edges import SHAPES, assert_matches, noise

from cast_kernels import labels_to_edges, seeds
from cast_kernels.kernels import labels_to_edges as kernels
from cast_kernels.testing import edges_oracle, synthetic_image

LARGER = [*SHAPES, (2, (40, 41), 31), (1, (20, 21), 320)]  # several stretches of pixels; several blocks of a row


@pytest.mark.parametrize(("B", "grid", "S"), LARGER)
def test_matches_oracle(B, grid, S, poison):
    labels = noise(B, grid, S, device=KERNEL_DEVICE)
    assert_matches(*kernels.forward(labels, S, S * (S - 1) // 2 + 2), edges_oracle(labels, S))


def test_superpixels():
    labels = seeds(synthetic_image(60, 70), 24).to(KERNEL_DEVICE)
    count = int(labels.max()) + 1
    assert_matches(*kernels.forward(labels, count, 6 * count), edges_oracle(labels, count))


@pytest.mark.parametrize("max_edges", [0, 1, 14, 15])
def test_what_has_no_room_is_left_out(max_edges):
    labels = noise(2, (9, 8), 6, device=KERNEL_DEVICE)
    edges, count = kernels.forward(labels, 6, max_edges)
    assert edges.shape == (2, max_edges, 2)
    assert_matches(edges, count, edges_oracle(labels, 6))


def test_labels_far_out_of_range():
    labels = noise(1, (6, 7), 40, device=KERNEL_DEVICE)
    labels[0, 0, 0], labels[0, 3, 3], labels[0, 5, 6] = 2**40, -(2**63), 2**32 + 1
    assert_matches(*kernels.forward(labels, 40, 100), edges_oracle(labels, 40))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_strides_and_dtypes(dtype):
    labels = noise(2, (9, 38), 33, device=KERNEL_DEVICE).clamp(min=0)
    strided = labels.to(dtype).mT.contiguous().mT
    assert_matches(*kernels.forward(strided, 33, 600), edges_oracle(labels, 33))


class TestOnTheGpu:
    pytestmark = needs_gpu

    def case(self, seed=0, device="cuda", grid=(224, 224)):
        return (noise(4, grid, 60, seed=seed, device=device),)

    def run(self, labels):
        return labels_to_edges(labels, 60)

    def test_the_public_function_launches_the_kernel(self, monkeypatch):
        calls, forward = [], kernels.forward
        monkeypatch.setattr(kernels, "forward", lambda *a: calls.append(1) or forward(*a))
        self.run(*self.case())
        labels_to_edges(torch.zeros(1, 4, 5, device="cuda").int(), 20_000)  # the reference's
        assert calls == [1]

    def test_equals_the_cpu_twenty_times(self):
        (labels,) = self.case()
        expected = labels_to_edges(labels.cpu(), 60, max_edges=1770)
        for _ in range(20):
            found = labels_to_edges(labels, 60, max_edges=1770)
            assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))

    def test_no_synchronisation(self):
        assert_no_synchronisation(self.run, self.case())

    def test_cuda_graph(self):
        assert_graph_replays(self.run, self.case(), self.case(seed=1))

    def test_second_stream(self):
        assert_second_stream_agrees(self.run, self.case())

    @needs_second_gpu
    def test_second_device(self):
        assert_devices_agree(self.run, self.case(), self.case(device="cuda:1"))

    @pytest.mark.sanitize
    def test_small_for_the_sanitizer(self):
        self.run(*self.case(grid=(17, 23)))
