"""Graph pooling: merge tokens into fewer, coarser ones (CAST, section 3.2, https://arxiv.org/abs/2210.00314)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cast_kernels import assign_pool, farthest_point_sample

from .attention import Attention

MAX_KAPPA = 40.0  # as far as cast_kernels.assign_pool goes


class PoolResult(NamedTuple):
    """What `GraphPool` returns; ``N`` tokens became ``K``."""

    tokens: Tensor  # [B, K, C] the coarser tokens
    cls: Tensor | None  # [B, M, C] the class tokens, updated
    logits: Tensor  # [B, N, K] kappa * cosine; softmax over K is the soft assignment
    indices: Tensor  # [B, K] int64, the tokens that serve as centroids, in the order sampled
    parents: Tensor  # [B, N] int64, the centroid that each token is assigned to


class GraphPool(nn.Module):
    """Pool ``N`` tokens into ``num_clusters``, with a soft assignment to centroids sampled among the tokens.

    With ``x`` the tokens and ``c`` the indices of their farthest points::

        u = x + attn(norm(x));  u = u - mean(u) + bias
        logits = kappa * cos(u, u[c]);  P = softmax over clusters
        z = dropout(GELU(fc1(norm1(x))))
        tokens = x[c] + fc2(norm2(P^T z / P^T 1))
        cls = cls + fc2(norm2(dropout(GELU(fc1(norm1(cls))))))

    It knows nothing of superpixels and fits between two blocks of any transformer. The centring removes
    ``attn.proj.bias``, whose gradient is therefore zero.

    Args:
        dim: Number of channels C.
        num_clusters: Number of coarser tokens K.
        num_heads: Heads of the attention that refines the grouping features; divides ``dim``.
        mlp_ratio: Width between ``fc1`` and ``fc2``, where pooling happens, in multiples of ``dim``.
        dropout: Dropout after ``fc1`` while training.
        kappa: Sharpness of the softmax over clusters, in (0, 40].
        normalize: Sample farthest points among l2-normalised tokens. The published models do not.

    Raises:
        ValueError: ``num_clusters`` is no integer of at least 1, ``kappa`` is outside (0, 40], ``mlp_ratio`` leaves no
            hidden channel, or ``num_heads`` does not divide ``dim``.
    """

    def __init__(
        self,
        dim: int,
        num_clusters: int,
        num_heads: int = 12,
        *,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        kappa: float = 5.0,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(num_clusters, bool) or not isinstance(num_clusters, int) or num_clusters < 1:
            raise ValueError(f"expected num_clusters to be an integer >= 1, got {num_clusters!r}")
        if not 0.0 < kappa <= MAX_KAPPA:
            raise ValueError(f"expected kappa in (0, {MAX_KAPPA:g}], got {kappa}")
        hidden_dim = int(dim * mlp_ratio)
        if hidden_dim < 1:
            raise ValueError(f"expected mlp_ratio to leave at least one of {dim} channels, got {mlp_ratio}")
        self.dim = dim
        self.num_clusters = num_clusters
        self.kappa = kappa
        self.normalize = normalize
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.bias = nn.Parameter(torch.empty(dim))
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(hidden_dim, eps=1e-5)
        self.fc2 = nn.Linear(hidden_dim, dim)
        nn.init.normal_(self.bias, std=0.01)

    def forward(
        self,
        tokens: Tensor,
        cls: Tensor | None = None,
        mask: Tensor | None = None,
        present: Tensor | None = None,
    ) -> PoolResult:
        """Pool the tokens of each image.

        Args:
            tokens: ``[B, N, C]`` with N >= ``num_clusters``, floating point.
            cls: Class tokens ``[B, M, C]``, transformed alike but not pooled, or None.
            mask: ``[B, N]`` bool, True = valid, or None = all. Invalid tokens are never sampled as long as valid ones
                are left, and do not enter the mean that sampling starts from. They do take part in the attention, in
                the centring and in the pooled means, as in the published model.
            present: ``[B, N]`` bool, or None = all. Tokens that are not present, such as padding, take part in nothing
                at all: the result is that of the others alone. At least ``num_clusters`` are needed per image.
                They get logits and parents too, which mean nothing.

        Returns:
            `PoolResult`. Sampling carries no gradient; everything else is differentiable and the same from run to run.

        Raises:
            TypeError: An argument is not a tensor, or the tokens are not floating point.
            ValueError: A shape or the mask's dtype does not match, or there are fewer tokens than clusters.
        """
        self._check(tokens, cls, mask, present)
        if present is not None:
            mask = present if mask is None else mask & present
        indices = self.sample(tokens, mask)

        u = tokens + self.attn(self.norm(tokens), present)
        weight = None if present is None else present[..., None].to(u.dtype)
        mean = u.mean(dim=1, keepdim=True) if weight is None else _weighted_mean(u, weight)
        u = u - mean + self.bias

        num_cls = 0 if cls is None else cls.shape[1]
        z = tokens if cls is None else torch.cat([cls, tokens], dim=1)
        z = self.dropout(self.act(self.fc1(self.norm1(z))))
        # Under autocast z comes in half precision and u, a residual sum, in float32: one dtype, as for any product.
        u, x = u.to(z.dtype), z[:, num_cls:]
        if weight is None:
            logits, pooled, parents = assign_pool(u, indices, x, kappa=self.kappa)
        else:  # the mean over the present ones is the quotient of two means over all
            weight = weight.to(z.dtype)
            logits, pooled, parents = assign_pool(u, indices, torch.cat([x * weight, weight], dim=2), kappa=self.kappa)
            pooled = pooled[..., :-1] / pooled[..., -1:]

        z = self.fc2(self.norm2(torch.cat([z[:, :num_cls], pooled], dim=1)))
        coarse = z[:, num_cls:] + tokens.gather(1, indices[..., None].expand(-1, -1, self.dim))
        return PoolResult(coarse, None if cls is None else cls + z[:, :num_cls], logits, indices, parents)

    @torch.no_grad()
    def sample(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the centroids' indices ``[B, K]`` int64: farthest points from the mean of the valid tokens.

        Arguments and errors are those of `forward`.
        """
        self._check(tokens, None, mask, None)
        if not self.normalize:
            return farthest_point_sample(tokens, self.num_clusters, start="mean", mask=mask)
        # The start is the direction of the mean of the raw tokens, not the mean of their directions, so it is a point
        # of its own: put in front, sampled first, and dropped.
        valid = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask
        mean = _weighted_mean(tokens, valid[..., None].to(tokens.dtype))
        points = F.normalize(torch.cat([mean, tokens], dim=1).double(), dim=2)
        valid = F.pad(valid, (1, 0), value=True)
        return farthest_point_sample(points, self.num_clusters + 1, start=0, mask=valid)[:, 1:] - 1

    def _check(self, tokens: Tensor, cls: Tensor | None, mask: Tensor | None, present: Tensor | None) -> None:
        for name, x in (("tokens", tokens), ("cls", cls), ("mask", mask), ("present", present)):
            if not isinstance(x, Tensor) and (x is not None or name == "tokens"):
                raise TypeError(f"expected {name} to be a torch.Tensor, got {type(x).__name__}")
        if not tokens.is_floating_point():
            raise TypeError(f"expected floating point tokens, got {tokens.dtype}")
        if tokens.ndim != 3 or tokens.shape[2] != self.dim:
            raise ValueError(f"expected tokens [B, N, {self.dim}], got {tuple(tokens.shape)}")
        if tokens.shape[1] < self.num_clusters:
            raise ValueError(
                f"expected at least num_clusters = {self.num_clusters} tokens to pool, got {tokens.shape[1]}; "
                "use more superpixels or a coarser granularity"
            )
        if cls is not None and (cls.ndim != 3 or cls.shape[::2] != tokens.shape[::2]):
            raise ValueError(f"expected cls [{tokens.shape[0]}, M, {self.dim}], got {tuple(cls.shape)}")
        for name, x in (("mask", mask), ("present", present)):
            if x is not None and (x.dtype != torch.bool or x.shape != tokens.shape[:2]):
                raise ValueError(
                    f"expected {name} to be bool {tuple(tokens.shape[:2])}, got {x.dtype} of shape {tuple(x.shape)}"
                )

    def extra_repr(self) -> str:
        """Show the settings in ``print(model)``."""
        return f"num_clusters={self.num_clusters}, kappa={self.kappa:g}, normalize={self.normalize}"


def _weighted_mean(x: Tensor, weight: Tensor) -> Tensor:
    """Average ``x [B, N, C]`` over tokens with weights ``[B, N, 1]`` of 0 or 1; zero where none is 1."""
    return (x * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
