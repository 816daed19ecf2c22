"""What all variants share: stem, superpixel tokens, positions, and the stages of blocks and pools.

Source: Ke, Mo, Yu, "Learning Hierarchical Image Segmentation For Recognition and By Recognition", ICLR 2024
(https://arxiv.org/abs/2210.00314).
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cast.hierarchy import Hierarchy
from cast.layers import Block, ConvStem, GraphPool, PoolResult, resize_pos_embed, sincos_2d, superpixel_tokens

from .base import ImageModel
from .compat import present_superpixels
from .config import CastConfig
from .features import Run
from .inputs import channels_first, check_count_covers, check_labels, normalise, to_uint8
from .superpixels import make_superpixels, published_recipe, superpixel_request


class PooledLevel(NamedTuple):
    """The segments of one level and how they are grouped into the next; ``N`` segments become ``K``."""

    tokens: Tensor  # [B, N, C] segment tokens after the stage's blocks, as they enter the pool
    cls: Tensor  # [B, 1, C] class token after the stage's blocks
    mask: Tensor  # [B, N] bool, True where the segment holds a cell of the stem grid; all True beyond level 0
    logits: Tensor  # [B, N, K] kappa * cosine; softmax over K is the soft assignment
    indices: Tensor  # [B, K] int64, the segments that serve as centroids, in the order sampled
    parents: Tensor  # [B, N] int64, the segment of the next level that each is assigned to
    pooled_tokens: Tensor  # [B, K, C] what the pool made of the tokens: those of the next level, before its blocks
    pooled_cls: Tensor  # [B, 1, C] what the pool made of the class token


class StageResult(NamedTuple):
    """What one stage made of its tokens."""

    cls: Tensor  # [B, 1, C] class token after the blocks
    tokens: Tensor  # [B, N, C] segment tokens after the blocks
    mask: Tensor | None  # [B, N] bool, which of them hold a cell; None = all
    pooled: PoolResult | None  # None where the pool was left out
    present: Tensor | None = None  # [N] bool, with compat="published" which tokens take part; None = all


class Stage(nn.Module):
    """Transformer blocks on class and segment tokens, then the pool that makes coarser segments of them."""

    def __init__(self, config: CastConfig, level: int, drop_path: list[float]) -> None:
        super().__init__()
        dim, heads, ratio = config.embed_dim, config.num_heads, config.mlp_ratio
        self.blocks = nn.ModuleList(Block(dim, heads, ratio, drop_path=p) for p in drop_path)
        self.pool = GraphPool(
            dim,
            config.num_clusters[level],
            heads,
            mlp_ratio=ratio,
            dropout=config.pool_dropout,
            kappa=config.kappa,
        )


class Trunk(ImageModel):
    """The part from an image and its superpixels to the tokens of every stage; the variants add what follows.

    Images are uint8 ``[B, 3, H, W]`` or ``[B, H, W, 3]``, normalised inside, or floating point ``[B, 3, H, W]``,
    normalised already, with H and W multiples of 8. Superpixels are an integer map ``labels [B, H, W]`` of which
    ``num_segments`` exist: labels outside ``[0, num_segments)`` belong to no segment. By default they are made of the
    image, on its device, by `superpixels`; ``num_segments`` is the number that this gives, whatever the labels. Labels
    of another origin need theirs: on the CPU larger ones are refused, on other devices and when compiled they would
    have to be waited for, and are ignored.

    A superpixel without a cell is a zero token. It takes part in attention and pooling, as in the published model, but
    is never sampled as a centroid while others are left.

    A variant defines `forward_features` and `forward_head`, from `run`.

    Args:
        config: The settings; kept as ``model.config``.

    Attributes:
        stem: The `ConvStem`.
        pos_embed: ``[1, N, C]``: the frozen sin-cos table of the ``img_size`` grid, a buffer that is not saved, or a
            learned parameter whose first row is the class token's. Other grids compute or bicubically resize it.
        stages: Per level, ``blocks`` and ``pool``.
    """

    config: CastConfig
    size_multiple = 8  # of an image's height and width
    pools_all = False  # whether the last pool reaches the output of `forward_features`

    def __init__(self, config: CastConfig) -> None:
        super().__init__(config)
        dim, cells = config.embed_dim, self._grid_side() ** 2
        self.stem = ConvStem(config.in_chans, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if config.pos_embed == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + cells, dim))
        else:
            self.register_buffer("pos_embed", torch.empty(1, cells, dim), persistent=False)
        total = sum(config.depths)
        rates = iter([config.drop_path * i / max(1, total - 1) for i in range(total)])
        self.stages = nn.ModuleList(
            Stage(config, level, [next(rates) for _ in range(depth)]) for level, depth in enumerate(config.depths)
        )

    @torch.no_grad()
    def superpixels(self, image: Tensor, num_superpixels: int | None = None, *, stride: int = 1) -> Tensor:
        """Make SEEDS superpixels of images, with the settings of ``config.superpixels``, on the images' device.

        Args:
            image: As in `forward`; floating point is brought back to the nearest uint8 first.
            num_superpixels: How many to ask for; None = ``config.superpixels.num_superpixels``, which is meant for
                ``img_size``, in proportion to the area of the image.
            stride: Return only the labels ``[:, ::stride, ::stride]``; the others are never written.

        Returns:
            Labels ``[B, ceil(H / stride), ceil(W / stride)]`` int32, in ``[0, seeds_count(H, W, num_superpixels))``.

        Raises:
            TypeError: The image has the wrong type or dtype.
            ValueError: The image has the wrong shape, is too small, or is not RGB.
        """
        image = channels_first(image, self.config.in_chans, self.size_multiple)
        if self.config.in_chans != 3:
            raise ValueError(
                f"expected labels: superpixels are made of RGB images only, and this model has in_chans="
                f"{self.config.in_chans}"
            )
        if published_recipe(self.config) != "deit":
            image = to_uint8(image, self.image_mean, self.image_std)
        return make_superpixels(image, self.config, num_superpixels, stride=stride)

    def count_superpixels(self, height: int, width: int, num_superpixels: int | None = None) -> int:
        """Return how many superpixels `superpixels` makes of an image of this size; errors are its own."""
        request = superpixel_request(self.config, height, width, num_superpixels)
        return self.config.superpixels.count(height, width, request)

    def set_granularity(self, num_clusters: Sequence[int]) -> None:
        """Choose how many segments remain after each stage; weights fit any granularity. Updates ``config``.

        Raises:
            ValueError: Not as many integers as there are stages, or not from fine to coarse; the model is as before
                then.
        """
        self.config = dataclasses.replace(self.config, num_clusters=num_clusters)
        for stage, count in zip(self.stages, self.config.num_clusters, strict=True):
            stage.pool.num_clusters = count

    def run(
        self,
        image: Tensor,
        labels: Tensor | None,
        num_segments: int | None,
        num_superpixels: int | None = None,
        *,
        last_pool: bool = True,
        num_stages: int | None = None,
    ) -> list[StageResult]:
        """Run the stages; arguments and errors are those of `forward` and `superpixels`.

        Args:
            image: As in `forward`.
            labels: As in `forward`.
            num_segments: As in `forward`.
            num_superpixels: As in `superpixels`.
            last_pool: Whether the pool of the last stage that runs does so as well.
            num_stages: How many stages run; None = all.
        """
        image = channels_first(image, self.config.in_chans, self.size_multiple)
        if labels is None:  # where the stem's grid is averaged over, no other pixel's label is looked at
            labels = self.superpixels(image, num_superpixels, stride=self.size_multiple)
        else:
            check_labels(labels, image)
        count = self._count_segments(image, labels, num_segments, num_superpixels)
        pixels = self._pixels(image)
        late = self.config.pool_before_proj
        features = self.stem.hidden(pixels) if late else self.stem(pixels)
        cls, tokens, mask = self._embed(features, labels, count, self.stem.proj if late else None)
        cls = cls.expand(tokens.shape[0], -1, -1).to(tokens.dtype)
        return self._run_stages(cls, tokens, mask, last_pool, num_stages)

    def _pixels(self, image: Tensor) -> Tensor:
        """Return what the stem sees of an image ``[B, C, H, W]``."""
        return normalise(image, self.image_mean, self.image_std, self.cls_token.dtype)

    def _embed(
        self, features: Tensor, labels: Tensor, count: int, proj: nn.Module | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the class token ``[1, 1, C]``, the superpixels' tokens and which of them are not empty."""
        cls, positions = self._positions(features.shape[-2:])
        return cls, *superpixel_tokens(features, labels, count, positions, proj)

    def _run_stages(
        self, cls: Tensor, tokens: Tensor, mask: Tensor | None, last_pool: bool, num_stages: int | None
    ) -> list[StageResult]:
        results: list[StageResult] = []
        present = present_superpixels(mask) if self.config.compat and mask is not None else None
        stages = list(self.stages)[:num_stages]
        for stage in stages:
            cls, tokens = self._blocks(stage, cls, tokens, present)
            if stage is stages[-1] and not last_pool:
                results.append(StageResult(cls, tokens, mask, None, present))
                break
            pooled = self._pool(stage, cls, tokens, mask, present)
            results.append(StageResult(cls, tokens, mask, pooled, present))
            tokens, cls, mask, present = pooled.tokens, pooled.cls, None, None  # no pooled segment is empty
        return results

    def _pool(
        self, stage: Stage, cls: Tensor, tokens: Tensor, mask: Tensor | None, present: Tensor | None
    ) -> PoolResult:
        if present is None:
            return stage.pool(tokens, cls, mask)
        pooled = stage.pool(tokens, cls, mask, present.expand(tokens.shape[:2]))
        # Pixels may have labels that the grid lost: as published, they follow the last superpixel that is left.
        rows = torch.arange(len(present), device=present.device)
        rows = torch.minimum(rows, present.sum() - 1)
        return pooled._replace(logits=pooled.logits[:, rows], parents=pooled.parents[:, rows])

    def _finish(self, results: Sequence[StageResult]) -> Tensor:
        """Return what `forward_features` does, of all stages."""
        raise NotImplementedError

    def _run_levels(
        self,
        image: Tensor,
        labels: Tensor | None = None,
        num_segments: int | None = None,
        *,
        last: int,
        finish: bool,
    ) -> Run:
        """Run the stages up to ``last``, or with ``finish`` all."""
        if labels is None:
            labels = self.superpixels(image)
        num_stages = len(self.stages) if finish else last + 1
        # of the last pool that is not needed otherwise, only that a hierarchy has at least one table of parents
        last_pool = (finish and self.pools_all) or num_stages == 1
        results = self.run(image, labels, num_segments, last_pool=last_pool, num_stages=num_stages)
        parents = [result.pooled.parents for result in results if result.pooled is not None]

        def label_map(level: int) -> Tensor:
            return Hierarchy(labels, parents, num_coarsest=self.config.num_clusters[len(parents) - 1]).labels(level)

        size = channels_first(image, self.config.in_chans, self.size_multiple).shape[2:]
        grid = (-(-size[0] // self.config.stride), -(-size[1] // self.config.stride))
        levels = [(result.tokens, result.cls) for result in results]
        return Run(self._finish(results) if finish else None, levels, label_map, grid)

    def _feature_modules(self) -> list[str]:
        return [f"stages.{level}" for level in range(len(self.stages))]

    def _modules_until(self, level: int) -> list[str]:
        """Return the prefixes of the parameters that the tokens of a level depend on."""
        earlier = [f"stages.{i}." for i in range(level)]
        return [*earlier, f"stages.{level}.blocks."]

    def _blocks(self, stage: Stage, cls: Tensor, tokens: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        x = torch.cat([cls, tokens], dim=1)
        keys = None if present is None else torch.cat([present.new_ones(1), present])
        for block in stage.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, keys, use_reentrant=False)
            else:
                x = block(x) if keys is None else block(x, keys)
        if present is None:
            return x[:, :1], x[:, 1:]
        return x[:, :1], x[:, 1:] * present[:, None].to(x.dtype)

    def _positions(self, grid: torch.Size) -> tuple[Tensor, Tensor]:
        """Return the class token with its position, and the position table of a stem grid."""
        side = self._grid_side()
        if self.config.pos_embed == "learned":
            cls = self.cls_token + self.pos_embed[:, :1]
            return cls, resize_pos_embed(self.pos_embed[:, 1:], (side, side), (grid[0], grid[1]))
        if tuple(grid) == (side, side):
            return self.cls_token, self.pos_embed
        table = sincos_2d(*grid, self.config.embed_dim, device=self.pos_embed.device)
        return self.cls_token, table.to(self.pos_embed.dtype)

    def _count_segments(
        self, image: Tensor, labels: Tensor, num_segments: int | None, num_superpixels: int | None
    ) -> int:
        """Check the number of segments, by default that of `superpixels`, and return it."""
        if num_segments is None:
            num_segments = self.count_superpixels(*image.shape[2:], num_superpixels)
            check_count_covers(labels, num_segments)
        elif isinstance(num_segments, bool) or not isinstance(num_segments, int | torch.SymInt):
            raise TypeError(f"expected num_segments to be an int, got {type(num_segments).__name__}")
        if num_segments < self.config.num_clusters[0]:
            raise ValueError(
                f"expected at least num_clusters[0] = {self.config.num_clusters[0]} superpixels, got {num_segments} "
                f"for an image of {image.shape[2]} x {image.shape[3]}; ask for more superpixels or build the model "
                "with smaller num_clusters"
            )
        return num_segments


def pooled_levels(results: Sequence[StageResult]) -> tuple[PooledLevel, ...]:
    """Return the levels of stages whose pools all ran."""

    def level(cls: Tensor, tokens: Tensor, mask: Tensor | None, pool: PoolResult) -> PooledLevel:
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return PooledLevel(tokens, cls, mask, pool.logits, pool.indices, pool.parents, pool.tokens, pool.cls)

    return tuple(level(*result[:4]) for result in results)


def make_hierarchy(labels: Tensor, results: Sequence[StageResult]) -> Hierarchy:
    """Return the segmentation at every level of stages whose pools all ran."""
    pools = [result.pooled for result in results]
    return Hierarchy.from_assignments(labels, [p.logits for p in pools], [p.parents for p in pools])
