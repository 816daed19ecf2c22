"""Oracles and tolerances for the ops: definitions written a second way, in float64, to test every backend against.

Nothing here calls an op or shares code with one. `cast-kernels doctor` and the tests use it.
"""

import zlib

import torch
import torch.nn.functional as F
from torch import Tensor


def max_error(result: Tensor, exact: Tensor) -> float:
    """Largest absolute difference, in float64; infinite where one is not finite and the other is."""
    if result.shape != exact.shape:
        raise AssertionError(f"shape {list(result.shape)}, expected {list(exact.shape)}")
    difference = (result.double() - exact.double()).abs()
    difference[(result.double() == exact.double()) | (result.isnan() & exact.isnan())] = 0.0
    return difference.nan_to_num(nan=torch.inf).max().item() if difference.numel() else 0.0


def assert_accurate(result: Tensor, exact: Tensor, plain: Tensor, *, times: float = 2.0) -> None:
    """Raise AssertionError where ``result`` errs more than ``times`` as much as ``plain`` plus one rounding.

    Args:
        result: What is tested.
        exact: The float64 oracle.
        plain: The same computed by plain PyTorch in the dtype of ``result``.
        times: 2 for values; 3 for gradients, which sum more terms.
    """
    rounding = torch.finfo(result.dtype).eps * exact.abs().max().item() if exact.numel() else 0.0
    error, bound = max_error(result, exact), times * max_error(plain, exact) + rounding
    if not error <= bound:
        raise AssertionError(f"error {error:.3e} exceeds {times:g} x plain PyTorch + one rounding = {bound:.3e}")


def segment_mean_oracle(
    x: Tensor, labels: Tensor, num_segments: int, interpolation: str | None = None, *, loop: bool = False
) -> Tensor:
    """Means [B, S, C] of the interpolated map; x [B, H, W, C], labels [B, H', W'].

    By a one-hot product, or with ``loop`` segment by segment, for values that are not finite.
    """
    x = x.double()
    if interpolation is not None:
        options = {} if interpolation == "nearest" else {"align_corners": False}
        x = F.interpolate(x.permute(0, 3, 1, 2), labels.shape[1:], mode=interpolation, **options).permute(0, 2, 3, 1)
    if loop:
        rows = [[one[label == s].mean(0) for s in range(num_segments)] for one, label in zip(x, labels, strict=True)]
        means = torch.stack([torch.stack(row) for row in rows])
        empty = torch.stack([torch.stack([(label != s).all() for s in range(num_segments)]) for label in labels])
        return means.masked_fill(empty[..., None], 0.0)
    member = (labels.flatten(1)[..., None] == torch.arange(num_segments, device=x.device)).double()  # [B, P, S]
    return member.mT @ x.flatten(1, 2) / member.sum(1).clamp(min=1)[..., None]


def farthest_point_oracle(x: Tensor, picks: Tensor, start: Tensor | int) -> Tensor:
    """Relative shortfall [B, K] of each pick: how much nearer it is to the earlier picks than the farthest token is.

    Args:
        x: Tokens [B, N, C].
        picks: The picks to judge [B, K].
        start: The point [B, C] from which the first distances are measured, or the index of the first pick.
    """
    x = x.double()
    if isinstance(start, int):
        seen = torch.cdist(x, x[:, start : start + 1], compute_mode="donot_use_mm_for_euclid_dist")[..., 0] ** 2
        shortfall = [(picks[:, 0] != start).double()]
        picks = picks[:, 1:]
    else:
        seen = ((x - start.double()[:, None]) ** 2).sum(-1)
        shortfall = []
    for pick in picks.mT:
        mine = seen.gather(1, pick[:, None])[:, 0]
        best = seen.max(1).values
        shortfall.append((best - mine) / best.clamp(min=torch.finfo(torch.float64).tiny))
        point = x.gather(1, pick[:, None, None].expand(-1, 1, x.shape[2]))
        seen = torch.minimum(seen, ((x - point) ** 2).sum(-1))
    return torch.stack(shortfall, 1)


