import io
import json
import os
import re
import signal
import sys
import time
import types

import pytest
import torch
from torch import nn
from train_worker import (
    STEPS_PER_EPOCH,
    ToyTask,
    assert_equal,
    checkpoint,
    finish,
    log_of,
    start,
    toy_batches,
    toy_config,
    toy_held_out,
    train,
    train_and_report,
)

import cast.train.logs
import cast.train.stopping
from cast._terminal import Stopped
from cast.train import distributed
from cast.train.batch import NETWORK, PREPARE, torch_seed
from cast.train.errors import TrainingError
from cast.train.logs import RunLog, TrainProgress, read_log
from cast.train.loop import run
from cast.train.optimizer_step import OptimizerSteps

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(folder)
    return folder


def run_toy(folder, config, task, *, batches=None, held_out=None, **options):
    with distributed.setup("cpu") as processes:
        batches = batches or toy_batches(config)
        return run(config, task, batches, held_out, STEPS_PER_EPOCH, folder, processes, **options)


# What a step is
def test_a_run_is_its_steps_one_after_the_other(tmp_path):
    """Written out: parts, seeds, learning rates, clipping."""
    changes = {"accumulate": 2, "clip_grad": 0.3, "precision": "float32", "seed": 3}
    train(tmp_path, changes, dropout=0.5)
    config = toy_config(**changes)
    task = ToyTask(config, dropout=0.5).train()
    optimizer, batches, losses = task.make_optimizer(), toy_batches(config)(0), []
    for step in range(3 * STEPS_PER_EPOCH):
        optimizer.param_groups[0]["lr"] = task.learning_rate(step / STEPS_PER_EPOCH)
        losses.append(0.0)
        for part in range(2):
            key = (step // STEPS_PER_EPOCH, step % STEPS_PER_EPOCH, part, 0)
            batch = task.prepare(next(batches), torch.Generator().manual_seed(torch_seed(PREPARE, 3, *key)))
            torch.manual_seed(torch_seed(NETWORK, 3, step, part, 0))
            loss = task(batch, step / STEPS_PER_EPOCH, part == 0) / 2
            loss.backward()
            losses[-1] += loss.item()
        nn.utils.clip_grad_norm_(task.parameters(), 0.3)
        optimizer.step()
        optimizer.zero_grad()
    found = checkpoint(tmp_path)
    assert_equal({name: found[f"/task/{name}"] for name in task.state_dict()}, task.state_dict())
    lines = [line for line in log_of(tmp_path) if "loss" in line]
    assert [line["loss"] for line in lines] == pytest.approx(
        [sum(losses[i : i + 3]) / 3 for i in (0, 3, 6, 9)], rel=1e-5
    )
    assert [line["lr"] for line in lines] == [task.learning_rate(step / STEPS_PER_EPOCH) for step in (2, 5, 8, 11)]


def test_parts_add_up_to_the_batch(tmp_path):
    train(tmp_path / "one", norm=False)
    train(tmp_path / "two", {"accumulate": 4}, norm=False)
    assert_equal(checkpoint(tmp_path / "two"), checkpoint(tmp_path / "one"), 1e-9)


def test_batches_that_workers_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr(ToyTask, "prepare", None)
    config = toy_config(superpixels_on="cpu", precision="float32")
    prepared = (batch._replace(images=batch.images.float()) for batch in toy_batches(config)(0))
    assert run_toy(tmp_path, config, ToyTask(config), batches=lambda step: prepared)["status"] == "done"


def test_grad_checkpointing_reaches_the_blocks(tmp_path):
    class Blocks(nn.Identity):
        asked = 0

        def set_grad_checkpointing(self, enable=True):
            self.asked += enable

    config = toy_config(max_steps=1, grad_checkpointing=True)
    task = ToyTask(config)
    task.blocks = nn.Sequential(Blocks(), nn.Sequential(Blocks()))
    run_toy(tmp_path, config, task)
    assert [m.asked for m in task.modules() if isinstance(m, Blocks)] == [1, 1]


def test_compiled(tmp_path, monkeypatch):
    """Once, whatever the epoch, and without what a task does before `forward`; checkpoints do not tell."""
    compiled = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled(self, backend="aot_eager"))
    train(tmp_path / "one", contrastive=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        train(tmp_path / "two", {"compile": True}, contrastive=True)
    assert torch._dynamo.utils.counters["frames"]["ok"] == 1
    assert_equal(checkpoint(tmp_path / "two"), checkpoint(tmp_path / "one"), 1e-9)


def test_compiled_by_inductor(tmp_path):
    losses = []
    for compile in (False, True):
        config = toy_config(compile=compile, max_steps=2)
        task = ToyTask(config)
        task.net = nn.Sequential(nn.Flatten(), nn.Linear(108, 6))
        losses.append(run_toy(tmp_path / f"{compile}", config, task)["loss"])
    assert losses[0] == losses[1]


def test_fsdp_and_float16_do_not_go_together(tmp_path):
    with pytest.raises(ValueError, match='with fsdp, got "float16"'):
        train(tmp_path, {"fsdp": True, "precision": "float16"})


# The end
def test_a_run_that_is_done_does_nothing(tmp_path, capsys):
    config = toy_config()
    first = run_toy(tmp_path, config, ToyTask(config), held_out=toy_held_out(config))
    assert first["status"] == "done"
    assert (first["step"], first["epoch"], set(first["metrics"])) == (12, 3.0, {"accuracy"})
    assert "done: " in capsys.readouterr().err
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"}
    assert run_toy(tmp_path, config, ToyTask(config), batches=pytest.fail, held_out=pytest.fail) == first
    assert "this run is done" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"}


def test_checkpoints_that_were_removed_start_anew(tmp_path, uninterrupted):
    train(tmp_path, {"max_steps": 2})
    (tmp_path / "last.pt").unlink()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, signals=((0, 1),))
    assert not (tmp_path / "result.json").exists()
    train(tmp_path)
    assert_equal(checkpoint(tmp_path), checkpoint(uninterrupted))
    assert log_of(tmp_path) == log_of(uninterrupted)


