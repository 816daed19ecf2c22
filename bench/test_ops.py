"""The ops against what a user would write or install instead, on the CPU or, where there is one, on the GPU.

    pytest bench/test_ops.py --benchmark-only -ra

Batch 8, 196 tokens, 384 channels, float32, forward. Every way is checked against the op's float64 reference; a peer
that is not installed is skipped by name. `python -m bench.ops` has the full sizes, on a GPU.
"""

import importlib

import pytest
import torch

from bench import peers
from cast_kernels import assign_pool, farthest_point_sample, seeds, segment_mean, unpool
from cast_kernels.testing import assign_pool_oracle, farthest_point_oracle, segment_mean_oracle, synthetic_image

B, N, C, K = 8, 196, 384, 64
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def run(benchmark, group, call):
    """Time a call; on a GPU until the device is done."""
    benchmark.group = group
    benchmark.extra_info |= {"device": DEVICE, "threads": torch.get_num_threads(), "torch": torch.__version__}

    def timed():
        result = call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return result

    return benchmark.pedantic(timed, rounds=9, warmup_rounds=2)


def close(result, expected):
    torch.testing.assert_close(result.double(), expected.double(), rtol=1e-3, atol=1e-4)


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)


def package(name):
    try:
        return importlib.import_module(name)
    except Exception as error:  # built for another torch, packages raise anything
        pytest.skip(f"the peer {name} is not installed: {error}")


def torch_scatter(x, labels, num_segments):
    scatter = package("torch_scatter").scatter
    return scatter(x.flatten(1, 2), labels.flatten(1).long(), dim=1, dim_size=num_segments, reduce="mean")


MEANS = {
    "cast_kernels": lambda x, labels, S: segment_mean(x, labels, S)[0],
    "one_hot_bmm": peers.one_hot_bmm,
    "index_add": peers.index_add,
    "scatter_reduce": peers.scatter_reduce,
    "segment_csr": peers.segment_csr,
    "torch_scatter": torch_scatter,
}


@pytest.mark.parametrize("way", MEANS)
def test_segment_mean(benchmark, way):
    x, labels = randn(B, 28, 28, C), torch.randint(0, N, (B, 28, 28), generator=torch.Generator().manual_seed(1))
    labels = labels.to(DEVICE)
    result = run(benchmark, "segment_mean 28x28x384", lambda: MEANS[way](x, labels, N))
    close(result, segment_mean_oracle(x, labels, N))


def quickfps(x, count):
    return package("torch_quickfps").sample_idx(x, count)


def torch_cluster(x, count):
    batch = torch.arange(B, device=x.device).repeat_interleave(N)
    picks = package("torch_cluster").fps(x.flatten(0, 1), batch, ratio=count / N, random_start=False)
    return picks.view(B, count) - torch.arange(B, device=x.device)[:, None] * N


def dgl(x, count):
    return package("dgl.geometry").farthest_point_sampler(x.double(), count, 0)


def fpsample(x, count):
    sample = package("fpsample").fps_sampling
    return torch.stack([torch.from_numpy(sample(one, count, start_idx=0).astype("int64")) for one in x.cpu().numpy()])


SAMPLERS = {
    "cast_kernels": lambda x, count: farthest_point_sample(x, count, start=0),
    "gram_loop": peers.gram_loop,
    "torch_quickfps": quickfps,
    "torch_cluster": torch_cluster,
    "dgl": dgl,
    "fpsample": fpsample,
}


@pytest.mark.parametrize("way", SAMPLERS)
def test_farthest_point_sample(benchmark, way):
    x = randn(B, N, C)
    picks = run(benchmark, "farthest_point_sample 196x384, K 64", lambda: SAMPLERS[way](x, K))
    start = "mean" if way == "gram_loop" else picks[0, 0].item()
    shortfall = farthest_point_oracle(x, picks.to(x.device), x.double().mean(1) if start == "mean" else start)
    assert shortfall.max() < 1e-3


ASSIGNMENTS = {
    "cast_kernels": lambda u, centroids, z: assign_pool(u, centroids, z)[:2],
    "plain": peers.assign_pool_plain,
    "torch.compile": torch.compile(peers.assign_pool_plain),
}


@pytest.mark.parametrize("way", ASSIGNMENTS)
def test_assign_pool(benchmark, way):
    u, z, centroids = randn(B, N, C), randn(B, N, 4 * C), torch.arange(K, device=DEVICE).expand(B, -1).contiguous()
    logits, pooled = run(benchmark, "assign_pool 196 -> 64, z 4C", lambda: ASSIGNMENTS[way](u, centroids, z))
    expected = assign_pool_oracle(u, centroids, z, 5.0)
    close(logits, expected[0])
    close(pooled, expected[1])


UNPOOLS = {"cast_kernels": unpool, "gather": peers.gather}


@pytest.mark.parametrize("way", UNPOOLS)
def test_unpool(benchmark, way):
    coarse = randn(B, K, C)
    parents = torch.randint(0, K, (B, N), generator=torch.Generator().manual_seed(2)).to(DEVICE)
    result = run(benchmark, "unpool 64 -> 196x384", lambda: UNPOOLS[way](coarse, parents))
    close(result, peers.gather(coarse.double(), parents))


def opencv(image, count):
    cv2 = package("cv2")
    if not hasattr(cv2, "ximgproc"):
        pytest.skip("the peer cv2 is not installed with its contrib modules")
    segmenter = cv2.ximgproc.createSuperpixelSEEDS(*image.shape[1::-1], 3, count, 1, 2, 15)
    segmenter.iterate(cv2.cvtColor(image.numpy(), cv2.COLOR_RGB2LAB), 20)
    return torch.from_numpy(segmenter.getLabels())


def scikit_image(image, count):
    return torch.from_numpy(package("skimage.segmentation").slic(image.numpy(), n_segments=count, start_label=0))


SUPERPIXELS = {
    "cast_kernels": lambda image, count: seeds(image[None], count, order="sequential")[0],
    "OpenCV": opencv,
    "scikit-image SLIC": scikit_image,
}


@pytest.mark.parametrize("way", SUPERPIXELS)
def test_superpixels(benchmark, way):
    image = synthetic_image(224, 224)  # on the host, where all peers work
    image = image[0] if image.ndim == 4 else image
    labels = run(benchmark, "superpixels of one image, 224x224, 196", lambda: SUPERPIXELS[way](image, N))
    assert labels.shape == (224, 224)
    if way == "OpenCV":
        assert torch.equal(labels, SUPERPIXELS["cast_kernels"](image, N))
    assert 0.6 * N < labels.unique().numel() <= 1.2 * N


def halved(x):
    """ToMe merges half of the tokens at most; ours pools to the same number."""
    centroids = torch.arange(0, N, 2, device=DEVICE).expand(B, -1).contiguous()
    return assign_pool(x, centroids, x)[1]


def tome(x):
    merge, _ = package("tome.merge").bipartite_soft_matching(x, N // 2)
    return merge(x, mode="mean")


@pytest.mark.parametrize("way", ["cast_kernels", "tome"])
def test_halving_tokens(benchmark, way):
    x = randn(B, N, C)
    result = run(benchmark, "196 -> 98 tokens", lambda: {"cast_kernels": halved, "tome": tome}[way](x))
    assert result.shape == (B, N // 2, C)
    assert result.isfinite().all()
