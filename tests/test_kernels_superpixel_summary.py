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
from test_superpixel_summary import SHAPES, assert_matches, inputs

from cast_kernels import superpixel_summary
from cast_kernels.kernels import superpixel_summary as kernels
from cast_kernels.testing import superpixel_summary_oracle

# beyond the reference's shapes: several stretches of pixels, with a row that continues from one to the next
LARGER = [*SHAPES, (2, (37, 61), 20), (1, (1, 2500), 2)]


@pytest.mark.parametrize("thick", [False, True])
@pytest.mark.parametrize(("B", "grid", "S"), LARGER)
def test_matches_oracle(B, grid, S, thick, poison):
    labels, image = inputs(B, grid, S, device=KERNEL_DEVICE)
    exact = superpixel_summary_oracle(labels, S, image, thick)
    assert_matches(kernels.forward(labels, S, image, thick), exact)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_strides_and_dtypes(dtype, poison):
    labels, image = inputs(2, (13, 90), 6, device=KERNEL_DEVICE)
    labels = labels.clamp(min=0)
    exact = superpixel_summary_oracle(labels, 6, image, False)
    labels = labels.to(dtype).mT.contiguous().mT
    assert_matches(kernels.forward(labels, 6, image.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1), False), exact)
    wide = torch.stack([image, 255 - image], 3)[:, :, :, 0]  # every other pixel
    assert_matches(kernels.forward(labels, 6, wide, False), exact)


def test_labels_far_out_of_range():
    labels, image = inputs(1, (6, 7), 4, device=KERNEL_DEVICE)
    labels[0, 0, 0], labels[0, 3, 3], labels[0, 5, 6] = 2**40, -(2**63), 2**32 + 1
    assert_matches(kernels.forward(labels, 4, image, True), superpixel_summary_oracle(labels, 4, image, True))


@pytest.mark.parametrize(("B", "grid"), [(0, (4, 5)), (2, (0, 5))])
def test_nothing(B, grid, poison):
    labels, image = inputs(B, grid, 3, device=KERNEL_DEVICE)
    area, box, color, boundary = kernels.forward(labels, 3, image, False)
    assert (area.shape, box.shape, color.shape, boundary.shape) == ((B, 3), (B, 3, 4), (B, 3, 3), (B, *grid))
    assert not any(x.any() for x in (area, box, color))


def test_without_image(poison):
    labels, image = inputs(2, (9, 14), 6, device=KERNEL_DEVICE)
    with_image, without = kernels.forward(labels, 6, image, True), kernels.forward(labels, 6, None, True)
    assert without[2].shape == (2, 6, 0)
    assert all(torch.equal(with_image[k], without[k]) for k in (0, 1, 3))


def test_an_image_does_not_depend_on_its_batch():
    labels, image = inputs(3, (21, 70), 9, device=KERNEL_DEVICE)
    both, alone = kernels.forward(labels, 9, image, False), kernels.forward(labels[1:2], 9, image[1:2], False)
    assert all(torch.equal(a[1:2], b) for a, b in zip(both, alone, strict=True))


class TestOnTheGpu:
    pytestmark = needs_gpu

    def case(self, seed=0, device="cuda", grid=(224, 224)):
        return inputs(4, grid, 196, seed=seed, device=device)

    def run(self, labels, image):
        return superpixel_summary(labels, 196, image)

    def test_the_public_function_launches_the_kernel(self, monkeypatch):
        calls, forward = [], kernels.forward
        monkeypatch.setattr(kernels, "forward", lambda *a: calls.append(1) or forward(*a))
        self.run(*self.case())
        assert calls == [1]

    def test_equals_the_cpu_twenty_times(self):
        labels, image = self.case()
        expected = self.run(labels.cpu(), image.cpu())
        for _ in range(20):
            assert all(torch.equal(a.cpu(), b) for a, b in zip(self.run(labels, image), expected, strict=True))

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
