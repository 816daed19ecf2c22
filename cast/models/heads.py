"""What is put on top of segment tokens: a projector, and decoders that predict classes.

Sources: Chen, Xie, He, "An Empirical Study of Training Self-Supervised Vision Transformers" (MoCo v3, arXiv
2104.02057); Strudel et al., "Segmenter" (arXiv 2105.05633); Ke, Hwang, Yu, "Universal Weakly Supervised Segmentation by
Pixel-to-Segment Contrastive Learning" (SPML, arXiv 2105.00957).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cast.layers import Block


class Projector(nn.Sequential):
    """Linear layers without bias, each followed by batch norm, with ReLU in between; the last norm has no scale.

    Statistics are over all leading axes: one sample per image, or per segment.

    Args:
        dim: Number of input channels.
        widths: Output channels of each layer.
    """

    def __init__(self, dim: int, widths: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for i, width in enumerate(widths):
            is_last = i == len(widths) - 1
            layers += [nn.Linear(dim, width, bias=False), nn.BatchNorm1d(width, affine=not is_last)]
            if not is_last:
                layers.append(nn.ReLU(inplace=True))
            dim = width
        super().__init__(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., dim]`` to ``[..., widths[-1]]``."""
        return super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


class LinearDecoder(nn.Module):
    """One linear layer per segment.

    Args:
        dim: Number of input channels.
        num_classes: Number of classes.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, num_classes)
        _init_linear_layers(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``[B, N, C]`` to logits ``[B, N, num_classes]``."""
        return self.head(tokens)


class MaskTransformer(nn.Module):
    """Transformer blocks on segment tokens and one learned token per class; logits compare the two.

    ``logits = mask_norm(cos(tokens proj_patch, classes proj_classes))``, the norm over classes.

    Args:
        dim: Number of channels C.
        num_classes: Number of classes K.
        depth: Number of blocks.
        num_heads: Attention heads; divides ``dim``.
        dropout: Dropout in the blocks while training.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, num_classes: int, depth: int = 2, num_heads: int = 6, dropout: float = 0.1) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.proj_dec = nn.Linear(dim, dim)
        self.cls_emb = nn.Parameter(torch.zeros(1, num_classes, dim))
        self.blocks = nn.ModuleList(Block(dim, num_heads, dropout=dropout, eps=1e-5) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(dim)
        self.proj_patch = nn.Parameter(dim**-0.5 * torch.randn(dim, dim))
        self.proj_classes = nn.Parameter(dim**-0.5 * torch.randn(dim, dim))
        self.mask_norm = nn.LayerNorm(num_classes)
        _init_linear_layers(self)
        nn.init.trunc_normal_(self.cls_emb, std=0.02)

    def forward(self, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        """Map ``[B, N, C]`` to logits ``[B, N, num_classes]``; only segments ``present [N]``, bool, are attended to."""
        x = torch.cat([self.proj_dec(tokens), self.cls_emb.expand(tokens.shape[0], -1, -1)], dim=1)
        keys = None if present is None else torch.cat([present, present.new_ones(self.num_classes)])
        for block in self.blocks:
            x = block(x, keys)
        x = self.decoder_norm(x)
        segments = F.normalize(x[:, : -self.num_classes] @ self.proj_patch, dim=2)
        classes = F.normalize(x[:, -self.num_classes :] @ self.proj_classes, dim=2)
        return self.mask_norm(segments @ classes.transpose(1, 2))


class ConvDecoder(nn.Sequential):
    """1x1 convolution without bias, batch norm, ReLU, 1x1 convolution to classes.

    Batch statistics are over pixels, so that in train mode a segment counts as often as it has pixels.

    Args:
        dim: Number of input channels C.
        num_classes: Number of classes.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__(
            nn.Conv2d(dim, dim, 1, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(inplace=True),
            nn.Conv2d(dim, num_classes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map pixels ``[B, C, H, W]`` to logits ``[B, num_classes, H, W]``, or tokens ``[B, N, C]`` likewise."""
        if x.ndim == 4:
            return super().forward(x)
        return super().forward(x.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)


def _init_linear_layers(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
