"""Stochastic depth (Huang et al., https://arxiv.org/abs/1603.09382)."""

from torch import Tensor, nn


class DropPath(nn.Module):
    """Zero a whole residual branch per sample with probability ``drop_prob`` while training.

    What is kept is divided by ``1 - drop_prob``, so the expectation stays the same; in eval mode it is the identity.

    Args:
        drop_prob: Probability of dropping, in [0, 1).

    Raises:
        ValueError: ``drop_prob`` is outside [0, 1).
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= drop_prob < 1.0:
            raise ValueError(f"expected drop_prob in [0, 1), got {drop_prob}")
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """Keep or drop each sample of ``[B, ...]``."""
        if not self.training or self.drop_prob == 0.0:
            return x
        keep = 1.0 - self.drop_prob
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * (mask / keep)

    def extra_repr(self) -> str:
        """Show the probability in ``print(model)``."""
        return f"drop_prob={self.drop_prob:g}"
