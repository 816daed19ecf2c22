"""One feature per superpixel from the tokens of all levels, a hypercolumn (CAST, algorithm 2, arXiv 2210.00314)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cast_kernels import unpool_concat, unpool_linear


class BlockFusion(nn.Module):
    """``proj(dropout(norm(x)))`` with ``x`` all levels brought to the finest one by the chain of parents, concatenated.

    The class tokens of all levels are concatenated alike and go through the same layers, as one more token in front. In
    train mode the batch norm therefore couples them, and empty superpixels, with all other tokens of the batch.

    Where the batch norm has been folded into ``proj`` and replaced by the identity, ``proj`` runs before the levels are
    brought together in eval mode: equal to rounding, and a coarse token is multiplied once instead of once for every
    superpixel below it (`cast_kernels.unpool_linear`).

    Args:
        dim: Number of channels C of each level.
        num_levels: Number of levels L.
        dropout: Dropout before the projection while training.
    """

    def __init__(self, dim: int, num_levels: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(num_levels * dim)
        self.dropout = nn.Dropout(dropout)
        self.proj = nn.Linear(num_levels * dim, dim)

    def forward(
        self,
        levels: Sequence[Tensor],
        parents: Sequence[Tensor],
        cls: Sequence[Tensor],
        present: Tensor | None = None,
    ) -> Tensor:
        """Fuse the tokens of all levels.

        Args:
            levels: Segment tokens from fine to coarse, ``[B, N_l, C]`` each.
            parents: Per level but the last, the segment of the next one that each belongs to, ``[B, N_l]`` int64.
            cls: Class tokens, ``[B, M, C]`` each.
            present: ``[N_0]`` bool, or None = all. Superpixels that are not present leave the batch statistics alone,
                and their fused tokens are the mean of the others', so that a mean over all is one over the others.

        Returns:
            ``[B, M + N_0, C]``, class tokens first.

        Raises:
            ValueError: Numbers of levels or shapes do not fit; or in train mode, ``present`` is given while the norm
                is one that other processes share.
        """
        joint = torch.cat(list(cls), dim=2)  # [B, M, L C]
        if isinstance(self.norm, nn.Identity) and type(self.proj) is nn.Linear and not self.training:
            tokens = unpool_linear(levels, parents, self.proj.weight, self.proj.bias)
            return _fill(torch.cat([self.proj(joint), tokens], dim=1), joint.shape[1], present)
        x = torch.cat([joint, unpool_concat(levels, parents)], dim=1)  # [B, M + N_0, L C]
        if present is not None and self.norm.training:
            x = self._norm_of_present(x, torch.cat([present.new_ones(joint.shape[1]), present]))
        else:
            x = self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return _fill(self.proj(self.dropout(x)), joint.shape[1], present)

    def _norm_of_present(self, x: Tensor, present: Tensor) -> Tensor:
        """Do what ``norm`` does in train mode, with the statistics of some of the tokens ``[B, N, L C]`` alone."""
        norm = self.norm
        if not isinstance(norm, nn.BatchNorm1d):
            raise ValueError(
                f'expected BatchNorm1d, got {type(norm).__name__}: compat="published" knows its own statistics only'
            )
        weight = present[:, None].to(torch.promote_types(x.dtype, torch.float32))
        count = weight.sum() * x.shape[0]
        mean = (x * weight).sum((0, 1)) / count
        var = ((x - mean).square() * weight).sum((0, 1)) / count
        with torch.no_grad():
            norm.num_batches_tracked += 1
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
            unbiased = var * count / (count - 1)
            norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), norm.momentum)
        return ((x - mean) * (var + norm.eps).rsqrt() * norm.weight + norm.bias).to(x.dtype)


def _fill(x: Tensor, first: int, present: Tensor | None) -> Tensor:
    """Replace the tokens after the ``first`` that are not present by the mean of those that are."""
    if present is None:
        return x
    tokens = x[:, first:]
    mean = (tokens * present[:, None].to(x.dtype)).sum(1, keepdim=True) / present.sum()
    return torch.cat([x[:, :first], torch.where(present[:, None], tokens, mean)], dim=1)
