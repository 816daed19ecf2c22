"""From the settings of a run to its network, and what the tasks share in running it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cast.layers import Block, GraphPool
from cast.models import ViT, create_model, list_models
from cast.models.base import ImageModel
from cast.models.config import CastConfig, CastSegConfig, ImageConfig, ViTConfig
from cast.models.registry import CONFIGS
from cast.models.superpixels import make_superpixels, superpixel_request
from cast.models.trunk import Trunk

from .batch import Batch
from .config import TrainConfig

GRID = 8  # pixels of a cell of the grid on which models look at superpixels


# 1. Building
def build_network(config: TrainConfig, **values: Any) -> ImageModel:
    """Build ``config.model`` with ``config.model_overrides`` and fresh weights, drawn from the global generator.

    Args:
        config: The settings of the run.
        **values: Fields of the model's config that the task decides on.

    Raises:
        ValueError: The model is not known or not one for whole images, an override does not fit or is the task's to
            decide, or there would be fewer superpixels than the model's first pool needs.
    """
    overrides, registered = config.model_overrides, registered_config(config.model)
    check_fits(registered, config.model, overrides.get("stage"))
    if config.compat and isinstance(registered, CastConfig):
        values["compat"] = config.compat
    if taken := sorted({"img_size", "in_chans", "fused", *values} & set(overrides)):
        raise ValueError(f"model_overrides: {', '.join(taken)} cannot be set there; training decides on it")
    try:
        model = create_model(config.model, img_size=config.img_size, **values, **overrides)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot build {config.model}: {error}") from error
    check_superpixels(model.config, config.img_size)
    return model


def registered_config(name: str) -> ImageConfig:
    """Return the config of a model of this package by its name.

    Raises:
        ValueError: There is no such model.
    """
    if name not in CONFIGS:
        raise ValueError(f"expected model to be one of {', '.join(list_models())}, got {name!r}")
    return CONFIGS[name]


def check_fits(model: ImageConfig, name: str, stage: str | None = None) -> None:
    """Check that a model predicts for whole images; ``stage`` is an override.

    Raises:
        ValueError: It does not.
    """
    fits = type(model) in (CastConfig, ViTConfig)
    if type(model) is CastSegConfig:
        fits = (stage or model.stage) == "pretrain"
    if not fits:
        raise ValueError(
            "expected a model for whole images, such as cast_small, cast_seg_small_pretrain or vit_conv_small, "
            f"got {name}, which predicts for each segment"
        )


def check_superpixels(model: ImageConfig, size: int) -> None:
    """Check that images of a size have as many superpixels as the first pool of a model makes segments.

    Raises:
        ValueError: They have not.
    """
    if not isinstance(model, CastConfig):
        return
    request = superpixel_request(model, size, size)
    try:
        count = model.superpixels.count(size, size, request)
    except ValueError as error:
        raise ValueError(f"images of img_size {size} x {size} cannot have {request} superpixels: {error}") from error
    if count < model.num_clusters[0]:
        raise ValueError(
            f"expected at least num_clusters[0] = {model.num_clusters[0]} superpixels, got {count} for images of "
            f"img_size {size}; ask for more of them or for fewer clusters, by model_overrides"
        )


def check_classes(num_classes: int, task: str) -> None:
    """Check that the training images have classes.

    Raises:
        ValueError: They have fewer than two.
    """
    if num_classes < 2:
        raise ValueError(
            f"expected training images of at least 2 classes for {task}, got {num_classes}: a folder with one folder "
            "per class, or shards with classes"
        )


def train_last_pool(model: ImageModel) -> None:
    """Let the last pool of a model be trained, which otherwise is frozen.

    Raises:
        ValueError: The model has no pools.
    """
    if not isinstance(model, Trunk):
        raise ValueError(f"expected last_pool_weight=0 for a {model.config.kind}, which has no pools")
    model.stages[-1].pool.requires_grad_(True)


def blocks_and_pools(module: nn.Module) -> list[nn.Module]:
    """Return the transformer blocks and pools of all networks in a module: what FSDP divides one by one."""
    return [m for m in module.modules() if isinstance(m, Block | GraphPool)]


# 2. Running
@dataclass(frozen=True)
class MakeSuperpixels:
    """Makes the superpixels of a batch; may be pickled, as it holds no network.

    Attributes:
        network: Config of the network that they are for.
    """

    network: ImageConfig

    @torch.no_grad()
    def __call__(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """Return the batch with superpixels on the grid of the stem, where the network wants any and has none yet."""
        if batch.images.ndim != 5 or batch.labels is not None or not isinstance(self.network, CastConfig):
            return batch
        labels = make_superpixels(batch.images.flatten(0, 1), self.network, stride=GRID)
        return batch._replace(labels=labels.unflatten(0, batch.images.shape[:2]))


def embed(model: ImageModel, batch: Batch, view: int = 0, *, last_pool: bool = False) -> tuple[Tensor, Tensor | None]:
    """Run a network up to its head.

    Args:
        model: The network.
        batch: Images, with superpixels for all networks but `ViT`.
        view: Which of the views.
        last_pool: Whether the last pool runs as well.

    Returns:
        What the head sees, ``[B, C]``; and the same made of the mean of the tokens of the last pool instead, or None.
    """
    images = batch.images[:, view]
    if isinstance(model, ViT):
        return model.forward_head(model.forward_features(images), pre_logits=True), None
    assert isinstance(model, Trunk)
    labels = None if batch.labels is None else batch.labels[:, view]
    count = model.count_superpixels(*images.shape[2:])
    if not last_pool:
        return model.forward_head(model.forward_features(images, labels, count), pre_logits=True), None
    results = model.run(images, labels, count)
    pooled = results[-1].pooled.tokens.mean(dim=1)
    if hasattr(model, "norm"):
        pooled = model.norm(pooled)
    return model.forward_head(model._finish(results), pre_logits=True), pooled


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode, without gradients, and back into the mode it was in."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


# 3. Figures
def zero_sums(module: nn.Module, *names: str) -> dict[str, Tensor]:
    """Return sums to add to, in float64 where the device of a module has it: ``"count"`` and those named."""
    device = next(module.parameters()).device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return {name: torch.zeros((), dtype=dtype, device=device) for name in ("count", *names)}


def add_scores(sums: dict[str, Tensor], logits: Tensor, targets: Tensor) -> None:
    """Add what logits ``[B, num_classes]`` score to ``"loss"``, ``"top1"``, ``"top5"`` and ``"count"``.

    ``top5`` is whether the class is among the five likeliest, or among all of fewer.
    """
    hits = logits.topk(min(5, logits.shape[1])).indices == targets[:, None]
    sums["loss"] += F.cross_entropy(at_least_float32(logits), targets, reduction="sum")
    sums["top1"] += hits[:, 0].sum()
    sums["top5"] += hits.sum()
    sums["count"] += len(targets)


def at_least_float32(x: Tensor) -> Tensor:
    """Bring half precision, which autocast leaves, to float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
