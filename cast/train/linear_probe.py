"""A linear classifier on frozen features, as MoCo v3 and CAST are compared by it (Ke, Mo, Yu, Appendix F.5)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batch import Batch
from .config import ProbeConfig
from .networks import (
    MakeSuperpixels,
    add_scores,
    at_least_float32,
    blocks_and_pools,
    check_classes,
    embed,
    evaluating,
    zero_sums,
)
from .schedules import probe_learning_rate
from .starting import load_encoder
from .task import Task


class ProbeTask(Task):
    """The cross entropy of a linear classifier on the features of a network that stays as it is, in eval mode.

    The features are what a classifier of the network would see: the class token after the final norm, of dense models
    the mean of the fused tokens.

    Where images are not augmented, `features` may be computed once: all methods take batches with features
    ``[B, 1, C]`` in the place of images.

    Args:
        config: The settings. ``config.weights`` says what is probed and tells which model that is, see `load_encoder`.
        num_classes: Classes of the training images.

    Attributes:
        model: The network; its ``head`` is the classifier, and all that is trained.
        preparation: What `prepare` does, without the network.

    Raises:
        ValueError: There are fewer than two classes, or the weights cannot be read or do not fit the settings.
    """

    best_metric = "top1"
    best_is_highest = True
    config: ProbeConfig

    def __init__(self, config: ProbeConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        check_classes(num_classes, "linear probing")
        self.model = load_encoder(config).requires_grad_(False)
        self.model.reset_classifier(num_classes)
        self.model.head.requires_grad_(True).eval()
        nn.init.normal_(self.model.head.weight, std=0.01)
        nn.init.zeros_(self.model.head.bias)
        self.preparation = MakeSuperpixels(self.model.config)

    def train(self, mode: bool = True) -> Self:
        """Choose a mode that concerns nothing: the network stays in eval mode."""
        self.training = mode
        return self

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Make superpixels, where the network has any."""
        return self.preparation(batch, generator)

    @torch.no_grad()
    def features(self, batch: Batch) -> Tensor:
        """Return the features ``[B, C]`` of a batch of images, in the dtype of the classifier.

        Args:
            batch: Images ``[B, 1, 3, H, W]``, prepared or not.
        """
        embedding, _ = embed(self.model, self.preparation(batch))
        return embedding.to(self.model.head.weight.dtype)

    def forward(self, batch: Batch, epoch: float, first_part: bool = True) -> Tensor:
        """Return the cross entropy of images, or of features ``[B, 1, C]`` in their place."""
        return F.cross_entropy(at_least_float32(self._logits(batch)), batch.targets)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return SGD on the classifier, with momentum 0.9."""
        return torch.optim.SGD(
            self.model.head.parameters(),
            lr=self.learning_rate(0.0),
            momentum=0.9,
            weight_decay=self.config.weight_decay,
        )

    def learning_rate(self, epoch: float) -> float:
        """Return the rate of `probe_learning_rate`."""
        c = self.config
        return probe_learning_rate(epoch, base=c.learning_rate, epochs=c.epochs, warmup_epochs=c.warmup_epochs)

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Return sums of loss, ``top1`` and ``top5``.

        Args:
            batches: uint8 images ``[B, 1, 3, H, W]``, or their features ``[B, 1, C]``, and classes ``[B]``.
        """
        sums = zero_sums(self, "loss", "top1", "top5")
        with evaluating(self):
            for batch in batches:
                add_scores(sums, self._logits(batch), batch.targets)
        return sums

    def modules_to_shard(self) -> list[nn.Module]:
        """Return blocks and pools."""
        return blocks_and_pools(self)

    def save_model(self, folder: Path) -> None:
        """Write the network with its classifier."""
        self.model.save_pretrained(folder)

    def _logits(self, batch: Batch) -> Tensor:
        features = batch.images[:, 0] if batch.images.ndim == 3 else self.features(batch)
        return self.model.head(features)
