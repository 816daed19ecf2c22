"""Supervised training with the recipe of DeiT (Touvron et al., arXiv 2012.12877), as CAST's (ICLR 2024, Table 12)."""

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batch import Batch
from .config import SupervisedConfig
from .mixing import MixAndErase
from .networks import (
    MakeSuperpixels,
    add_scores,
    at_least_float32,
    blocks_and_pools,
    build_network,
    check_classes,
    embed,
    evaluating,
    train_last_pool,
    zero_sums,
)
from .optim import WeightAverage, decay_groups, make_adamw
from .schedules import deit_learning_rate
from .starting import load_start
from .task import Task

EMA_FOLDER = "ema"  # of the averaged model, in the folder of the model itself


class SupervisedTask(Task):
    """The cross entropy of classes, with soft targets.

    With ``config.last_pool_weight`` the cross entropy of the same classifier on the mean of the last pool's tokens is
    added with this weight: a gradient for the last grouping, which as published has none.

    Args:
        config: The settings.
        num_classes: Classes of the training images.

    Attributes:
        model: The network.
        ema: The `WeightAverage` of it, or None.
        preparation: What `prepare` does, without the network.

    Raises:
        ValueError: There are fewer than two classes, or the model, its overrides or its weights do not fit the
            settings.
    """

    best_metric = "top1"
    best_is_highest = True
    config: SupervisedConfig

    def __init__(self, config: SupervisedConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        check_classes(num_classes, "supervised training")
        self.model = build_network(config, num_classes=num_classes, drop_path=config.drop_path)
        load_start(self.model, config)
        if config.last_pool_weight:
            train_last_pool(self.model)
        self.ema = WeightAverage(self.model, config.ema) if config.ema else None
        self.preparation = MixAndErase(config, self.model.config, num_classes)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Mix images, make superpixels and erase parts; see `MixAndErase`."""
        return self.preparation(batch, generator)

    def forward(self, batch: Batch, epoch: float, first_part: bool = True) -> Tensor:
        """Return the cross entropy; see the class."""
        embedding, pooled = embed(self.model, batch, last_pool=bool(self.config.last_pool_weight))
        loss = self._cross_entropy(embedding, batch.targets)
        if pooled is not None:
            loss = loss + self.config.last_pool_weight * self._cross_entropy(pooled, batch.targets)
        return loss

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return AdamW, with weight decay on matrices alone; see `decay_groups`."""
        groups = decay_groups(self.model, self.config.weight_decay)
        return make_adamw(groups, self.learning_rate(0.0), weight_decay=0.0)

    def learning_rate(self, epoch: float) -> float:
        """Return the rate of `deit_learning_rate`."""
        c = self.config
        return deit_learning_rate(
            epoch,
            base=c.learning_rate,
            epochs=c.epochs,
            warmup_epochs=c.warmup_epochs,
            warmup_lr=c.warmup_lr,
            min_lr=c.min_lr,
        )

    def after_step(self) -> None:
        """Update the moving average of the weights."""
        if self.ema is not None:
            self.ema.update(self.model)

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Return sums of loss, ``top1`` and ``top5`` of the model, as published, and ``ema_top1`` of its average.

        Args:
            batches: uint8 images ``[B, 1, 3, H, W]`` and classes ``[B]``.
        """
        sums = zero_sums(self, "loss", "top1", "top5", *(["ema_top1"] if self.ema else []))
        make_superpixels = MakeSuperpixels(self.model.config)
        with evaluating(self):
            for raw in batches:
                batch = make_superpixels(raw)
                add_scores(sums, self.model.head(embed(self.model, batch)[0]), batch.targets)
                if self.ema is not None:
                    logits = self.ema.model.head(embed(self.ema.model, batch)[0])
                    sums["ema_top1"] += (logits.argmax(dim=1) == batch.targets).sum()
        return sums

    def modules_to_shard(self) -> list[nn.Module]:
        """Return blocks and pools, of the average too."""
        return blocks_and_pools(self)

    def save_model(self, folder: Path) -> None:
        """Write the model itself into the folder, and its average into ``ema`` in there."""
        self.model.save_pretrained(folder)
        if self.ema is not None:
            self.ema.model.save_pretrained(folder / EMA_FOLDER)

    def _cross_entropy(self, embedding: Tensor, targets: Tensor) -> Tensor:
        logits = at_least_float32(self.model.head(embedding))
        if not targets.is_floating_point():
            return F.cross_entropy(logits, targets, label_smoothing=self.config.smoothing)
        return F.cross_entropy(logits, targets.to(logits.dtype))