def test_max_steps(tmp_path, uninterrupted):
    result = train(tmp_path, {"max_steps": 5})
    assert (result["status"], result["step"], result["epoch"]) == ("max_steps", 5, 1.25)
    log = log_of(tmp_path)
    assert log[:2] == log_of(uninterrupted)[:2]  # the schedule is that of the whole run
    assert [line["step"] for line in log] == [3, 4, 5, 5]
    assert json.loads((tmp_path / "result.json").read_text()) == result


def test_no_evaluation(tmp_path):
    config = toy_config(max_steps=4)
    result = run_toy(tmp_path, config, ToyTask(config))
    assert (result["metrics"], result["best"]) == ({}, None)
    files = [".lock", "config.json", "last.pt", "log.jsonl", "model", "result.json"]
    assert sorted(os.listdir(tmp_path)) == files


def test_evaluation_every_few_epochs(tmp_path):
    train(tmp_path, {"eval_every": 2})
    assert [line["step"] for line in log_of(tmp_path) if "evaluation" in line] == [8, 12]


def test_evaluation_is_in_eval_mode_and_leaves_no_trace(tmp_path, monkeypatch, uninterrupted):
    modes, forward = [], ToyTask.forward
    monkeypatch.setattr(ToyTask, "forward", lambda self, *args: modes.append(self.training) or forward(self, *args))
    evaluate = ToyTask.evaluate

    def watched(self, batches):
        modes.append((self.training, torch.is_grad_enabled()))
        torch.rand(3)
        return evaluate(self, batches)

    monkeypatch.setattr(ToyTask, "evaluate", watched)
    train(tmp_path)
    assert modes == ([True] * 4 + [(False, False)]) * 3
    assert_equal(checkpoint(tmp_path), checkpoint(uninterrupted))


def test_nothing_to_train_or_to_evaluate_on(tmp_path):
    config = toy_config()
    with distributed.setup("cpu") as processes, pytest.raises(ValueError, match="at least one batch of 8"):
        run(config, ToyTask(config), toy_batches(config), None, 0, tmp_path, processes)
    two = list(zip(range(2), toy_batches(config)(0), strict=False))
    with pytest.raises(TrainingError, match="ended before step 3"):
        run_toy(tmp_path, config, ToyTask(config), batches=lambda step: (batch for _, batch in two))
    with pytest.raises(ValueError, match="expected held-out images, got none"):
        run_toy(tmp_path, config, ToyTask(config), held_out=list)


