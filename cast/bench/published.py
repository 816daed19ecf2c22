"""The forward pass as the published code runs it: the same numbers by the operations that it uses.

A peer to measure against. It shares the modules of a `Cast`, so that both have the same weights, and does with them
what the published code does: three scatter means whose sizes are read back from the device, farthest point sampling in
float64 one step at a time (its own sampler is DGL's, which no current PyTorch loads; a batched loop stands for it),
attention and assignment as separate products, and the last pool, although nothing of it reaches the logits.

Source: Ke, Mo, Yu, ICLR 2024, and what is known of its implementation (https://github.com/twke18/CAST).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cast.layers import Attention, Block, GraphPool
from cast.models import Cast


class PublishedForward(nn.Module):
    """A `Cast` of the classification family, run the published way, on images and superpixels.

    Args:
        model: Whose modules to run.
        sampling: Whether to sample farthest points. Without, the indices of the first call of each batch size are
            kept and used again: what the rest costs.
    """

    def __init__(self, model: Cast, *, sampling: bool = True) -> None:
        super().__init__()
        self.model = model
        self.sampling = sampling
        self._indices: dict[tuple[int, int], Tensor] = {}

    def forward(self, image: Tensor, labels: Tensor) -> Tensor:
        """Classify normalised images ``[B, 3, H, W]`` with superpixels ``[B, H, W]``; returns ``[B, num_classes]``."""
        model = self.model
        features = model.stem.proj(model.stem.layers(image)).permute(0, 2, 3, 1).contiguous()
        small = F.interpolate(labels[:, None].float(), features.shape[1:3], mode="nearest")[:, 0].long()
        cls, positions = model._positions(features.shape[1:3])
        positions = positions.expand(len(image), -1, -1).contiguous().view_as(features)
        tokens = _segment_mean(features, small) + _segment_mean(positions, small)
        empty = _segment_mean(torch.ones_like(features[..., :1]), small)[..., 0] <= 0.5
        cls = cls.expand(len(image), -1, -1)
        for level, stage in enumerate(model.stages):
            x = torch.cat([cls, tokens], dim=1)
            for block in stage.blocks:
                x = _block(block, x)
            if stage is model.stages[-1]:
                embedding = model.norm(x)[:, 0]
            cls, tokens = self._pool(stage.pool, level, x[:, :1], x[:, 1:], empty)
            empty = torch.zeros_like(tokens[..., 0], dtype=torch.bool)
        return model.head(embedding)

    def _pool(self, pool: GraphPool, level: int, cls: Tensor, tokens: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
        indices = self._sample(pool, level, tokens, empty)
        assert (indices >= 0).all()  # reads the device, as published
        u = tokens + _attention(pool.attn, pool.norm(tokens))
        u = u - u.mean(dim=1, keepdim=True) + pool.bias
        centres = u.gather(1, indices[..., None].expand(-1, -1, u.shape[-1]))
        logits = pool.kappa * torch.einsum("bnc,bkc->bnk", F.normalize(u, dim=-1), F.normalize(centres, dim=-1))
        share = logits.softmax(dim=-1)
        z = pool.dropout(pool.act(pool.fc1(pool.norm1(torch.cat([cls, tokens], dim=1)))))
        total = torch.bmm(share.transpose(1, 2), torch.ones_like(z[:, 1:, :1]))
        pooled = torch.einsum("bnk,bnc->bkc", share, z[:, 1:]) / total
        out = pool.fc2(pool.norm2(torch.cat([z[:, :1], pooled], dim=1)))
        kept = tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))
        return cls + out[:, :1], out[:, 1:] + kept

    @torch.no_grad()
    def _sample(self, pool: GraphPool, level: int, tokens: Tensor, empty: Tensor) -> Tensor:
        key = (level, len(tokens))
        if not self.sampling and key in self._indices:
            return self._indices[key]
        valid = ~empty[..., None]
        mean = (tokens * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)
        points = torch.cat([mean, torch.where(valid, tokens, mean)], dim=1).double()
        self._indices[key] = _farthest(points, pool.num_clusters + 1)[:, 1:] - 1
        return self._indices[key]


def _segment_mean(x: Tensor, labels: Tensor) -> Tensor:
    """Average ``[B, h, w, C]`` by label; the number of segments is the largest label of the batch plus one."""
    count = int(labels.max()) + 1  # waits for the device, as published
    index = labels.flatten(1)[..., None]
    rows = x.flatten(1, 2)
    total = torch.zeros(len(x), count, x.shape[-1], dtype=x.dtype, device=x.device)
    total.scatter_add_(1, index.expand_as(rows), rows)
    size = torch.zeros_like(total[..., :1]).scatter_add_(1, index, torch.ones_like(rows[..., :1]))
    return total / size.clamp(min=1)


def _block(block: Block, x: Tensor) -> Tensor:
    x = x + _attention(block.attn, block.norm1(x))
    return x + block.mlp(block.norm2(x))


def _attention(attn: Attention, x: Tensor) -> Tensor:
    """Attention with its weights written out, as timm computed it in 2021."""
    B, N, C = x.shape
    q, k, v = attn.qkv(x).view(B, N, 3, attn.num_heads, C // attn.num_heads).permute(2, 0, 3, 1, 4)
    weights = ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return attn.proj((weights @ v).transpose(1, 2).reshape(B, N, C))


def _farthest(points: Tensor, count: int) -> Tensor:
    """Sample farthest points, starting at row 0, one step after the other in the dtype of ``points``."""
    rows = torch.arange(len(points), device=points.device)
    picks = [torch.zeros_like(rows)]
    nearest = torch.full(points.shape[:2], torch.inf, dtype=points.dtype, device=points.device)
    for _ in range(count - 1):
        gap = (points - points[rows, picks[-1]][:, None]).square().sum(-1)
        nearest = torch.minimum(nearest, gap)
        picks.append(nearest.argmax(dim=1))
    return torch.stack(picks, dim=1)
