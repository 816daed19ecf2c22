"""The segmentation hierarchy that a patch ViT is given to be compared with CAST: k-means on its tokens.

Source: CAST (ICLR 2024, https://arxiv.org/abs/2210.00314), Appendix E.5.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def kmeans_hierarchy(
    tokens: Tensor,
    size: tuple[int, int],
    counts: Sequence[int] = (64, 32, 16, 8),
    seed: int = 0,
    iterations: int = 30,
    spherical: bool = True,
) -> Tensor:
    """Segment images by k-means on their upsampled tokens, then by k-means on the centres, so that levels nest.

    Tokens are upsampled (bilinear, ``align_corners=False``), one vector per pixel. The first level groups the pixels
    into ``counts[0]`` clusters; each further one groups the centres of the level before. Centres start at random
    points. In each iteration every point joins its nearest centre (the lowest index on ties), and every centre moves to
    the mean of its points; a centre that has lost all takes the point that fits its own centre least. Where there are
    fewer different points than centres, labels are left unused.

    Args:
        tokens: ``[B, C, h, w]``, floating point; half precision is computed in float32.
        size: Height and width of the label maps.
        counts: Clusters per level, fine to coarse, at most as many as pixels.
        seed: Of the points that the centres start from. They are the same pixels in every image, so the result of an
            image does not depend on the others of the batch; no global random state is used.
        iterations: Of each level.
        spherical: Whether the nearest centre is that at the smallest angle, and centres are kept at length 1, as in the
            paper; points keep their lengths as weights, as in the published notebook. Otherwise Euclidean.

    Returns:
        Label maps int64 ``[B, L, H, W]``, fine to coarse, on the device of the tokens; those of level ``l`` lie in
        ``[0, counts[l])``.

    Raises:
        TypeError: ``tokens`` is no floating point tensor.
        ValueError: A shape, a size, the counts or the iterations do not fit.
    """
    if not isinstance(tokens, Tensor) or not tokens.is_floating_point():
        raise TypeError(f"expected floating point tokens, got {getattr(tokens, 'dtype', type(tokens).__name__)}")
    if tokens.ndim != 4 or 0 in tokens.shape[1:]:
        raise ValueError(f"expected tokens [B, C, h, w], got {list(tokens.shape)}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"expected a height and a width of at least 1, got {size}")
    counts = [size[0] * size[1], *counts]
    if len(counts) == 1 or any(fine < coarse for fine, coarse in pairwise(counts)) or counts[-1] < 1:
        raise ValueError(f"expected counts >= 1 that fall from at most {counts[0]} pixels, got {counts[1:]}")
    if iterations < 1:
        raise ValueError(f"expected iterations >= 1, got {iterations}")
    generator = torch.Generator().manual_seed(seed)  # on the CPU: every device starts from the same pixels
    tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    points = F.interpolate(tokens, size, mode="bilinear", align_corners=False).flatten(2).mT  # [B, N, C]
    maps: list[Tensor] = []
    for points_left, count in pairwise(counts):
        first = torch.randperm(points_left, generator=generator)[:count].to(points.device)
        points, parents = _kmeans(points, points[:, first], iterations, spherical)
        maps.append(parents.gather(1, maps[-1]) if maps else parents)
    return torch.stack(maps, 1).unflatten(2, tuple(size))


def _kmeans(points: Tensor, centres: Tensor, iterations: int, spherical: bool) -> tuple[Tensor, Tensor]:
    """Return the centres ``[B, K, C]`` and the label ``[B, N]`` of each of the points ``[B, N, C]``."""
    numbers = torch.arange(centres.shape[1], device=points.device)
    if spherical:
        centres = F.normalize(centres, dim=-1)
    for _ in range(iterations):
        fit, labels = _nearest(points, centres, spherical)
        member = (labels[..., None] == numbers).to(points.dtype)  # a product with it adds in a fixed order
        count = member.sum(1)[..., None]
        centres = torch.where(count > 0, member.mT @ points / count.clamp(min=1), centres)
        if (empty := count == 0).any():
            worst = fit.argsort(dim=-1, stable=True)
            taken = worst.gather(1, (empty[..., 0].cumsum(-1) - 1).clamp(min=0))  # the i-th takes the i-th worst
            centres = torch.where(empty, points.gather(1, taken[..., None].expand_as(centres)), centres)
        if spherical:
            centres = F.normalize(centres, dim=-1)
    return centres, _nearest(points, centres, spherical)[1]


def _nearest(points: Tensor, centres: Tensor, spherical: bool) -> tuple[Tensor, Tensor]:
    """Return how well each point fits its nearest centre (cosine, or minus half the squared distance), and which."""
    product = points @ centres.mT
    if spherical:
        fit, labels = product.max(-1)
        return fit / points.norm(dim=-1).clamp(min=torch.finfo(points.dtype).tiny), labels
    fit, labels = (product - centres.square().sum(-1)[:, None] / 2).max(-1)
    return fit - points.square().sum(-1) / 2, labels