# The time
def test_time_limit(tmp_path, monkeypatch, uninterrupted):
    with monkeypatch.context() as patch:
        patch.setattr(TrainProgress, "seconds", lambda self: 60.0 * self.marked)  # a minute a step; told each 3 steps
        result = train(tmp_path, {"time_limit": 5.0})
    assert (result["status"], result["step"]) == ("time limit", 6)
    assert not (tmp_path / "model").exists()
    assert train(tmp_path, {"time_limit": 5.0})["status"] == "done"
    assert_equal(checkpoint(tmp_path), checkpoint(uninterrupted))
    assert log_of(tmp_path) == log_of(uninterrupted)


def test_time_over_at_the_end_of_an_epoch(tmp_path, monkeypatch, uninterrupted):
    """The figures are taken by the run that goes on."""
    with monkeypatch.context() as patch:
        patch.setattr(TrainProgress, "seconds", lambda self: 60.0 * self.marked)
        result = train(tmp_path, {"time_limit": 4.0, "log_every": 4})
    assert (result["status"], result["step"], result["metrics"]) == ("time limit", 4, {})
    train(tmp_path)
    assert [line["step"] for line in log_of(tmp_path) if "evaluation" in line] == [4, 8, 12]
    found, expected = checkpoint(tmp_path), checkpoint(uninterrupted)
    assert_equal(found | {"/state/loss": 0}, expected | {"/state/loss": 0})


# Signals
def test_a_signal_ends_the_run_between_two_steps(tmp_path, capsys, uninterrupted):
    before = signal.getsignal(signal.SIGTERM)
    config = toy_config()
    with pytest.raises(Stopped) as stopped:
        run_toy(tmp_path, config, ToyTask(config, signals=((0, 5),)), held_out=toy_held_out(config))
    assert stopped.value.code == 128 + signal.SIGTERM
    assert "stopped: step 5 is saved" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
    assert checkpoint(tmp_path)["/state/step"] == 5
    train(tmp_path)
    assert_equal(checkpoint(tmp_path), checkpoint(uninterrupted))
    assert log_of(tmp_path) == log_of(uninterrupted)


@pytest.mark.usefixtures("heeded")
def test_a_signal_while_figures_are_taken(tmp_path, monkeypatch, uninterrupted):
    evaluate = ToyTask.evaluate

    def interrupted(self, batches):
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(self, batches)

    monkeypatch.setattr(ToyTask, "evaluate", interrupted)
    with pytest.raises(Stopped):
        train(tmp_path)
    monkeypatch.undo()
    assert checkpoint(tmp_path)["/state/step"] == 4
    assert checkpoint(tmp_path)["/state/evaluated"] == 0
    train(tmp_path)
    assert_equal(checkpoint(tmp_path), checkpoint(uninterrupted))
    assert log_of(tmp_path) == log_of(uninterrupted)


def test_a_second_signal_ends_the_run_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(cast.train.stopping, "_DEAF", 0.0)
    with pytest.raises(Stopped):
        train(tmp_path, signals=((0, 5), (0, 5)), sleep=0.001)
    assert checkpoint(tmp_path)["/state/step"] == 5  # one signal, however it is written in the list
    second = ToyTask.after_step

    def twice(self):
        for _ in range(2 if self.steps == 0 else 0):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.001)
        second(self)

    monkeypatch.setattr(ToyTask, "after_step", twice)
    with pytest.raises(Stopped):
        train(tmp_path)
    assert checkpoint(tmp_path)["/state/step"] == 5  # half a step is not saved


def test_a_signal_before_the_first_batch_ends_the_run_at_once(tmp_path, uninterrupted):
    """There images are put on the device, or features made: long work without anything to save."""
    config = toy_config()
    past = []

    def slow(first):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.001)
        past.append(first)
        return toy_batches(config)(first)

    with pytest.raises(Stopped) as stopped:
        run_toy(tmp_path, config, ToyTask(config), batches=slow)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert past == []
    train(tmp_path)
    assert_equal(checkpoint(tmp_path), checkpoint(uninterrupted))


