"""Multi-head self-attention (Vaswani et al., https://arxiv.org/abs/1706.03762)."""

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention over all tokens, ``softmax(q k^T / sqrt(d)) v`` per head, then a projection.

    Args:
        dim: Number of channels C.
        num_heads: Number of heads; divides ``dim``.
        qkv_bias: Whether the joint query, key and value projection has a bias.
        dropout: Dropout of attention weights and of the output while training.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, num_heads: int = 12, qkv_bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"expected num_heads to divide dim, got dim={dim} and num_heads={num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout) if dropout else None

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """Attend from every token to every token, or to those that are ``present`` alone.

        Args:
            x: ``[B, N, C]``.
            present: ``[N]`` or ``[B, N]`` bool, of which at least one per image is True; None = all.

        Returns:
            ``[B, N, C]``.
        """
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, N, d] each
        drop = self.dropout.p if self.dropout is not None and self.training else 0.0
        keys = None if present is None else present.view(-1, 1, 1, tokens)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=keys, dropout_p=drop)
        x = self.proj(x.transpose(1, 2).reshape(batch, tokens, dim))
        return x if self.dropout is None else self.dropout(x)
