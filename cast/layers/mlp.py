"""The two-layer perceptron of a transformer block."""

from torch import Tensor, nn


class Mlp(nn.Module):
    """``fc2(GELU(fc1(x)))`` on the last axis, with the exact (erf) GELU.

    Args:
        dim: Number of input and output channels.
        hidden_dim: Number of channels in between.
        dropout: Dropout after either layer while training.
    """

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout) if dropout else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., dim]`` to ``[..., dim]``."""
        if self.dropout is None:
            return self.fc2(self.act(self.fc1(x)))
        return self.dropout(self.fc2(self.dropout(self.act(self.fc1(x)))))
