"""What the ops are compared with: the ways that a user would write them today. One home, imported by all benchmarks."""

import importlib
import importlib.metadata
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor


# segment_mean
def one_hot_bmm(x: Tensor, labels: Tensor, num_segments: int) -> Tensor:
    """The deterministic way without a kernel: a one-hot matrix product."""
    member = F.one_hot(labels.flatten(1).long(), num_segments).to(x.dtype)
    return torch.bmm(member.mT, x.flatten(1, 2)) / member.sum(1).clamp(min=1)[..., None]


def index_add(x: Tensor, labels: Tensor, num_segments: int) -> Tensor:
    """Atomic sums in float32."""
    B, _, _, C = x.shape
    index = (labels.flatten(1).long() + torch.arange(B, device=x.device)[:, None] * num_segments).flatten()
    total = torch.zeros(B * num_segments, C, device=x.device).index_add_(0, index, x.reshape(-1, C).float())
    count = torch.zeros(B * num_segments, device=x.device).index_add_(
        0, index, torch.ones_like(index, dtype=torch.float32)
    )
    return (total / count.clamp(min=1)[:, None]).view(B, num_segments, C).to(x.dtype)


def scatter_reduce(x: Tensor, labels: Tensor, num_segments: int) -> Tensor:
    """torch.scatter_reduce with "mean"."""
    index = labels.flatten(1).long()[..., None].expand(-1, -1, x.shape[-1])
    out = x.new_zeros(x.shape[0], num_segments, x.shape[-1])
    return out.scatter_reduce(1, index, x.flatten(1, 2), "mean", include_self=False)


def segment_csr(x: Tensor, labels: Tensor, num_segments: int) -> Tensor:
    """Rows sorted by label, then torch.segment_reduce."""
    B, _, _, C = x.shape
    index = (labels.flatten(1).long() + torch.arange(B, device=x.device)[:, None] * num_segments).flatten()
    lengths = torch.zeros(B * num_segments, dtype=torch.int64, device=x.device)
    lengths.scatter_add_(0, index, torch.ones_like(index))
    rows = x.reshape(-1, C)[index.argsort(stable=True)].float()
    total = torch.segment_reduce(rows, "sum", lengths=lengths, unsafe=True)
    return (total / lengths.clamp(min=1)[:, None]).view(B, num_segments, C).to(x.dtype)


def materialised_upsample(x: Tensor, labels: Tensor, num_segments: int, interpolation: str) -> Tensor:
    """The published way to average finer than the map: upsample, then scatter."""
    fine = F.interpolate(x.permute(0, 3, 1, 2), labels.shape[1:], mode=interpolation, align_corners=False)
    return index_add(fine.permute(0, 2, 3, 1), labels, num_segments)


def published_tokens(x: Tensor, labels: Tensor, num_segments: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The published sequence: three scatter means (features, positions, ones) and their sums, syncs left out."""
    shared = positions.expand(x.shape[0], -1, -1, -1).contiguous()
    ones = torch.ones_like(x[..., :1])
    mean = scatter_reduce(x, labels, num_segments) + scatter_reduce(shared, labels, num_segments)
    return mean, scatter_reduce(ones, labels, num_segments)[..., 0] <= 0.5


# farthest_point_sample
def gram_loop(x: Tensor, num_samples: int) -> Tensor:
    """A Gram matrix and an argmax loop in plain PyTorch; starts at the mean token."""
    centred = x.float() - x.float().mean(1, keepdim=True)
    gram = torch.bmm(centred, centred.mT)
    norm = gram.diagonal(dim1=1, dim2=2)
    seen, picks = norm.clone(), []
    for _ in range(num_samples):
        pick = seen.argmax(1, keepdim=True)
        picks.append(pick)
        row = gram.gather(1, pick[..., None].expand(-1, 1, x.shape[1]))[:, 0]
        seen = torch.minimum(seen, (norm + norm.gather(1, pick) - 2 * row).clamp(min=0))
    return torch.cat(picks, 1)


def library_samplers(x: Tensor, num_samples: int) -> dict[str, Callable[[], Tensor] | None]:
    """Farthest point samplers of other packages that import here; None where one does not."""
    wide = x.float().contiguous()
    batch = torch.arange(x.shape[0], device=x.device).repeat_interleave(x.shape[1])

    def quick(module):
        return lambda: module.sample_idx(wide, num_samples)

    def cluster(module):
        ratio = num_samples / x.shape[1]
        return lambda: module.fps(wide.flatten(0, 1), batch, ratio=ratio, random_start=False)

    def dgl(module):
        return lambda: module.geometry.farthest_point_sampler(wide.double(), num_samples, 0)

    found = {}
    for name, make in (("torch_quickfps", quick), ("torch_cluster", cluster), ("dgl", dgl)):
        try:
            found[name] = make(importlib.import_module(name))
        except Exception:  # a package built for another torch raises anything
            found[name] = None
    return found


# assign_pool
def assign_pool_plain(u: Tensor, centroids: Tensor, z: Tensor, kappa: float = 5.0) -> tuple[Tensor, Tensor]:
    """What a user would write, for torch.compile to fuse."""
    unit = F.normalize(u, dim=-1)
    logits = kappa * unit @ unit.gather(1, centroids[..., None].expand(-1, -1, u.shape[-1])).mT
    share = logits.softmax(-1)
    return logits, share.mT @ z / share.sum(1)[..., None]


# unpool
def gather(coarse: Tensor, parents: Tensor) -> Tensor:
    """torch.gather with an expanded index."""
    return coarse.gather(1, parents[..., None].expand(-1, -1, coarse.shape[-1]))


def scatter_add(grad: Tensor, parents: Tensor, num_coarse: int) -> Tensor:
    """The gradient of ``gather``, atomically."""
    out = grad.new_zeros(grad.shape[0], num_coarse, grad.shape[2])
    return out.scatter_add(1, parents[..., None].expand(-1, -1, grad.shape[-1]), grad)


# seeds
def opencv_seeds(images: Tensor, num_superpixels: int) -> Callable[[], object] | None:
    """OpenCV's SEEDS of RGB images on all cores of the host, with the published settings; None where it is missing."""
    try:
        cv2 = importlib.import_module("cv2")
        create = cv2.ximgproc.createSuperpixelSEEDS
    except (ImportError, AttributeError):
        return None
    cv2.setNumThreads(1)  # its SEEDS has one thread; more come from the batch
    batch = images.cpu().numpy()
    height, width = batch.shape[1:3]

    def segment(image):
        segmenter = create(width, height, 3, num_superpixels, 1, 2, 15, False)
        segmenter.iterate(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), 20)
        return segmenter.getLabels()

    def run():
        with ThreadPoolExecutor(min(os.cpu_count() or 1, len(batch))) as pool:
            return list(pool.map(segment, batch))

    return run
