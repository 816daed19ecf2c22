"""Pre-norm transformer block (Dosovitskiy et al., https://arxiv.org/abs/2010.11929)."""

from torch import Tensor, nn

from .attention import Attention
from .drop_path import DropPath
from .mlp import Mlp


class Block(nn.Module):
    """``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``.

    Args:
        dim: Number of channels C.
        num_heads: Number of attention heads; divides ``dim``.
        mlp_ratio: Hidden width of the perceptron, in multiples of ``dim``.
        drop_path: Probability of dropping a residual branch while training.
        dropout: Dropout in the attention and the perceptron while training.
        eps: Of the norms.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, num_heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """Refine tokens: ``[B, N, C]`` -> ``[B, N, C]``; only tokens that are ``present``, bool, are attended to."""
        x = x + self.drop_path(self.attn(self.norm1(x), present))
        return x + self.drop_path(self.mlp(self.norm2(x)))
