"""CAST: a vision transformer on superpixels that are pooled, stage by stage, into ever larger segments.

Source: Ke, Mo, Yu, "Learning Hierarchical Image Segmentation For Recognition and By Recognition", ICLR 2024
(https://arxiv.org/abs/2210.00314).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cast.hierarchy import Hierarchy

from .config import CastConfig
from .init import init_weights
from .trunk import PooledLevel, StageResult, Trunk, make_hierarchy, pooled_levels


class CastOutput(NamedTuple):
    """Everything that `Cast.forward_hierarchy` computes."""

    logits: Tensor  # [B, num_classes]
    embedding: Tensor  # [B, C] the class token after the final norm, which the classifier sees
    hierarchy: Hierarchy  # label maps and parents of all levels
    levels: tuple[PooledLevel, ...]  # one per stage; level 0 are the superpixels


class Cast(Trunk):
    """The classification model: an image and its superpixels in, class logits and a hierarchy of segments out.

    A convolutional stem of stride 8; one token per superpixel, the mean of its features plus the mean of its positions,
    over the cells whose top-left pixel it holds; a class token in front; per stage some transformer blocks and a
    `GraphPool`; the final norm of the class token before the last pool; a linear classifier.

    The last pool only names the coarsest segments. Nothing of it reaches the logits, so as in the published model it is
    frozen at what it was initialised or loaded with (``requires_grad`` is False), and `forward` leaves it out.

    What images and superpixels may be, and the attributes of all variants: see `Trunk`.

    Args:
        config: The settings; kept as ``model.config``.

    Attributes:
        norm: The final `LayerNorm`.
        head: The classifier, or the identity for ``num_classes=0``.
    """

    def __init__(self, config: CastConfig) -> None:
        super().__init__(config)
        self.stages[-1].pool.requires_grad_(False)
        self.norm = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.head = nn.Linear(config.embed_dim, config.num_classes) if config.num_classes else nn.Identity()
        init_weights(self, config.init)
        self.init_non_persistent_buffers()

    def forward(self, image: Tensor, labels: Tensor | None = None, num_segments: int | None = None) -> Tensor:
        """Classify images.

        Args:
            image: uint8 ``[B, 3, H, W]`` or ``[B, H, W, 3]``, or normalised floating point ``[B, 3, H, W]``.
            labels: Superpixels ``[B, H, W]``, integer; None = SEEDS on the image.
            num_segments: Number of superpixels, labels beyond which are ignored; None = as many as `superpixels` makes
                of such an image.

        Returns:
            Logits ``[B, num_classes]``, or the class embedding ``[B, C]`` of a model without classifier.

        Raises:
            TypeError: An input has the wrong type or dtype.
            ValueError: An input has the wrong shape, there are fewer superpixels than ``config.num_clusters[0]``, or,
                without ``num_segments`` and where it can be seen without waiting (on the CPU, not compiled), labels
                are beyond the default number.

        Deterministic in eval mode.
        """
        return self.forward_head(self.forward_features(image, labels, num_segments))

    def forward_features(self, image: Tensor, labels: Tensor | None = None, num_segments: int | None = None) -> Tensor:
        """Return the tokens that the last pool would see, after the final norm.

        Arguments and errors are those of `forward`.

        Returns:
            ``[B, 1 + K, C]``, class token first; K is the last but one of ``config.num_clusters``.
        """
        return self._finish(self.run(image, labels, num_segments, last_pool=False))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the output of `forward_features` to logits, or with ``pre_logits`` to the class embedding ``[B, C]``."""
        embedding = features[:, 0]
        return embedding if pre_logits else self.head(embedding)

    def forward_hierarchy(
        self,
        image: Tensor,
        labels: Tensor | None = None,
        num_segments: int | None = None,
        num_superpixels: int | None = None,
    ) -> CastOutput:
        """Classify images and return their segmentation at every level; this runs the last pool too.

        Arguments and errors are those of `forward`, and:

        Args:
            image: As in `forward`.
            labels: As in `forward`.
            num_segments: As in `forward`.
            num_superpixels: Number of superpixels to ask for, as in `superpixels`.

        Returns:
            `CastOutput`: logits, class embedding, `Hierarchy` of one level more than there are stages, and the tokens
            and assignments of each level.
        """
        if labels is None:
            labels = self.superpixels(image, num_superpixels)
        results = self.run(image, labels, num_segments, num_superpixels)
        embedding = self.forward_head(self._finish(results), pre_logits=True)
        hierarchy = make_hierarchy(labels, results)
        return CastOutput(self.head(embedding), embedding, hierarchy, pooled_levels(results))

    def _finish(self, results: Sequence[StageResult]) -> Tensor:
        return self.norm(torch.cat([results[-1].cls, results[-1].tokens], dim=1))
