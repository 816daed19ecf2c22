"""One feature per superpixel from the tokens of all levels, a hypercolumn (CAST, algorithm 2, arXiv 2210.00314)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cast_kernels import unpool_concat


class BlockFusion(nn.Module):
    """``proj(dropout(norm(x)))`` with ``x`` all levels brought to the finest one by the chain of parents, concatenated.

    The class tokens of all levels are concatenated alike and go through the same layers, as one more token in front. In
    train mode the batch norm therefore couples them, and empty superpixels, with all other tokens of the batch.

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

    def forward(self, levels: Sequence[Tensor], parents: Sequence[Tensor], cls: Sequence[Tensor]) -> Tensor:
        """Fuse the tokens of all levels.

        Args:
            levels: Segment tokens from fine to coarse, ``[B, N_l, C]`` each.
            parents: Per level but the last, the segment of the next one that each belongs to, ``[B, N_l]`` int64.
            cls: Class tokens, ``[B, M, C]`` each.

        Returns:
            ``[B, M + N_0, C]``, class tokens first.

        Raises:
            ValueError: Numbers of levels or shapes do not fit.
        """
        x = torch.cat([torch.cat(list(cls), dim=2), unpool_concat(levels, parents)], dim=1)  # [B, M + N_0, L C]
        x = self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.proj(self.dropout(x))
