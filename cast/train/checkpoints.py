"""Checkpoints of a run: one file holds all that is needed to go on, as if the run had never stopped.

There is no state of random numbers in it: the loop seeds each part of each step by its position. Nor is there anything
of one process: a run can go on with another number of processes.
"""

import dataclasses
import json
import os
import pickle
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from cast._files import replace_file

from .config import FREE_TO_CHANGE, TrainConfig
from .errors import writing

FORMAT = 1  # of the file
LAST, BEST = "last.pt", "best.pt"  # in the folder of a run


@dataclass
class RunState:
    """How far a run is, besides tensors.

    Attributes:
        step: Optimizer steps that are done; also the position in the data.
        loss_sum: Sum of the losses of the steps since the last line of the log.
        loss_steps: How many these are.
        loss: Their mean in the last line.
        evaluated: The step at which figures on held-out images were last taken; 0 = never.
        metrics: These figures.
        best: The best one so far of those that the task goes by.
    """

    step: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    loss: float | None = None
    evaluated: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    best: float | None = None


def collect(
    state: RunState,
    task: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    config: TrainConfig,
    steps_per_epoch: int,
) -> dict[str, Any]:
    """Return the content of a checkpoint: plain containers and tensors. With FSDP all processes must call it.

    Args:
        state: How far the run is.
        task: What is trained, without wrappers around it.
        optimizer: Its optimizer.
        scaler: Of float16's gradients; one that is not enabled has no state.
        config: The settings.
        steps_per_epoch: Steps in an epoch.

    Returns:
        The content; with FSDP, weights and optimizer are empty but in the main process.
    """
    if config.fsdp:  # parameters are in pieces, and the optimizer's state is named after them
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights, moments = get_state_dict(task, optimizer, options=options)
    else:
        weights, moments = task.state_dict(), optimizer.state_dict()
    return {
        "format": FORMAT,
        "config": config.to_dict(),
        "steps_per_epoch": steps_per_epoch,
        "state": dataclasses.asdict(state),
        "task": dict(weights),
        "optimizer": moments,
        "scaler": scaler.state_dict(),
    }


def restore(
    content: dict[str, Any],
    task: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    config: TrainConfig,
) -> RunState:
    """Bring everything to the state of a checkpoint and return how far that is. With FSDP all processes must call it.

    Raises:
        RuntimeError: The weights are of another model.
    """
    if config.fsdp:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        set_state_dict(
            task,
            optimizer,
            model_state_dict=content["task"],
            optim_state_dict=content["optimizer"],
            options=options,
        )
    else:
        task.load_state_dict(content["task"])
        optimizer.load_state_dict(content["optimizer"])
    if content["scaler"] and scaler.is_enabled():
        scaler.load_state_dict(content["scaler"])
    return RunState(**content["state"])


def check_same_run(path: Path, content: dict[str, Any], config: TrainConfig, steps_per_epoch: int) -> None:
    """Check that a checkpoint is of a run with these settings.

    Raises:
        ValueError: A setting differs that is not in `FREE_TO_CHANGE`, or the number of steps in an epoch does.
    """
    before, now = content["config"], config.to_dict()
    # as JSON, in which a list from a file and a tuple are the same
    names = [n for n in sorted({*before, *now} - FREE_TO_CHANGE) if _written(before.get(n)) != _written(now.get(n))]
    if names:
        changes = ", ".join(f"{n} (was {before.get(n)!r}, is {now.get(n)!r})" for n in names)
        raise ValueError(
            f"{path} is of a run with other settings: {changes}. Expected the same ones to continue it, or another "
            "folder for a new run"
        )
    if content["steps_per_epoch"] != steps_per_epoch:
        raise ValueError(
            f"{path} is of a run with {content['steps_per_epoch']} steps per epoch, and now there are "
            f"{steps_per_epoch}: expected the same number of training images to continue it"
        )


def _written(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, its tensors on the CPU; nothing in the file is run.

    Raises:
        ValueError: The file is no checkpoint of a run, or one of a later version.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ValueError(f"expected {path} to be the checkpoint of a run, but it cannot be read: {error}") from error
    if not isinstance(content, dict) or "format" not in content or "state" not in content:
        raise ValueError(f"expected {path} to be the checkpoint of a run, got another file of PyTorch's")
    if content["format"] != FORMAT:
        raise ValueError(f"expected {path} to be of format {FORMAT}, got {content['format']}, of another version")
    return content


def write_checkpoint(folder: Path, content: dict[str, Any], best: bool, kept: str) -> None:
    """Write ``last.pt``, and ``best.pt`` with the same content.

    A file is there whole, as it was or as it will be, at whatever moment the process is killed. ``best.pt`` comes
    first: a run that goes on from the former ``last.pt`` then finds the same best again.

    Args:
        folder: Of the run.
        content: From `collect`.
        best: Whether this is the best so far.
        kept: What is safe, a sentence for the message.

    Raises:
        TrainingError: The disk is full, or a file cannot be written for another reason. The former files are whole.
    """
    first = folder / (BEST if best else LAST)
    with writing(first, kept):
        _write(first, content)
    if best:
        with writing(folder / LAST, kept):
            _duplicate(first, folder / LAST)


def _write(path: Path, content: dict[str, Any]) -> None:
    with replace_file(path) as file:
        watched = _Watched(file)
        try:
            torch.save(content, watched)
        except RuntimeError:
            if watched.error is not None:  # PyTorch reports its own confusion instead of the system's error
                raise watched.error from None
            raise
        file.flush()
        os.fsync(file.fileno())  # the name must not reach the disk before the content


class _Watched:
    """A file to write that remembers what went wrong."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.error = file, None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _duplicate(source: Path, target: Path) -> None:
    """Let a second name stand for a file: both are only ever replaced, never changed."""
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:  # a file system without links
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