def assign_pool_oracle(u: Tensor, centroids: Tensor, z: Tensor, kappa: float) -> tuple[Tensor, Tensor]:
    """Logits [B, N, K] and pooled [B, K, D], by cosine_similarity and einsum."""
    u, z = u.double(), z.double()
    centres = u[torch.arange(len(u), device=u.device)[:, None], centroids]
    logits = kappa * F.cosine_similarity(u[:, :, None], centres[:, None], dim=-1, eps=0.0).nan_to_num(nan=0.0)
    share = logits.exp() / logits.exp().sum(-1, keepdim=True)
    return logits, torch.einsum("bnk,bnd->bkd", share / share.sum(1, keepdim=True), z)


def unpool_oracle(levels: list[Tensor], parents: list[Tensor]) -> Tensor:
    """[B, N_0, sum of C_l] by one-hot products up the levels; a parent out of range belongs nowhere."""
    route = None
    parts = [levels[0].double()]
    for level, table in zip(levels[1:], parents, strict=True):
        step = (table[..., None] == torch.arange(level.shape[1], device=level.device)).double()
        route = step if route is None else route @ step
        parts.append(route @ level.double())
    return torch.cat(parts, -1)


def superpixel_summary_oracle(labels: Tensor, num_segments: int, image: Tensor, thick: bool) -> tuple[Tensor, ...]:
    """Area, box, mean colour in float64 and boundary, segment by segment and neighbour by neighbour.

    labels [B, H, W], image [B, H, W, 3].
    """
    area, box, color = [], [], []
    for one, picture in zip(labels.long(), image.double(), strict=True):
        for s in range(num_segments):
            y, x = (one == s).nonzero(as_tuple=True)
            area.append(len(y))
            box.append([y.min(), x.min(), y.max() + 1, x.max() + 1] if len(y) else [0] * 4)
            color.append(picture[y, x].mean(0) if len(y) else picture.new_zeros(3))
    B, S = len(labels), num_segments
    known = torch.where((labels.long() >= 0) & (labels.long() < S), labels.long(), -1)
    framed = F.pad(known[:, None].double(), (1, 1, 1, 1), mode="replicate")[:, 0].long()  # the frame is no boundary
    sides = [framed[:, 1:-1, 2:], framed[:, 2:, 1:-1], framed[:, 1:-1, :-2], framed[:, :-2, 1:-1]]
    edge = torch.stack([side != known for side in sides[: 4 if thick else 2]]).any(0)
    boxes = torch.tensor(box, dtype=torch.int64).view(B, S, 4)
    return torch.tensor(area).view(B, S), boxes, torch.stack(color).view(B, S, 3).cpu(), edge.cpu()


def edges_oracle(labels: Tensor, num_segments: int) -> list[list[list[int]]]:
    """The edges [u, v] of each image, u < v, sorted: pixel by pixel into a set."""
    found = []
    for one in labels.tolist():
        edges = set()
        for y, row in enumerate(one):
            for x, u in enumerate(row):
                for v in [*row[x + 1 : x + 2], *(below[x] for below in one[y + 1 : y + 2])]:
                    if u != v and min(u, v) >= 0 and max(u, v) < num_segments:
                        edges.add((min(u, v), max(u, v)))
        found.append([list(edge) for edge in sorted(edges)])
    return found


def synthetic_image(height: int, width: int, seed: int = 0) -> Tensor:
    """A uint8 RGB image [1, H, W, 3]: discs on a gradient, with noise. Integers only, so equal on any machine."""
    y, x = torch.arange(height)[:, None], torch.arange(width)[None]
    state = seed * 7919 + 1
    image = torch.stack(
        [(y * 160 // height).expand(-1, width), (x * 160 // width).expand(height, -1), (x + y) % 97], -1
    )
    for _ in range(12):
        draws = []
        for _ in range(6):
            state = (state * 1103515245 + 12345) % 2**31
            draws.append(state >> 8)
        centre_y, centre_x, radius = draws[0] % height, draws[1] % width, 2 + draws[2] % max(1, min(height, width) // 4)
        inside = (y - centre_y) ** 2 + (x - centre_x) ** 2 <= radius**2
        image[inside] = torch.tensor([draw % 256 for draw in draws[3:]])
    noise = (y[..., None] * 7 + x[..., None] * 13 + torch.arange(3) * 5 + y[..., None] * x[..., None]) % 11
    return (image + noise).clamp(max=255).to(torch.uint8)[None]


def checksum(x: Tensor) -> int:
    """crc32 of the values in order, dtype and strides apart."""
    return zlib.crc32(x.cpu().to(torch.int32).contiguous().numpy().tobytes())
