"""`cast train` and `cast probe`: images, task and loop put together."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cast import shipped
from cast._terminal import printable
from cast.data.augment import make_transform
from cast.data.device_augment import make_device_transform
from cast.data.device_images import DeviceImages
from cast.data.image_sets import ImageSet, check_same_classes, open_image_set
from cast.data.loading import evaluation_batches, training_batches
from cast.data.sampling import steps_per_epoch

from .batch import Batch
from .cli import parse_changes
from .config import CONFIGS, ProbeConfig, TrainConfig
from .distributed import Processes, is_main, setup
from .errors import TrainingError
from .features import FeatureBatches
from .logs import TrainProgress
from .loop import run
from .settings import resolve
from .tasks import make_task


def train(config: TrainConfig, folder: Path, *, progress: bool = True) -> dict[str, Any]:
    """Train as a config says, or go on with the run in a folder; under torchrun with all its processes.

    Args:
        config: The settings, see `settings.resolve`.
        folder: Of the run: ``config.json``, ``log.jsonl``, ``last.pt``, ``best.pt``, and in the end ``model/``.
        progress: Whether the main process reports on stderr.

    Returns:
        What `loop.run` does: status, step, epoch, loss, metrics of the last evaluation, best figure.

    Raises:
        ValueError: The settings do not fit the images, the model, the machine, or the run in the folder; an image
            cannot be read.
        ImportError: An optional package that the settings ask for is missing.
        TrainingError: The run cannot go on: the loss is not finite, a disk is full.
        KeyboardInterrupt: A signal asked for the end; the run is saved.
    """
    with setup(config.device) as processes:
        images = open_image_set(config.data, config.classes)
        held_out = open_image_set(config.val, config.classes) if config.val else None
        if held_out is not None and config.task != "moco":
            check_same_classes(images, held_out)
        task = make_task(config, len(images.class_names))
        steps = steps_per_epoch(len(images), config.batch, _repeats(config))
        _check_parts(config, processes)
        if isinstance(config, ProbeConfig) and not config.augment:
            data: _Loaded | FeatureBatches = FeatureBatches(
                config, task, images, held_out, processes, steps, progress and is_main()
            )
        else:
            data = _Loaded(config, task.preparation, images, held_out, processes, steps, progress and is_main())
        evaluation = data.evaluation if held_out is not None else None
        return run(config, task, data.training, evaluation, steps, folder, processes, progress=progress)


def _repeats(config: TrainConfig) -> int:
    return getattr(config, "repeats", 1)


def _check_parts(config: TrainConfig, processes: Processes) -> None:
    """Refuse parts of one image where images are told from each other, and normalised by the statistics of all."""
    images = config.batch // (config.accumulate * processes.world_size)
    if config.task == "moco" and images < 2:
        raise ValueError(
            f"expected at least 2 images that a process computes at once, got {images}: batch {config.batch} divided "
            f"by accumulate {config.accumulate} and {processes.world_size} processes"
        )


class _Loaded:
    """Batches of images: loaded by workers, or kept on the device."""

    def __init__(
        self,
        config: TrainConfig,
        preparation: Any,
        images: ImageSet,
        held_out: ImageSet | None,
        processes: Processes,
        steps: int,
        progress: bool,
    ) -> None:
        self.progress = TrainProgress(len(images), 0, 1, progress)  # of loading onto the device
        self.config, self.preparation, self.processes = config, preparation, processes
        self.images, self.held_out, self.last_step = images, held_out, config.epochs * steps
        self.place = {"rank": processes.rank, "world": processes.world_size}

    def training(self, first_step: int) -> Iterator[Batch]:
        """Return what this process trains on, from a step of the run on."""
        config = self.config
        span = {"first_step": first_step, "last_step": self.last_step, "repeats": _repeats(config)}
        if config.cache == "device":
            kept = DeviceImages(self.images, config, self.processes.device, self._tell_loaded)
            return kept.batches(make_device_transform(config, train=True), **self.place, **span)
        prepare = self.preparation if config.superpixels_on == "cpu" else None
        return training_batches(
            self.images, make_transform(config, train=True), config, **self.place, **span, prepare=prepare
        )

    def evaluation(self) -> Iterator[Batch]:
        """Return this process's held-out images; where they are compared, in batches that all numbers of them share."""
        assert self.held_out is not None
        config, whole = self.config, self.config.task == "moco"
        return evaluation_batches(self.held_out, make_transform(config, train=False), config, **self.place, whole=whole)

    def _tell_loaded(self, done: int, total: int) -> None:
        self.progress.advance(done)
        if done == total:
            self.progress.say(f"{total} images are on {self.processes.device}")


def run_command(task: str, arguments: argparse.Namespace) -> int:
    """Run `cast train` or `cast probe` and return the exit code: 0 done, 1 the run failed, 2 it cannot begin."""
    try:
        config = resolve(
            task, preset=arguments.preset, file=arguments.config, changes=parse_changes(arguments, CONFIGS[task])
        )
        if not config.data:
            raise ValueError("expected DATA, the training images")
        if is_main_process():
            print(printable(describe(config, arguments.out)), file=sys.stderr)
            if config.weights and shipped.resolve(config.weights) == shipped.FOLDER:
                print(printable(shipped.notice()), file=sys.stderr)
        result = train(config, arguments.out)
    except TrainingError as error:
        return _complain(task, error, 1)
    except (ValueError, ImportError, OSError) as error:
        return _complain(task, error, 2)
    if is_main_process():
        figures = {name: round(value, 4) for name, value in result["metrics"].items()}
        print(json.dumps({"status": result["status"], "step": result["step"], "loss": result["loss"], **figures}))
        if result["status"] != "time limit":
            print(printable(str(arguments.out / "model")))
    return 0


def describe(config: TrainConfig, folder: Path) -> str:
    """Return a line on what is going to be done."""
    what = f"{config.task}: {config.model} at {config.img_size} px, {config.epochs} epochs of batches of {config.batch}"
    rate = f"learning rate {config.learning_rate:g}"
    if config.lr_batch != config.batch:
        rate += f" ({config.lr:g} x {config.batch} / {config.lr_batch})"
    return f"{what}, {rate}, {config.precision}; into {folder}"


def is_main_process() -> bool:
    """Whether this is the process of torchrun that talks, before and after they have met."""
    return os.environ.get("RANK", "0") == "0"


def _complain(task: str, error: BaseException, code: int) -> int:
    print(f"cast {'probe' if task == 'probe' else f'train {task}'}: error: {printable(str(error))}", file=sys.stderr)
    return code
