"""The training loop: from the last checkpoint to the end, one optimizer step after the other."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from cast._files import replace_file
from cast._terminal import Stopped

from .batch import Batch
from .checkpoints import LAST, RunState, check_same_run, collect, read_checkpoint, restore, write_checkpoint
from .config import TrainConfig
from .distributed import Processes, all_gather, is_main, on_main, sum_over_processes
from .errors import TrainingError, writing
from .logs import RunLog, TrainProgress
from .optimizer_step import OptimizerSteps
from .parallel import Network
from .settings import FILE_NAME, save_config
from .stopping import StopRequest, only_run_in
from .task import Task

MODEL, RESULT = "model", "result.json"  # in the folder of a run that is done

TrainingBatches = Callable[[int], Iterator[Batch]]
EvaluationBatches = Callable[[], Iterable[Batch]]


def run(
    config: TrainConfig,
    task: Task,
    training_batches: TrainingBatches,
    evaluation_batches: EvaluationBatches | None,
    steps_per_epoch: int,
    folder: Path,
    processes: Processes,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a task to the end, or go on with a run that was stopped.

    In the folder of the run lie ``log.jsonl``, ``last.pt`` and ``best.pt`` (see `checkpoints`), and once it is done the
    folder ``model`` and ``result.json``. A run that was killed at any moment goes on from ``last.pt`` and ends as if it
    had not been: every random number follows from the position. Ctrl-C, SIGTERM and SIGHUP are obeyed between two
    steps, after ``last.pt`` is written; a second one at once, as is one that comes before the first batch is there.

    Args:
        config: The settings.
        task: What is trained; fresh, and the same in all processes.
        training_batches: Called with the number of steps that are done; returns an iterator over the batches that this
            process computes from there on, ``config.accumulate`` for each step. With ``superpixels_on="cpu"`` they are
            prepared.
        evaluation_batches: Called for each evaluation; returns this process's held-out batches. None = no evaluation.
        steps_per_epoch: Optimizer steps in an epoch.
        folder: Of the run, made if needed; the same for all processes.
        processes: Who trains, from `distributed.setup`.
        progress: Whether the main process reports on stderr.

    Returns:
        ``status`` ("done", "max_steps" or "time limit"), ``step``, ``epoch``, ``loss`` (in the last line of the log),
        ``metrics`` (of the last evaluation) and ``best`` (the best figure so far, or None).

    Raises:
        ValueError: The folder holds a run with other settings, or the settings do not fit the processes.
        ImportError: TensorBoard is asked for and missing.
        TrainingError: The loss is not finite, an image cannot be read, a file cannot be written, or another process
            trains into the folder. What was trained until then is saved, but for a loss that is not finite.
        KeyboardInterrupt: A signal asked for the end; the run is saved.
    """
    if config.batch % (parts := config.accumulate * processes.world_size):
        raise ValueError(
            f"expected batch to be a multiple of accumulate times the number of processes, {parts}, got {config.batch}"
        )
    if steps_per_epoch < 1:
        raise ValueError(f"expected training images for at least one batch of {config.batch}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with only_run_in(folder) if is_main() else nullcontext(), StopRequest() as stop:
        content = _last_checkpoint(folder, config, steps_per_epoch)
        total = _total_steps(config, steps_per_epoch)
        if content is not None and content["state"]["step"] == total and (folder / RESULT).exists():
            TrainProgress(total, total, config.batch, progress and is_main()).say(f"{folder}: this run is done")
            return json.loads((folder / RESULT).read_text())
        if is_main():
            (folder / RESULT).unlink(missing_ok=True)  # of a run whose checkpoints were removed
            if content is None:
                with writing(folder / FILE_NAME):
                    save_config(config, folder)
        loop = _Loop(config, Network(config, task, processes), processes, steps_per_epoch, folder, stop)
        loop.start(content, evaluation_batches, progress and is_main())
        del content
        try:
            return loop.run(training_batches)
        finally:
            loop.close()


def _total_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    total = config.epochs * steps_per_epoch
    return min(total, config.max_steps) if config.max_steps else total


def _last_checkpoint(folder: Path, config: TrainConfig, steps_per_epoch: int) -> dict[str, Any] | None:
    path = folder / LAST
    content = read_checkpoint(path) if path.exists() else None
    if content is not None:
        check_same_run(path, content, config, steps_per_epoch)
    steps = all_gather(torch.tensor([-1 if content is None else content["state"]["step"]]))
    if (steps != steps[0]).any():
        raise ValueError(f"expected {folder} to be the same for all processes, but they find other checkpoints in it")
    return content


class _Loop:
    """What a run works with. Between two steps it is consistent: it can be saved, evaluated, or left."""

    def __init__(
        self,
        config: TrainConfig,
        network: Network,
        processes: Processes,
        steps_per_epoch: int,
        folder: Path,
        stop: StopRequest,
    ) -> None:
        self.config, self.network, self.processes, self.steps_per_epoch = config, network, processes, steps_per_epoch
        self.folder, self.stop, self.total = folder, stop, _total_steps(config, steps_per_epoch)
        self.steps = OptimizerSteps(config, network, processes, steps_per_epoch)
        self.must_stop, self.time_is_over, self.cannot_load = 0, False, False  # what all processes agreed on
        self.batches: Iterator[Batch] = iter(())
        self.parts: list[Batch] = []  # of the next step
        self.broken: ValueError | None = None  # what is wrong with them
        self.is_best = False  # whether the last evaluation was, and is not saved yet

    def start(
        self, content: dict[str, Any] | None, evaluation_batches: EvaluationBatches | None, progress: bool
    ) -> None:
        """Take up the run where a checkpoint left it."""
        self.state, self.evaluation_batches = RunState(), evaluation_batches
        if content is not None:
            self.state = restore(content, self.network.task, self.steps.optimizer, self.steps.scaler, self.config)
        self.saved = (self.state.step, self.state.evaluated)
        self.progress = TrainProgress(self.total, self.state.step, self.config.batch, progress)
        self.log = RunLog(self.folder, *self.saved, self.config.tensorboard) if is_main() else None
        if content is not None:
            self.progress.say(f"{self.folder}: going on from step {self.state.step}")

    def close(self) -> None:
        """Close the log, and the iterator of batches, which ends the workers."""
        if self.log is not None:
            self.log.close()
        if hasattr(self.batches, "close"):
            self.batches.close()

    def run(self, training_batches: TrainingBatches) -> dict[str, Any]:
        """Train until the end, or the end of the time."""
        state = self.state
        self.network.task.train()
        if state.step < self.total:
            self.batches = training_batches(state.step)
        self._fetch_and_agree()  # the first: with features or images kept on the device it can take long
        self.stop.wait()
        while True:
            if self.must_stop:
                self._save()
                self.progress.say(f"stopped: step {state.step} is saved in {self.folder}; the same command goes on")
                raise Stopped(self.must_stop)
            if self.time_is_over and state.step < self.total:
                self._save()
                self.progress.say(
                    f"time is over: step {state.step} is saved in {self.folder}; the same command goes on"
                )
                return self._result("time limit")
            if self._evaluation_is_due() and not self._evaluate():
                continue
            if self._saving_is_due():
                self._save()
            if state.step == self.total:
                return self._finish()
            if self.cannot_load:
                self._save()
                reason = self.broken or "an image of another process cannot be read"
                raise TrainingError(
                    f"{reason}; {self._kept()} With skip_broken, the next image takes the place of one."
                )
            self.steps.do(state.step, self.parts)
            state.step += 1
            self._after_step()
            self._fetch_and_agree()

    def _after_step(self) -> None:
        step = self.state.step
        if not self.steps.reading_waits:
            self._read_losses()
        if step % self.config.log_every == 0 or step == self.total:
            self._log_losses()
        self.progress.advance(step)

    def _fetch_and_agree(self) -> None:
        """Load what the next step is of, before any of it is computed, and let all processes know what matters to all.

        That is a signal to any of them, the main process's clock, and an image that cannot be read.
        """
        self.parts = []
        if self.state.step < self.total:
            try:
                self.parts = self.steps.fetch(self.state.step, self.batches)
            except ValueError as error:
                self.broken = error
        limit = self.config.time_limit * 60
        over = bool(limit) and self.progress.seconds() >= limit
        wishes = all_gather(torch.tensor([[self.stop.number, over, self.broken is not None]]))
        self.must_stop, self.time_is_over = int(wishes[:, 0].max()), bool(wishes[0, 1])
        self.cannot_load = bool(wishes[:, 2].any())

    def _read_losses(self) -> None:
        """Add the losses since the last look to the state, and check them."""
        loss, count = self.steps.take_losses()
        if not math.isfinite(loss):
            step, first = self.state.step, self.state.step - count + 1
            raise self._not_finite("the loss", f"at step {step}" if count == 1 else f"between steps {first} and {step}")
        self.state.loss_sum += loss
        self.state.loss_steps += count

    def _not_finite(self, what: str, where: str) -> TrainingError:
        return TrainingError(
            f"{what} is not finite {where}; {self._kept()} Try a lower learning rate (lr), a longer warm-up, "
            f'clip_grad, or precision "float32" or "bfloat16" (it is "{self.config.precision}")'
        )

    def _kept(self) -> str:
        step = self.saved[0]
        return f"the checkpoint of step {step} is in {self.folder}." if step else "no checkpoint was written yet."

    def _log_losses(self) -> None:
        self._read_losses()
        state, rate = self.state, self.progress.images_per_second(self.state.step)
        state.loss = float(f"{state.loss_sum / state.loss_steps:.6g}")
        state.loss_sum, state.loss_steps = 0.0, 0
        self._record(loss=state.loss, lr=self.steps.learning_rate, images_per_second=round(rate, 1))
        self.progress.tell(state.step, f"loss {state.loss:.4g}, {rate:.1f} images/s")

    def _record(self, **values: Any) -> None:
        if self.log is not None:
            step, seconds = self.state.step, round(self.progress.seconds(), 1)
            self.log.write({"step": step, "epoch": step / self.steps_per_epoch, **values, "seconds": seconds})

    def _evaluation_is_due(self) -> bool:
        step = self.state.step
        at_end_of_epochs = step % (self.config.eval_every * self.steps_per_epoch) == 0 or step == self.total
        return self.evaluation_batches is not None and at_end_of_epochs and step not in (0, self.state.evaluated)

    def _evaluate(self) -> bool:
        """Take the figures on held-out images; return False where a signal came in between."""
        self._read_losses()
        state = self.state
        try:
            with self.progress.pause(), self.network.whole() as task:
                sums = sum_over_processes(task.evaluate(self._held_out()))
        except _Interrupted:
            self.must_stop = self.stop.number
            return False
        if (count := float(sums.pop("count"))) == 0:
            raise ValueError("expected held-out images, got none")
        state.metrics = {name: float(x) / count for name, x in sums.items()}
        state.evaluated = state.step
        figure, sign = state.metrics[task.best_metric], 1 if task.best_is_highest else -1
        if math.isfinite(figure) and (state.best is None or sign * figure > sign * state.best):
            state.best, self.is_best = figure, True
        self._record(evaluation=state.metrics)
        self.progress.tell(state.step, ", ".join(f"{name} {x:.4g}" for name, x in state.metrics.items()))
        return True

    def _held_out(self) -> Iterator[Batch]:
        for batch in self.evaluation_batches():
            if self.stop.number and self.processes.world_size == 1:  # several would have to agree on the moment
                raise _Interrupted
            yield batch.to(self.processes.device)

    def _saving_is_due(self) -> bool:
        step, every = self.state.step, self.config.save_every
        return (every > 0 and step % every == 0) or step % self.steps_per_epoch == 0 or step == self.total

    def _save(self) -> None:
        """Write a checkpoint, unless the last one is of this very state."""
        state = self.state
        if (state.step, state.evaluated) == self.saved:
            return
        self._read_losses()
        if not all_gather(torch.tensor([self.network.is_finite()])).all():
            raise self._not_finite("a parameter", f"after step {state.step}")
        with self.progress.pause():
            task, steps = self.network.task, self.steps
            content = collect(state, task, steps.optimizer, steps.scaler, self.config, self.steps_per_epoch)
            on_main(lambda: self._write(content))
        self.saved, self.is_best = (state.step, state.evaluated), False

    def _write(self, content: dict[str, Any]) -> None:
        self.log.sync()
        write_checkpoint(self.folder, content, self.is_best, self._kept())

    def _finish(self) -> dict[str, Any]:
        """Write the model and, when all is there, the result."""
        result = self._result("max_steps" if self.total < self.config.epochs * self.steps_per_epoch else "done")
        model, path = self.folder / MODEL, self.folder / RESULT

        def write() -> None:
            with writing(model, self._kept()):
                task.save_model(model)
            with writing(path, self._kept()), replace_file(path) as file:
                file.write(json.dumps(result, indent=1).encode())

        with self.network.whole() as task:
            on_main(write)
        self.progress.say(f"done: {model}")
        return result

    def _result(self, status: str) -> dict[str, Any]:
        state = self.state
        figures = {"loss": state.loss, "metrics": state.metrics, "best": state.best}
        return {"status": status, "step": state.step, "epoch": state.step / self.steps_per_epoch, **figures}


class _Interrupted(Exception):
    """A signal came while figures were taken."""
