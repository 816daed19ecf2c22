"""The two-layer perceptron of a transformer block."""

from torch import Tensor, nn


class Mlp(nn.Module):
    """``fc2(GELU(fc1(x)))`` on the last axis, with the exact (erf) GELU.

    Args:
        dim: Number of input and output channels.
        hidden_dim: Number of channels in between.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., dim]`` to ``[..., dim]``."""
        return self.fc2(self.act(self.fc1(x)))
