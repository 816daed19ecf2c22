"""SEEDS on a GPU: the labels of the CPU, bit for bit, whatever the driver; and how a device's limits choose it."""

import importlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import ROOT
from gpu_checks import (
    assert_devices_agree,
    assert_graph_replays,
    assert_no_synchronisation,
    assert_second_stream_agrees,
    needs_gpu,
    needs_second_gpu,
)
from test_seeds import MAKERS, discs, noise

from cast_kernels import _ext, seeds, testing

page = importlib.import_module("cast_kernels.seeds")  # the name in the package is the function

H200 = {"multiprocessors": 132, "block_memory": 232448, "clusters": True}
A100 = {"multiprocessors": 108, "block_memory": 166912, "clusters": False}
RTX3090 = {"multiprocessors": 82, "block_memory": 101376, "clusters": False}
RTX5090 = {"multiprocessors": 170, "block_memory": 101376, "clusters": True}
SEQUENTIAL = [
    {"num_superpixels": 60},
    {"num_superpixels": 60, "bins": 5, "iterations": 15},
    {"num_superpixels": 100, "prior": 0, "iterations": 3},
    {"num_superpixels": 50, "prior": 3, "num_levels": 3, "double_step": True, "bins": 8, "color": "rgb"},
    {"num_superpixels": 20, "prior": 5, "num_levels": 4, "iterations": 1, "double_step": True},
    {"num_superpixels": 30, "iterations": 0, "bins": 1},
]


def launch(height, width, request, batch, limits, driver="automatic", bins=15, lab=True):
    native = _ext.load()
    facts = native.seeds_parallel_launch(
        batch=batch,
        height=height,
        width=width,
        num_superpixels=request,
        steps=native.seeds_steps("best"),
        bins=bins,
        lab=lab,
        driver=page.CUDA_DRIVERS.index(driver),
        **limits,
    )
    return facts | {"driver": page.CUDA_DRIVERS[facts["driver"]]}


# Choice of the driver: arithmetic, on any machine
@pytest.mark.parametrize(
    ("size", "request_", "batch", "limits", "driver"),
    [
        ((224, 224), 196, 256, H200, "block"),
        ((224, 224), 196, 1, H200, "cluster"),
        ((512, 512), 1024, 64, H200, "cluster"),
        ((2048, 2048), 4096, 1, H200, "grid"),
        ((2048, 2048), 4096, 64, H200, "cluster"),
        ((4096, 4096), 16384, 1, H200, "grid"),
        ((224, 224), 196, 1, A100, "block"),
        ((224, 224), 196, 256, RTX3090, "block"),
        ((512, 512), 1024, 64, RTX3090, "grid"),
        ((13, 13), 1, 1000, RTX3090, "block"),
        ((512, 512), 1024, 64, RTX5090, "cluster"),
        ((4096, 4096), 16384, 64, H200, "cluster"),
        ((224, 224), 196, 1, H200 | {"multiprocessors": 6}, "block"),  # a slice that holds no cluster
        ((4096, 4096), 16384, 64, RTX5090, "grid"),  # the sizes of its superpixels do not fit a block
    ],
)
def test_driver_by_size_batch_and_device(size, request_, batch, limits, driver):
    found = launch(*size, request_, batch, limits)
    assert found["driver"] == driver
    assert found["shared_bytes"] <= limits["block_memory"]
    assert (found["shared_bytes"] > 0) == (driver != "grid")
    assert 1 <= found["slots"] <= batch
    assert found["workspace_bytes"] <= 2**31 or found["slots"] == 1


def test_the_models_images_fit_a_block_of_an_h200():
    """Labels, bins and a histogram of 256 bins, more than 99 of 100 photos use."""
    found = launch(224, 224, 196, 256, H200)
    assert found["near_bins"]
    assert found["near_used"] == 256
    assert not launch(224, 224, 196, 256, RTX3090)["near_bins"]  # they stay in the workspace


def test_drivers_that_cannot_run_that_are_refused():
    with pytest.raises(ValueError, match="cannot hold images of this size"):
        launch(512, 512, 1024, 4, H200, "block")
    with pytest.raises(ValueError, match="no clusters"):
        launch(224, 224, 196, 4, A100, "cluster")
    with pytest.raises(ValueError, match="cannot hold so many superpixels"):
        launch(4096, 4096, 16384, 4, RTX5090, "cluster")
    with pytest.raises(ValueError, match="at most 8191 pixels a side"):
        launch(9000, 9000, 1000, 1, H200)


def test_workspace_follows_from_sizes_alone():
    """Bins that no image of this size can use take no room: 1,000 pixels have no 64,000 bins."""
    few, many = (launch(40, 40, 16, 1, H200, "grid", bins=bins, lab=False) for bins in (15, 40))
    assert many["workspace_bytes"] < 2 * few["workspace_bytes"] + 4 * 64000


