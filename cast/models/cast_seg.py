"""CAST for dense prediction: the tokens of all levels fused into one feature per superpixel.

Source: Ke, Mo, Yu, ICLR 2024 (https://arxiv.org/abs/2210.00314), section 3.3 and algorithm 2.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cast.hierarchy import Hierarchy
from cast.layers import BlockFusion, superpixel_tokens

from .config import CastSegConfig
from .heads import Projector
from .init import init_weights
from .trunk import PooledLevel, StageResult, Trunk, make_hierarchy, pooled_levels


class CastSegOutput(NamedTuple):
    """Everything that `CastSeg.forward_hierarchy` computes."""

    logits: Tensor  # what `forward` returns
    cls: Tensor  # [B, C] the fused class token
    tokens: Tensor  # [B, N, C] the fused tokens of the superpixels
    hierarchy: Hierarchy  # label maps and parents of all levels
    levels: tuple[PooledLevel, ...]  # one per stage; level 0 are the superpixels


class CastSeg(Trunk):
    """The dense model: one feature per superpixel, of the tokens of all levels, and a head on it.

    The trunk runs all its pools. The tokens of the coarser levels are brought back to the superpixels by the chain of
    parents, all levels are concatenated and mixed (`BlockFusion`), and a head follows, as ``config.stage`` says:

    - "pretrain": superpixels as in `Cast`; the head sees the mean of all fused tokens, empty ones included, without the
      class token: ``[B, num_classes]``.
    - "segmentation": features and positions are brought to the resolution of the labels and averaged over all pixels of
      each superpixel, without the upsampled maps ever existing, so images may have any height and width of at least 8
      and labels any resolution; the head is applied to each fused token: ``[B, N, num_classes]``.
    - "encoder": tokens as in "segmentation"; no head: the fused class token and tokens, ``[B, 1 + N, C]``.

    In "segmentation" and "encoder" the position table of ``img_size`` is stretched over the image whatever its shape.

    The last pool's class token is fused too, but nothing else of it: in the first two stages its perceptron only has a
    gradient through the batch statistics of the fusion, and the part that groups (``norm``, ``attn``, ``bias``) has
    exactly none, as in the published model. With "encoder" the published weights hold a final norm and a classifier
    that nothing uses; here they are frozen.

    What images and superpixels may be, and the attributes of all variants: see `Trunk`.

    Args:
        config: The settings; kept as ``model.config``.

    Attributes:
        fusion: The `BlockFusion`.
        head: The classifier or `Projector`; the identity for ``num_classes=0``.
        norm: The unused `LayerNorm` of ``stage="encoder"``.
    """

    config: CastSegConfig
    pools_all = True

    def __init__(self, config: CastSegConfig) -> None:
        super().__init__(config)
        dim = config.embed_dim
        self.size_multiple = 8 if config.stage == "pretrain" else 1
        self.fusion = BlockFusion(dim, len(config.depths), config.fusion_dropout)
        if config.stage == "encoder":
            self.norm = nn.LayerNorm(dim, eps=1e-6).requires_grad_(False)
        self.head = nn.Linear(dim, config.head_classes) if config.head_classes else nn.Identity()
        init_weights(self, config.init)
        self.head.requires_grad_(config.stage != "encoder")
        if config.head == "projector":
            self.head = Projector(dim, config.projector_dims)
        self._complete_init()

    def forward(self, image: Tensor, labels: Tensor | None = None, num_segments: int | None = None) -> Tensor:
        """Predict, per image or per segment.

        Args:
            image: uint8 ``[B, 3, H, W]`` or ``[B, H, W, 3]``, or normalised floating point ``[B, 3, H, W]``.
            labels: Superpixels ``[B, H', W']``, integer; None = SEEDS on the image.
            num_segments: Number of superpixels N, labels beyond which are ignored; None = as many as `superpixels`
                makes of such an image.

        Returns:
            "pretrain": ``[B, num_classes]``; "segmentation": ``[B, N, num_classes]``, or the embeddings of a projector;
            "encoder": ``[B, 1 + N, C]``. C instead of ``num_classes`` for a model without classifier.

        Raises:
            TypeError: An input has the wrong type or dtype.
            ValueError: An input has the wrong shape, there are fewer superpixels than ``config.num_clusters[0]``, or,
                without ``num_segments`` and where it can be seen without waiting (on the CPU, not compiled), labels
                are beyond the default number.

        Deterministic in eval mode.
        """
        return self.forward_head(self.forward_features(image, labels, num_segments))

    def forward_features(self, image: Tensor, labels: Tensor | None = None, num_segments: int | None = None) -> Tensor:
        """Return the fused tokens ``[B, 1 + N, C]``, class token first; arguments and errors are those of `forward`."""
        return self._finish(self.run(image, labels, num_segments))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the output of `forward_features` to that of `forward`, or with ``pre_logits`` to what the head sees."""
        if self.config.stage == "encoder":
            return features
        tokens = features[:, 1:]
        if self.config.stage == "pretrain":
            tokens = tokens.mean(dim=1)
        return tokens if pre_logits else self.head(tokens)

    def forward_hierarchy(
        self,
        image: Tensor,
        labels: Tensor | None = None,
        num_segments: int | None = None,
        num_superpixels: int | None = None,
    ) -> CastSegOutput:
        """Predict, and return the segmentation at every level.

        Arguments and errors are those of `forward`, and:

        Args:
            image: As in `forward`.
            labels: As in `forward`.
            num_segments: As in `forward`.
            num_superpixels: Number of superpixels to ask for, as in `superpixels`.

        Returns:
            `CastSegOutput`: what `forward` returns, the fused tokens, `Hierarchy` of one level more than there are
            stages, and the tokens and assignments of each level.
        """
        if labels is None:
            labels = self.superpixels(image, num_superpixels)
        results = self.run(image, labels, num_segments, num_superpixels)
        features = self._finish(results)
        output = self._predict(features, image, labels)
        return CastSegOutput(
            output, features[:, 0], features[:, 1:], make_hierarchy(labels, results), pooled_levels(results)
        )

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a fresh linear classifier, or for 0 by the identity; updates ``config``.

        Args:
            num_classes: Width of the classifier.
            global_pool: As for `Cast`.

        Raises:
            ValueError: ``num_classes`` is no integer of at least 0, an encoder is asked for a classifier, or
                ``global_pool`` is another; the model is as before then.
        """
        if self.config.stage == "encoder" and num_classes != 0:
            raise ValueError(f'expected num_classes=0 for a model of stage "encoder", got {num_classes!r}')
        before = self.config
        self.config = dataclasses.replace(self.config, head="linear")
        try:
            super().reset_classifier(num_classes, global_pool)
        except ValueError:
            self.config = before
            raise

    def _predict(self, features: Tensor, image: Tensor, labels: Tensor) -> Tensor:
        """Return what `forward` does, from the output of `forward_features`."""
        return self.forward_head(features)

    def _finish(self, results: Sequence[StageResult]) -> Tensor:
        pools = [result.pooled for result in results]
        return self.fusion(
            [result.tokens for result in results],
            [p.parents for p in pools[:-1]],
            [p.cls for p in pools],
            results[0].present,
        )

    def _embed(
        self, features: Tensor, labels: Tensor, count: int, proj: nn.Module | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.config.stage == "pretrain":
            return super()._embed(features, labels, count, proj)
        grid = (self._grid_side(), self._grid_side())
        cls, positions = self._positions(torch.Size(grid))
        return cls, *superpixel_tokens(features, labels, count, positions, proj, pos_grid=grid)
