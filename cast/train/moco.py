"""Self-supervised training with MoCo v3, as CAST was trained (Ke, Mo, Yu, ICLR 2024, Table 11).

Sources: Chen, Xie, He, "An Empirical Study of Training Self-Supervised Vision Transformers" (MoCo v3, arXiv
2104.02057); the published training of CAST.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cast.models.base import ImageModel
from cast.models.config import CastSegConfig
from cast.models.heads import Projector

from .batch import Batch
from .config import MocoConfig
from .distributed import all_gather, get_rank
from .networks import (
    MakeSuperpixels,
    at_least_float32,
    blocks_and_pools,
    build_network,
    embed,
    evaluating,
    registered_config,
    train_last_pool,
    zero_sums,
)
from .optim import average_parameters, make_adamw, trainable_parameters
from .schedules import moco_learning_rate, moco_momentum
from .starting import load_start
from .task import Task


class MocoTask(Task):
    """Two views of an image are to be told from those of all other images.

    With ``q = predictor(projector(encoder(view)))`` and ``k`` the same of the momentum encoder, without predictor, both
    of length 1, the loss is ``CE(q1 k2 / T) + CE(q2 k1 / T)``, each times ``2 T``, over the keys of the whole batch.
    The momentum encoder follows the encoder in all its parameters, its projector's included, and keeps batch statistics
    of its own. Dropout is active in both.

    With ``config.last_pool_weight`` the queries of the mean of the last pool's tokens are compared with the same keys,
    and that loss is added with this weight: a gradient for the last grouping, which as published has none.

    Args:
        config: The settings.
        num_classes: Not used: classes are of no interest here.

    Attributes:
        base_encoder: The network, with a `Projector` as its ``head``.
        momentum_encoder: Its moving average.
        predictor: The perceptron on the queries.
        preparation: What `prepare` does, without the network.

    Raises:
        ValueError: The model, its overrides or its weights do not fit the settings.
    """

    best_metric = "loss"
    best_is_highest = False
    views = 2
    config: MocoConfig

    def __init__(self, config: MocoConfig, num_classes: int = 0) -> None:
        super().__init__(config, num_classes)
        self.base_encoder = _build_encoder(config)
        load_start(self.base_encoder, config)
        if config.last_pool_weight:
            train_last_pool(self.base_encoder)
        self.momentum_encoder = copy.deepcopy(self.base_encoder).requires_grad_(False)
        self.predictor = Projector(config.dim, (config.hidden_dim, config.dim))
        self.preparation = MakeSuperpixels(self.base_encoder.config)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Make the superpixels of both views, where the network has any."""
        return self.preparation(batch, generator)

    def __call__(self, batch: Batch, epoch: float, first_part: bool = True) -> Tensor:
        """Update the momentum encoder, with the momentum of ``epoch``, and return the loss.

        Queries do not depend on the momentum encoder, so that it may be updated before them as well as, as published,
        between queries and keys; before `forward` it still is divided among processes by FSDP, as the encoder is.
        """
        if self.training and first_part:
            momentum = moco_momentum(epoch, start=self.config.momentum, epochs=self.config.epochs)
            average_parameters(self.momentum_encoder, self.base_encoder, momentum)
        return super().__call__(batch, epoch, first_part)

    def forward(self, batch: Batch, epoch: float, first_part: bool = True) -> Tensor:
        """Return the loss of both views, against the keys of all processes."""
        return self._loss(batch, shared=True)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return AdamW, with weight decay on everything, as published."""
        return make_adamw(trainable_parameters(self), self.learning_rate(0.0), self.config.weight_decay)

    def learning_rate(self, epoch: float) -> float:
        """Return the rate of `moco_learning_rate`."""
        c = self.config
        return moco_learning_rate(epoch, base=c.learning_rate, epochs=c.epochs, warmup_epochs=c.warmup_epochs)

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Return the sum of the loss over held-out pairs of views, and their count.

        Each batch is compared within itself, on each process alone. The loss is lower for smaller batches, and higher
        where all images are of one class, so that only figures over the same batches compare: see `evaluation_batches`
        for ``whole`` ones.

        Args:
            batches: uint8 images ``[B, 2, 3, H, W]``.
        """
        sums = zero_sums(self, "loss")
        with evaluating(self):
            for batch in batches:
                sums["loss"] += self._loss(self.preparation(batch), shared=False) * len(batch.images)
                sums["count"] += len(batch.images)
        return sums

    def modules_to_shard(self) -> list[nn.Module]:
        """Return blocks and pools of both encoders."""
        return blocks_and_pools(self)

    def save_model(self, folder: Path) -> None:
        """Write the encoder alone; that of a dense model with its projector, which finds segments by example."""
        model, head = self.base_encoder, self.base_encoder.head
        if not isinstance(model.config, CastSegConfig):  # there is no place for a projector in its config
            model.head = nn.Identity()
        try:
            model.save_pretrained(folder)
        finally:
            model.head = head

    def _loss(self, batch: Batch, *, shared: bool) -> Tensor:
        """Return the loss; with keys of all processes, or of this one alone."""
        queries = [self._queries(batch, view) for view in range(2)]
        with torch.no_grad():
            keys = [self.momentum_encoder.head(embed(self.momentum_encoder, batch, view)[0]) for view in range(2)]
        offset = len(batch.images) * get_rank() if shared else 0
        loss = torch.zeros((), device=batch.images.device)
        for own, other in zip(queries, reversed(keys), strict=True):
            key = F.normalize(at_least_float32(other), dim=1)
            if shared:
                key = all_gather(key)
            for query, weight in zip(own, (1.0, self.config.last_pool_weight), strict=False):
                loss = loss + weight * contrastive_loss(query, key, self.config.temperature, offset)
        return loss

    def _queries(self, batch: Batch, view: int) -> list[Tensor]:
        """Return the query of each image ``[B, dim]``, and where it is trained that of its last pool."""
        encoder = self.base_encoder
        embedding, pooled = embed(encoder, batch, view, last_pool=bool(self.config.last_pool_weight))
        queries = [self.predictor(encoder.head(embedding))]
        if pooled is not None:
            with _statistics_kept(encoder.head, self.predictor):
                queries.append(self.predictor(encoder.head(pooled)))
        return queries


