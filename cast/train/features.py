"""Features that are computed once, for a linear probe without augmentation: the network is frozen."""

from collections.abc import Iterator

import torch
from torch import Tensor

from cast.data.augment import make_transform
from cast.data.image_sets import ImageSet
from cast.data.loading import evaluation_batches
from cast.data.sampling import Requests

from .batch import Batch, send
from .config import ProbeConfig
from .distributed import Processes
from .linear_probe import ProbeTask
from .logs import TrainProgress


class FeatureBatches:
    """Batches of features ``[B, 1, C]`` of the images' central squares, in the place of images.

    Each process computes the features of all images, once, without autocast; they stay on its device. With
    ``skip_broken``, the next image takes the place of one that cannot be read, as in `training_batches`, so that an
    epoch has its steps; held-out ones are left out, as in `evaluation_batches`.

    Args:
        config: The settings, with ``augment=False``.
        task: Whose network makes the features.
        images: To train on.
        held_out: To evaluate on, or None.
        processes: Who trains.
        steps: Optimizer steps in an epoch.
        progress: Whether it is told on stderr how many features there are.
    """

    def __init__(
        self,
        config: ProbeConfig,
        task: ProbeTask,
        images: ImageSet,
        held_out: ImageSet | None,
        processes: Processes,
        steps: int,
        progress: bool = False,
    ) -> None:
        self.config, self.task, self.processes = config, task, processes
        self.images, self.held_out, self.last_step = images, held_out, config.epochs * steps
        self._progress = progress
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def training(self, first_step: int) -> Iterator[Batch]:
        """Return what this process trains on, from a step of the run on."""
        c, place = self.config, self.processes
        features, targets = self._features(self.images, replace_broken=True)
        if self.held_out is not None:  # now: before the first step a signal ends the run at once
            self._features(self.held_out, replace_broken=False)
        requests = Requests(
            len(targets), c.batch, c.accumulate, c.seed, 1, place.rank, place.world_size, first_step, self.last_step
        )
        for part in requests:
            index = send(torch.tensor([request.index for request in part]), features.device)
            yield Batch(features[index, None], targets[index])

    def evaluation(self) -> Iterator[Batch]:
        """Return this process's held-out features."""
        assert self.held_out is not None
        mine = slice(self.processes.rank, None, self.processes.world_size)
        features, targets = (x[mine] for x in self._features(self.held_out, replace_broken=False))
        for start in range(0, len(targets), self.config.batch):
            part = slice(start, start + self.config.batch)
            yield Batch(features[part, None], targets[part])

    @torch.no_grad()
    def _features(self, images: ImageSet, *, replace_broken: bool) -> tuple[Tensor, Tensor]:
        if id(images) not in self._known:
            device = self.processes.device
            transform = make_transform(self.config, train=False)
            features, targets = [], []
            loaded = evaluation_batches(images, transform, self.config, rank=0, world=1, replace_broken=replace_broken)
            progress, done = TrainProgress(len(images), 0, 1, self._progress), 0
            for raw in loaded:
                batch = raw.to(device)
                # Figures are taken under autocast, training features are not: both must be of the same network.
                with torch.autocast(device.type, enabled=False):
                    features.append(self.task.features(batch))
                targets.append(batch.targets)
                progress.advance(done := done + len(batch.targets))
            if not features:
                raise ValueError("expected images, got none that can be read")
            progress.say(f"features of {done} images are on {device}")
            self._known[id(images)] = torch.cat(features), torch.cat(targets)
        return self._known[id(images)]
