"""The patch baseline of the paper: the vision transformer with convolutional stem of MoCo v3.

Sources: Chen, Xie, He, arXiv 2104.02057; Xiao et al., arXiv 2106.14881 for the stem; Dosovitskiy et al., arXiv
2010.11929.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cast.layers import Block, ConvStem, sincos_2d

from .base import ImageModel
from .config import ViTConfig
from .features import Run
from .init import init_weights
from .inputs import channels_first, normalise


class ViT(ImageModel):
    """A convolutional stem of stride 16, fixed sin-cos positions, a class token, transformer blocks, a classifier.

    Images are uint8 ``[B, 3, H, W]`` or ``[B, H, W, 3]``, normalised inside, or floating point ``[B, 3, H, W]``,
    normalised already, with H and W multiples of 16.

    Args:
        config: The settings; kept as ``model.config``.

    Attributes:
        stem: The `ConvStem`.
        pos_embed: ``[1, N, C]``, the frozen sin-cos table of the ``img_size`` grid, a buffer that is not saved. Other
            grids compute their own. The class token has no position.
        blocks: The transformer blocks.
        norm: The final `LayerNorm`.
    """

    config: ViTConfig

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        dim = config.embed_dim
        self.stem = ConvStem(config.in_chans, dim, config.stride)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("pos_embed", torch.empty(1, self._grid_side() ** 2, dim), persistent=False)
        rates = [config.drop_path * i / max(1, config.depth - 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(Block(dim, config.num_heads, config.mlp_ratio, drop_path=p) for p in rates)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, config.num_classes) if config.num_classes else nn.Identity()
        init_weights(self, config.init)
        self.init_non_persistent_buffers()

    def forward(self, image: Tensor) -> Tensor:
        """Classify images: ``[B, 3, H, W]`` -> logits ``[B, num_classes]``, or ``[B, C]`` without classifier.

        Raises:
            TypeError: The image has the wrong type or dtype.
            ValueError: The image has the wrong shape.

        Deterministic in eval mode.
        """
        return self.forward_head(self.forward_features(image))

    def forward_features(self, image: Tensor) -> Tensor:
        """Return the tokens after the final norm, ``[B, 1 + N, C]``, class first; errors are those of `forward`."""
        for x in self._run_blocks(image, len(self.blocks)):
            last = x
        return self.norm(last)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the output of `forward_features` to logits, or with ``pre_logits`` to the class embedding ``[B, C]``."""
        embedding = features[:, 0]
        return embedding if pre_logits else self.head(embedding)

    def _run_blocks(self, image: Tensor, count: int) -> Iterator[Tensor]:
        """Yield the tokens after each of the first blocks, class token first."""
        image = channels_first(image, self.config.in_chans, self.config.stride)
        features = self.stem(normalise(image, self.image_mean, self.image_std, self.cls_token.dtype))
        tokens = features.flatten(2).transpose(1, 2)
        tokens = tokens + self._positions(features.shape[-2:])
        x = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)
        for block in list(self.blocks)[:count]:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            yield x

    def _run_levels(self, image: Tensor, *, last: int, finish: bool) -> Run:
        """Run the blocks up to ``last``, or with ``finish`` all; the segments of every level are the patches."""
        results = list(self._run_blocks(image, len(self.blocks) if finish else last + 1))
        stride = self.config.stride
        batch, _, height, width = channels_first(image, self.config.in_chans, stride).shape
        grid = (height // stride, width // stride)

        def label_map(_: int) -> Tensor:
            rows, columns = (torch.arange(n, device=image.device, dtype=torch.int32) // stride for n in (height, width))
            return (rows[:, None] * grid[1] + columns).expand(batch, -1, -1)

        features = self.norm(results[-1]) if finish else None
        return Run(features, [(x[:, 1:], x[:, :1]) for x in results], label_map, grid)

    def _feature_modules(self) -> list[str]:
        return [f"blocks.{i}" for i in range(len(self.blocks))]

    def _modules_until(self, level: int) -> list[str]:
        return [f"blocks.{i}." for i in range(level + 1)]

    def _positions(self, grid: torch.Size) -> Tensor:
        if tuple(grid) == (self._grid_side(), self._grid_side()):
            return self.pos_embed
        return sincos_2d(*grid, self.config.embed_dim, device=self.pos_embed.device).to(self.pos_embed.dtype)
