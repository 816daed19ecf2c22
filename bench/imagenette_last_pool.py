"""The last pool of a trained CAST, trained alone: what the grouping into the coarsest segments gains by a gradient.

As published, nothing of that pool reaches the loss. Here the model's own classifier is applied to the mean of the
tokens that the pool makes, as ``last_pool_weight`` of `cast train` has it, and everything but the pool stays as it is.
What enters the pool is therefore computed once, of the central squares of the photos, and an epoch takes seconds.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cast.data.augment import CenterCrop
from cast.data.image_sets import open_image_set
from cast.data.loading import evaluation_batches
from cast.models import Cast
from cast.train.config import SupervisedConfig


def train_last_pool(
    model: Cast,
    photos: Path,
    check: Callable[[], None],
    *,
    seed: int,
    epochs: int,
    batch: int,
    lr: float,
    weight_decay: float,
) -> list[float]:
    """Train the last pool of a model with a classifier, in place, by AdamW with a cosine schedule.

    Args:
        model: In eval mode, and left so.
        photos: Folder with a folder per class.
        check: Called after each batch; may raise to give up.
        seed: Of order and dropout; the global random state is left as it was.
        epochs: Passes over the photos.
        batch: Photos per step.
        lr: Learning rate at the start.
        weight_decay: Weight decay.

    Returns:
        The mean loss of each epoch.
    """
    pool = model.stages[-1].pool.requires_grad_(True)
    tokens, cls, targets = _inputs(model, photos, batch, check)
    optimizer = torch.optim.AdamW(pool.parameters(), lr, weight_decay=weight_decay)
    steps = len(targets) // batch
    if not steps:
        raise ValueError(f"expected at least {batch} photos in {photos}, got {len(targets)}")
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pool.train()
        for epoch in range(epochs):
            total = torch.zeros((), device=targets.device)
            order = torch.randperm(len(targets)).to(targets.device)
            for step in range(steps):
                for group in optimizer.param_groups:
                    group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * (epoch + step / steps) / epochs))
                chosen = order[step * batch : (step + 1) * batch]
                pooled = pool(tokens[chosen], cls[chosen]).tokens.mean(dim=1)
                loss = F.cross_entropy(model.head(model.norm(pooled)), targets[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach()
                check()
            losses.append(float(total) / steps)
    pool.requires_grad_(False).eval()
    return losses


@torch.no_grad()
def _inputs(model: Cast, photos: Path, batch: int, check: Callable[[], None]) -> tuple[Tensor, Tensor, Tensor]:
    """Return what enters the last pool, ``[N, K, C]`` and ``[N, 1, C]``, and the classes ``[N]``."""
    device, size = model.cls_token.device, model.config.img_size
    loading = SupervisedConfig(img_size=size, batch=batch, device=str(device))
    found = []
    for images, targets, _ in evaluation_batches(open_image_set(photos), CenterCrop(size), loading, rank=0, world=1):
        last = model.run(images[:, 0].to(device), None, None, last_pool=False)[-1]
        found.append((last.tokens, last.cls, targets.to(device)))
        check()
    tokens, cls, targets = map(torch.cat, zip(*found, strict=True))
    return tokens, cls, targets
