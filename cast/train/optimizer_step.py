"""One optimizer step: parts of a batch, their gradients added up, then the parameters moved."""

import itertools
from collections.abc import Iterator

import torch

from cast.data.sampling import prepare_generator

from .batch import NETWORK, Batch, torch_seed
from .config import TrainConfig
from .distributed import Processes, all_gather
from .errors import TrainingError
from .parallel import Network


class OptimizerSteps:
    """The steps of a run. Each depends on nothing but the state of the task and the optimizer, and on its number.

    Args:
        config: The settings.
        network: The task, ready for its processes.
        processes: Who trains.
        steps_per_epoch: Steps in an epoch.

    Attributes:
        optimizer: That of the task.
        scaler: Of float16's gradients.
        learning_rate: The one of the last step.
        reading_waits: Whether a look at the losses makes the host wait for the device, so that it should be rare.
    """

    def __init__(self, config: TrainConfig, network: Network, processes: Processes, steps_per_epoch: int) -> None:
        self.config, self.network, self.processes, self.steps_per_epoch = config, network, processes, steps_per_epoch
        self.optimizer = network.task.make_optimizer()
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=config.precision == "float16")
        self.learning_rate = 0.0
        self.reading_waits = processes.device.type == "cuda"
        wide = torch.float32 if processes.device.type == "mps" else torch.float64
        self._losses = torch.zeros((), dtype=wide, device=processes.device)  # to look at it would wait for the device
        self._untaken = 0

    def fetch(self, step: int, batches: Iterator[Batch]) -> list[Batch]:
        """Return what the step after ``step`` others is of: the next ``accumulate`` batches.

        Raises:
            TrainingError: There are no more batches.
        """
        parts = list(itertools.islice(batches, self.config.accumulate))
        if len(parts) < self.config.accumulate:
            raise TrainingError(f"the training images ended before step {step + 1}")
        return parts

    def do(self, step: int, parts: list[Batch]) -> None:
        """Do the step after ``step`` others, on batches from `fetch`."""
        config, task = self.config, self.network.task
        epoch = step / self.steps_per_epoch
        self.learning_rate = task.learning_rate(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        for part, raw in enumerate(parts):
            batch = self._prepare(raw, step, part)
            torch.manual_seed(torch_seed(NETWORK, config.seed, step, part, self.processes.rank))
            with self.network.exchange(gradients=part == config.accumulate - 1):
                loss = self.network(batch, epoch, part == 0) / config.accumulate
                self.scaler.scale(loss).backward()
            self._losses += loss.detach()
        if config.clip_grad:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(task.parameters(), config.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        task.after_step()
        self._untaken += 1

    def take_losses(self) -> tuple[float, int]:
        """Return the sum of the losses since this was last called, the mean of all processes', and of how many steps.

        All processes must call it; it waits for the device. The sum is not finite where one of the losses was not.
        """
        if not (steps := self._untaken):
            return 0.0, 0
        loss = all_gather(self._losses.to("cpu").reshape(1)).mean().item()
        self._losses.zero_()
        self._untaken = 0
        return loss, steps

    def _prepare(self, batch: Batch, step: int, part: int) -> Batch:
        batch = batch.to(self.processes.device)
        if self.config.superpixels_on == "cpu":
            return batch  # prepared where it was loaded
        generator = prepare_generator(self.config.seed, step, self.steps_per_epoch, part, self.processes.rank)
        with torch.no_grad():
            return self.network.task.prepare(batch, generator)