def test_missing_driver_is_a_readable_error():
    """The module of a CUDA build loads without a driver; only a call fails, by name."""
    native = _ext.load()
    if native.build_info()["cuda"] is None:
        pytest.skip("the extension was built without nvcc")
    if torch.cuda.is_available():
        pytest.skip("this machine has a driver")
    with pytest.raises(RuntimeError, match="seeds: CUDA launch failed"):
        native.seeds_sequential_cuda_bytes(
            batch=1, height=64, width=64, num_superpixels=16, bins=15, num_levels=1, lab=True
        )


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        (["80-real", "86-real", "90"], (7, 5), False),
        (["80-real", "86-real", "90"], (8, 0), True),
        (["80-real", "86-real", "90"], (8, 9), True),  # a binary runs on what is newer of its generation
        (["80-real", "86-real", "90"], (12, 0), True),  # as PTX of sm_90
        (["86-real", "90-real"], (8, 0), False),
        (["80-real", "90-real"], (10, 0), False),
        (["80-real", "120"], (11, 0), False),
        (["100-real"], (10, 3), True),
        (["80-virtual"], (8, 0), True),
        (["90-virtual"], (8, 6), False),
        (["90a-real"], (9, 0), True),
        (["90a"], (10, 0), False),
        (["75"], (7, 5), False),  # no kernels for it, whatever was built
        ([], (9, 0), False),
    ],
)
def test_a_gpu_without_code_leaves_it_to_the_host(archs, capability, runs, pretend_gpu):
    """As the other ops leave it to their references."""
    pretend_gpu(capability, archs)
    assert page._runs_on_gpu(torch.zeros(1, 24, 24, 3, dtype=torch.uint8)) == runs


# On a GPU
def batch_of(height, width, makers=MAKERS):
    return torch.from_numpy(np.stack([maker(height, width, seed) for seed, maker in enumerate(makers)]))


def on_gpu(image, request, driver, quality="best", bins=15, lab=True, stride=1):
    return page._seeds_parallel_cuda(image.cuda(), request, quality, bins, lab, stride, driver).cpu()


def parallel(image):
    return (seeds(image, 60),)


def sequential(image):
    return (seeds(image, 60, order="sequential", iterations=4),)


