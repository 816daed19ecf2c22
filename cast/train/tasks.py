"""From settings to the task that they are of."""

import torch

from .config import TrainConfig
from .linear_probe import ProbeTask
from .moco import MocoTask
from .supervised import SupervisedTask
from .task import Task

TASKS: dict[str, type[Task]] = {"moco": MocoTask, "supervised": SupervisedTask, "probe": ProbeTask}


def make_task(config: TrainConfig, num_classes: int) -> Task:
    """Build the task of some settings, on the CPU, with fresh weights that depend on ``config.seed`` alone.

    The global random state is left as it was.

    Args:
        config: The settings.
        num_classes: Classes of the training images; 0 where they have none.

    Returns:
        The task in train mode; in float64 where ``config.precision`` says so.

    Raises:
        ValueError: The task needs classes and there are none, or the model, its overrides, its weights or the size of
            the images do not fit each other or the task.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        task = TASKS[config.task](config, num_classes)
    return task.double() if config.precision == "float64" else task
