"""GraphPool in the middle of a `torch.nn.TransformerEncoder`: 196 tokens become 49; each says which it joined."""

import torch
from torch import nn

from cast import GraphPool


class PooledEncoder(nn.Module):
    def __init__(self, dim=192, heads=6, clusters=49):
        super().__init__()
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.pool = GraphPool(dim, clusters, heads)
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, batch_first=True, norm_first=True)
        self.fine, self.coarse = (nn.TransformerEncoder(layer, 3, enable_nested_tensor=False) for _ in range(2))

    def forward(self, tokens):
        x = self.fine(torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], dim=1))
        pooled = self.pool(x[:, 1:], cls=x[:, :1])
        return self.coarse(torch.cat([pooled.cls, pooled.tokens], dim=1)), pooled.parents


if __name__ == "__main__":
    features, parents = PooledEncoder()(torch.randn(2, 196, 192))
    print(tuple(features.shape), tuple(parents.shape))  # (2, 50, 192) (2, 196)