def test_two_runs_in_a_folder(tmp_path):
    beacon = tmp_path / "beacon"
    jobs = start(train_and_report, tmp_path / "run", {}, {"sleep": 60.0, "beacon": os.fspath(beacon)})
    while not beacon.exists():
        time.sleep(0.01)
    with pytest.raises(TrainingError, match="another process trains into"):
        train(tmp_path / "run")
    jobs[0].kill()
    assert finish(jobs) == [-signal.SIGKILL]


# What is not finite
def test_a_loss_that_is_not_finite(tmp_path, uninterrupted):
    with pytest.raises(
        TrainingError, match=r"the loss is not finite at step 6; the checkpoint of step 4 is in .* Try a"
    ):
        train(tmp_path, broken_step=5)
    assert checkpoint(tmp_path)["/state/step"] == 4
    train(tmp_path)  # the same, had it been a bad moment
    assert_equal(checkpoint(tmp_path), checkpoint(uninterrupted))
    assert log_of(tmp_path) == log_of(uninterrupted)
    with pytest.raises(TrainingError, match="the loss is not finite at step 2; no checkpoint was written yet"):
        train(tmp_path / "new", broken_step=1)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    """The loss of their step still was."""
    with pytest.raises(TrainingError, match="a parameter is not finite after step 6; the checkpoint of step 4"):
        train(tmp_path, broken_step=6)
    assert checkpoint(tmp_path)["/state/step"] == 4


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Losses are looked at where that is needed only."""
    monkeypatch.setattr(
        OptimizerSteps, "reading_waits", property(lambda self: True, lambda self, _: None), raising=False
    )


def test_losses_read_later(tmp_path, as_on_a_gpu, uninterrupted):
    train(tmp_path)
    assert_equal(checkpoint(tmp_path), checkpoint(uninterrupted))
    assert log_of(tmp_path) == log_of(uninterrupted)


@pytest.mark.parametrize(
    ("save_every", "broken_step", "message", "saved"),
    [(0, 5, "between steps 5 and 7; the checkpoint of step 4", 4), (3, 7, "at step 8; the checkpoint of step 6", 6)],
)
def test_a_loss_that_is_not_finite_and_read_later(tmp_path, as_on_a_gpu, save_every, broken_step, message, saved):
    with pytest.raises(TrainingError, match="the loss is not finite " + message):
        train(tmp_path, {"save_every": save_every, "log_every": 7}, broken_step=broken_step)
    assert checkpoint(tmp_path)["/state/step"] == saved


# Logs
def test_lines_on_stderr(tmp_path, capsys):
    config = toy_config(epochs=1)
    run_toy(tmp_path, config, ToyTask(config), held_out=toy_held_out(config))
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"3/4 loss \d\.\d+, [\d.]+ images/s \d:\d\d:\d\d left", lines[0])
    assert re.fullmatch(r"4/4 loss \d\.\d+, [\d.]+ images/s", lines[1])
    assert lines[2].startswith("4/4 accuracy 0.")
    assert lines[3] == f"done: {tmp_path / 'model'}"
    run_toy(tmp_path / "quiet", config, ToyTask(config), progress=False)
    assert capsys.readouterr().err == ""


def test_bar_on_a_terminal(monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "100")
    progress = TrainProgress(100, 50, 8, show=True)
    progress.start -= 60
    progress.drawn = 0.0
    progress.tell(74, "loss 2.5, 10 images/s")
    assert stream.getvalue() == ""
    progress.advance(75)
    assert stream.getvalue() == f"\r\x1b[K[{'#' * 18}{'.' * 6}] 75/100 0:01:00 left loss 2.5, 10 images/s"
    progress.advance(76)  # too soon to draw again
    progress.say("done")
    assert stream.getvalue().endswith("images/s\r\x1b[Kdone\n")


def test_pauses_do_not_count(monkeypatch):
    clock = 100.0
    monkeypatch.setattr(cast.train.logs, "time", types.SimpleNamespace(monotonic=lambda: clock))
    progress = TrainProgress(100, 0, 8, show=False)
    clock += 2.0
    with progress.pause():
        clock += 5.0
    assert progress.paused == 5.0
    assert progress.images_per_second(10) == 40.0  # 80 images in the 2 seconds


def test_log_drops_what_comes_again(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 3}\n{"step": 4, "evaluation": {}}\n{"step": 6}\n{"step": 7, "lo')
    RunLog(tmp_path, 4, 4).close()
    assert [line["step"] for line in read_log(path)] == [3, 4]
    path.write_text('{"step": 3}\n{"step": 4}')  # whole, but its end is not there
    log = RunLog(tmp_path, 4, 4)
    log.write({"step": 4})
    log.close()
    assert [line["step"] for line in read_log(path)] == [3, 4]


def test_tensorboard(tmp_path, monkeypatch):
    seen = []

    class Writer:
        def __init__(self, folder, purge_step):
            seen.append((folder, purge_step))

        def add_scalar(self, *values):
            seen.append(values)

        def close(self):
            seen.append("closed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    train(tmp_path, {"tensorboard": True, "epochs": 1})
    assert seen[0] == (os.fspath(tmp_path / "tensorboard"), 1)
    names = {values[0]: values[2] for values in seen[1:-1]}
    assert names == {"epoch": 4, "loss": 4, "lr": 4, "images_per_second": 4, "evaluation/accuracy": 4}
    assert seen[-1] == "closed"


def test_tensorboard_reads_what_is_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, {"tensorboard": True, "epochs": 1, "log_every": 2})
    events = EventAccumulator(os.fspath(tmp_path / "tensorboard"))
    events.Reload()
    logged = {line["step"]: line["loss"] for line in read_log(tmp_path / "log.jsonl") if "loss" in line}
    assert {event.step: event.value for event in events.Scalars("loss")} == pytest.approx(logged)
    assert [event.step for event in events.Scalars("evaluation/accuracy")] == [4]


def test_tensorboard_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'cast-kernels\[train\]'"):
        train(tmp_path, {"tensorboard": True})


def broken_after(config, step):
    """Batches as always, until the first part of a step cannot be loaded."""

    def training_batches(first):
        for number, batch in enumerate(toy_batches(config)(first), first * config.accumulate):
            if number == step * config.accumulate + 1:  # the second part: the first was fetched, not computed
                raise ValueError("cannot read 7.png")
            yield batch

    return training_batches


def test_an_image_that_cannot_be_read_costs_no_step(tmp_path, uninterrupted):
    config = toy_config(save_every=0, accumulate=2)
    with pytest.raises(TrainingError, match=r"cannot read 7\.png; the checkpoint of step 6 is in .*skip_broken"):
        run_toy(tmp_path, config, ToyTask(config), batches=broken_after(config, 6), held_out=toy_held_out(config))
    assert checkpoint(tmp_path)["/state/step"] == 6
    train(tmp_path, {"save_every": 0, "accumulate": 2})
    train(tmp_path / "whole", {"save_every": 0, "accumulate": 2})
    assert_equal(checkpoint(tmp_path), checkpoint(tmp_path / "whole"))


def test_an_image_that_cannot_be_read_at_once(tmp_path):
    config = toy_config(accumulate=2)
    with pytest.raises(TrainingError, match=r"cannot read 7\.png; no checkpoint was written yet"):
        run_toy(tmp_path, config, ToyTask(config), batches=broken_after(config, 0))


def test_an_evaluation_that_was_not_saved_is_not_logged_twice(tmp_path):
    lines = [{"step": 4, "loss": 1.0}, {"step": 4, "evaluation": {"top1": 0.5}}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    RunLog(tmp_path, 4, 4).close()
    assert read_log(tmp_path / "log.jsonl") == lines
    RunLog(tmp_path, 4, 0).close()
    assert read_log(tmp_path / "log.jsonl") == lines[:1]


def test_the_config_lies_beside_the_run_and_is_not_overwritten_by_a_refused_one(tmp_path):
    train(tmp_path, {"max_steps": 1})
    before = (tmp_path / "config.json").read_text()
    assert json.loads(before)["max_steps"] == 1
    with pytest.raises(ValueError, match="max_steps"):
        train(tmp_path, {"max_steps": 2})
    assert (tmp_path / "config.json").read_text() == before


def test_lists_and_tuples_are_the_same_setting(tmp_path):
    train(tmp_path, {"max_steps": 1, "model_overrides": {"num_clusters": [4, 2]}})
    train(tmp_path, {"max_steps": 1, "model_overrides": {"num_clusters": (4, 2)}})