class TestOnGpu:
    pytestmark = needs_gpu

    @pytest.mark.parametrize("driver", page.CUDA_DRIVERS)
    @pytest.mark.parametrize("size", [(64, 64), (97, 131), (41, 160), (224, 224), (13, 13)], ids=str)
    @pytest.mark.parametrize(
        "options", [("best", 15, True), ("fast", 5, True), ("fast", 15, False), ("best", 40, False)], ids=str
    )
    def test_parallel_equals_the_cpu(self, size, options, driver, poison):
        quality, bins, lab = options
        if driver == "cluster" and torch.cuda.get_device_capability() < (9, 0):
            driver = "grid"
        image, request = batch_of(*size), max(size[0] * size[1] // 256, 1)
        expected = seeds(image, request, quality=quality, bins=bins, color="lab" if lab else "rgb")
        assert torch.equal(on_gpu(image, request, driver, quality, bins, lab), expected)

    @pytest.mark.parametrize(("size", "request_"), [((512, 512), 1024), ((1100, 900), 300), ((700, 640), 10)])
    @pytest.mark.parametrize("driver", ["automatic", "grid"])
    def test_parallel_equals_the_cpu_on_large_images(self, size, request_, driver, poison):
        image = batch_of(*size, makers=(discs, noise))
        for quality in ("best", "fast"):
            assert torch.equal(on_gpu(image, request_, driver, quality), seeds(image, request_, quality=quality))

    def test_parallel_equals_the_cpu_at_the_largest(self):
        image = batch_of(4096, 4096, makers=(discs,))
        assert torch.equal(seeds(image.cuda(), 16384, quality="fast").cpu(), seeds(image, 16384, quality="fast"))

    @pytest.mark.parametrize("options", SEQUENTIAL, ids=lambda o: "-".join(map(str, o.values())))
    @pytest.mark.parametrize("size", [(64, 64), (97, 131), (224, 224)], ids=str)
    def test_sequential_equals_the_cpu(self, size, options, poison):
        image = batch_of(*size)
        expected = seeds(image, order="sequential", **options)
        assert torch.equal(seeds(image.cuda(), order="sequential", **options).cpu(), expected)

    @pytest.mark.parametrize("run", [parallel, sequential])
    def test_twenty_runs_are_equal(self, run):
        image = batch_of(224, 224).cuda()
        expected = run(image)[0]
        assert all(torch.equal(run(image)[0], expected) for _ in range(20))

    @pytest.mark.parametrize("driver", ["block", "grid"])
    def test_more_images_than_multiprocessors(self, driver):
        image = testing.synthetic_image(48, 48).repeat(300, 1, 1, 1)
        image[::7] = 255 - image[::7]
        one = seeds(image[:2], 16)
        found = on_gpu(image, 16, driver)
        assert torch.equal(found[::7], one[:1].expand(43, -1, -1))
        assert torch.equal(found[1::7], one[1:].expand(43, -1, -1))

    @pytest.mark.parametrize("run", [parallel, sequential])
    def test_no_synchronisation(self, run):
        assert_no_synchronisation(run, (batch_of(97, 131).cuda(),))

    @pytest.mark.parametrize("run", [parallel, sequential])
    def test_graph_replays(self, run):
        image = batch_of(97, 131).cuda()
        assert_graph_replays(run, (image.clone(),), (image.flip(0),))

    @pytest.mark.parametrize("driver", page.CUDA_DRIVERS)
    def test_graph_replays_by_every_driver(self, driver):
        if driver == "cluster" and torch.cuda.get_device_capability() < (9, 0):
            driver = "grid"

        def run(image):
            return (page._seeds_parallel_cuda(image, 60, "fast", 15, True, 4, driver),)

        image = batch_of(97, 131).cuda()
        assert_graph_replays(run, (image.clone(),), (image.flip(0),))

    @pytest.mark.parametrize("order", ["parallel", "sequential"])
    def test_graph_of_the_first_call(self, order):
        """Nothing has been loaded when the capture begins."""
        code = f"""
import torch
from cast_kernels import seeds, testing
image = testing.synthetic_image(64, 96).repeat(40, 1, 1, 1)
still = image.cuda()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    labels = seeds(still, 20, order={order!r})
graph.replay()
assert torch.equal(labels.cpu(), seeds(image, 20, order={order!r}))
"""
        run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr[-3000:]

    def test_threads_with_images_of_different_sizes(self):
        """Blocks with more and with less shared memory are launched at once."""
        images = [batch_of(size, size).cuda() for size in (24, 96, 160, 224)]
        expected = [on_gpu(image, 10, "block") for image in images]
        with ThreadPoolExecutor(len(images)) as pool:
            for _ in range(50):
                found = pool.map(lambda image: on_gpu(image, 10, "block"), images)
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    @pytest.mark.parametrize("run", [parallel, sequential])
    def test_second_stream(self, run):
        assert_second_stream_agrees(run, (batch_of(97, 131).cuda(),))

    @needs_second_gpu
    @pytest.mark.parametrize("run", [parallel, sequential])
    def test_second_gpu(self, run):
        image = batch_of(97, 131).cuda()
        assert_devices_agree(run, (image,), (image.to("cuda:1"),))

    @pytest.mark.parametrize("order", ["parallel", "sequential"])
    def test_layouts_strides_and_empty_batches(self, order, poison):
        image = batch_of(90, 140)
        expected = seeds(image, 40, order=order)
        first = image.cuda().permute(0, 3, 1, 2)
        wide = torch.zeros(5, 180, 280, 4, dtype=torch.uint8, device="cuda")
        wide[:, ::2, ::2, :3] = image.cuda()
        for view in (first, first.contiguous(), wide[:, ::2, ::2, :3]):
            assert torch.equal(seeds(view, 40, order=order).cpu(), expected)
        for stride in (3, 8, 1000):
            found = seeds(first, 40, order=order, stride=stride).cpu()
            assert torch.equal(found, expected[:, ::stride, ::stride])
        assert seeds(first[:0], 40, order=order).shape == (0, 90, 140)

    @pytest.mark.sanitize
    @pytest.mark.parametrize("driver", page.CUDA_DRIVERS)
    def test_small_parallel(self, driver):
        if driver == "cluster" and torch.cuda.get_device_capability() < (9, 0):
            driver = "grid"
        image = batch_of(45, 52, makers=(discs, noise))
        assert torch.equal(on_gpu(image, 24, driver, "fast"), seeds(image, 24, quality="fast"))
        assert torch.equal(on_gpu(image, 1, driver, "fast", bins=2), seeds(image, 1, quality="fast", bins=2))

    @pytest.mark.sanitize
    def test_small_sequential(self):
        options = {"order": "sequential", "iterations": 2, "num_levels": 2, "double_step": True}
        image = batch_of(45, 52, makers=(discs, noise))
        assert torch.equal(seeds(image.cuda(), 24, **options).cpu(), seeds(image, 24, **options))