def contrastive_loss(queries: Tensor, keys: Tensor, temperature: float, offset: int = 0) -> Tensor:
    """Compare queries with keys by their cosine: InfoNCE, times twice the temperature.

    Args:
        queries: ``[B, C]``, of any length; that of image i belongs to key ``offset + i``.
        keys: ``[N, C]``, of length 1.
        temperature: Which the cosines are divided by.
        offset: See ``queries``.

    Returns:
        The loss, a scalar. Computed in float32 at least, also under autocast.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries = F.normalize(at_least_float32(queries), dim=1)
        logits = queries @ keys.to(queries.dtype).T / temperature
        labels = torch.arange(offset, offset + len(queries), device=queries.device)
        return F.cross_entropy(logits, labels) * (2 * temperature)


def _build_encoder(config: MocoConfig) -> ImageModel:
    """Build the network with its projector, whose layers have PyTorch's default weights."""
    widths = (config.hidden_dim, config.hidden_dim, config.dim)
    if isinstance(registered_config(config.model), CastSegConfig):
        return build_network(config, num_classes=0, head="projector", projector_dims=widths)
    model = build_network(config, num_classes=0)
    model.head = Projector(model.config.embed_dim, widths)
    return model


@contextmanager
def _statistics_kept(*modules: nn.Module) -> Iterator[None]:
    """Leave running statistics alone: what eval mode normalises with is to be that of the main queries."""
    norms = [m for module in modules for m in module.modules() if isinstance(m, _BatchNorm)]
    tracked = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, value in zip(norms, tracked, strict=True):
            norm.track_running_stats = value
