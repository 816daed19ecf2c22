import errno
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
import train_worker
from train_worker import assert_equal, checkpoint, finish, log_of, start, toy_config, train, train_and_report

from cast.train.checkpoints import LAST, _Watched, check_same_run, read_checkpoint
from cast.train.errors import TrainingError
from cast.train.logs import RunLog

# float32, with everything that draws random numbers; a step, a part and an epoch of different lengths
CHANGES = {"precision": "float32", "accumulate": 2, "eval_every": 2, "clip_grad": 1.0}
OPTIONS = {"dropout": 0.5}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(folder, CHANGES, **OPTIONS)
    return folder


def assert_same_end(folder, expected):
    """Bitwise, and with nothing left behind."""
    assert_equal(checkpoint(folder), checkpoint(expected))
    assert log_of(folder) == log_of(expected)
    assert sorted(os.listdir(folder)) == sorted(os.listdir(expected))
    for name in ("best.pt", "model/net.pt"):
        one, other = (torch.load(path / name, weights_only=True) for path in (folder, expected))
        assert_equal(dict(train_worker.flatten(one)), dict(train_worker.flatten(other)))


# Killed
@pytest.mark.parametrize(
    ("place", "count"),
    [
        ("checkpoint", 3),
        ("checkpoint", 100),
        ("sync", 1),
        ("sync", 4),
        ("rename", 3),
        ("renamed", 4),
        ("link", 1),
        ("log", 1),
        ("log", 4),
        ("model", 1),
    ],
)
def test_killed_where_it_hurts(tmp_path, uninterrupted, place, count):
    """By SIGKILL, half-way through something; started again, it ends as if nothing had happened."""
    assert finish(start(train_and_report, tmp_path, CHANGES, OPTIONS, (place, count))) == [-signal.SIGKILL]
    if (tmp_path / LAST).exists():
        read_checkpoint(tmp_path / LAST)
    train(tmp_path, CHANGES, **OPTIONS)
    assert_same_end(tmp_path, uninterrupted)


def test_killed_at_any_moment(tmp_path, uninterrupted):
    moments, beacon = random.Random(0), tmp_path / "beacon"
    options = OPTIONS | {"sleep": 0.005, "beacon": os.fspath(beacon)}
    for _ in range(4):
        beacon.write_text("")
        jobs = start(train_and_report, tmp_path, CHANGES, options)
        while not beacon.read_text() and jobs[0].is_alive():
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.06))
        jobs[0].kill()
        finish(jobs)
    train(tmp_path, CHANGES, **OPTIONS)
    beacon.unlink()
    assert_same_end(tmp_path, uninterrupted)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_the_state_of_half_precision_goes_on(tmp_path, precision):
    changes = {"precision": precision}
    train(tmp_path / "one", changes)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "two", changes, signals=((0, 5),))
    train(tmp_path / "two", changes)
    found = checkpoint(tmp_path / "one")
    assert_equal(checkpoint(tmp_path / "two"), found)
    assert found.get("/scaler/_growth_tracker") == (12 if precision == "float16" else None)


# A disk that is full
class Full:
    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self):
        pass


def test_full_disk(tmp_path, uninterrupted, monkeypatch):
    write, files = _Watched.write, []

    def until_full(self, data):
        if self not in files:
            files.append(self)
        if len(files) == 2 and self.file.tell() > 1000:
            self.file = Full()
        return write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(_Watched, "write", until_full)
        reason = rf"cannot write {tmp_path}/last\.pt: No space left on device \([\d,]+ MB are free there\)\. "
        with pytest.raises(TrainingError, match=reason + "the checkpoint of step 3 is in"):
            train(tmp_path, CHANGES, **OPTIONS)
    assert read_checkpoint(tmp_path / LAST)["state"]["step"] == 3
    assert not list(tmp_path.glob(".*.tmp"))
    train(tmp_path, CHANGES, **OPTIONS)
    assert_same_end(tmp_path, uninterrupted)


def test_a_file_that_the_system_cuts_off(tmp_path, uninterrupted):
    """As a quota would: not the first part of the checkpoint is refused, but one in the middle of it."""
    size = (uninterrupted / LAST).stat().st_size
    assert finish(start(train_with_limit, tmp_path, size // 2)) == [1]
    assert "last.pt: File too large" in (tmp_path / "error-0.txt").read_text()
    (tmp_path / "error-0.txt").unlink()
    assert sorted(os.listdir(tmp_path)) == [".lock", "config.json", "log.jsonl"]
    train(tmp_path, CHANGES, **OPTIONS)
    assert_same_end(tmp_path, uninterrupted)


def train_with_limit(folder, size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    train_and_report(folder, CHANGES, OPTIONS)


def test_log_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(self, record):
        self.file.close()
        self.file = open("/dev/full", "ab")  # noqa: SIM115 - the system's own refusal
        return write(self, record)

    write = RunLog.write
    monkeypatch.setattr(RunLog, "write", refuse)
    with pytest.raises(TrainingError, match=r"cannot write .*log\.jsonl: No space left on device"):
        train(tmp_path)


# Files
def test_content(uninterrupted):
    last, best = (torch.load(uninterrupted / name, weights_only=True) for name in ("last.pt", "best.pt"))
    assert toy_config().from_dict(last["config"]) == toy_config(**CHANGES)
    assert last["state"]["step"] == 12
    assert best["state"]["evaluated"] == best["state"]["step"]
    assert best["state"]["best"] == last["state"]["best"]


@pytest.mark.parametrize(("highest", "step"), [(True, 8), (False, 4)])
def test_the_best_is_kept(tmp_path, monkeypatch, highest, step):
    figures = {4: 0.2, 8: 0.5, 12: 0.4}
    monkeypatch.setattr(train_worker.ToyTask, "best_is_highest", highest)
    monkeypatch.setattr(train_worker.ToyTask, "evaluate", lambda self, _: sums(figures[self.steps]))
    result = train(tmp_path)
    assert result["best"] == pytest.approx(figures[step])
    assert result["metrics"] == {"accuracy": pytest.approx(0.4)}
    assert read_checkpoint(tmp_path / "best.pt")["state"]["step"] == step


def sums(accuracy):
    return {"accuracy": torch.tensor(10 * accuracy), "count": torch.tensor(10)}


def test_a_figure_that_is_not_finite_is_not_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr(train_worker.ToyTask, "evaluate", lambda self, _: sums(float("nan")))
    assert train(tmp_path)["best"] is None
    assert not (tmp_path / "best.pt").exists()


def test_a_file_system_without_links(tmp_path, monkeypatch, uninterrupted):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    train(tmp_path, CHANGES, **OPTIONS)
    assert_same_end(tmp_path, uninterrupted)


def test_files_that_are_no_checkpoints(tmp_path, uninterrupted):
    path = tmp_path / LAST
    for content in (b"", b"not a checkpoint", (uninterrupted / LAST).read_bytes()[:-1000]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"last\.pt to be the checkpoint of a run, but it cannot be read"):
            train(tmp_path)
    torch.save({"model": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="another file of PyTorch's"):
        train(tmp_path)
    torch.save(read_checkpoint(uninterrupted / LAST) | {"format": 2}, path)
    with pytest.raises(ValueError, match="of format 1, got 2"):
        train(tmp_path)


def test_nothing_in_a_file_is_run(tmp_path):
    torch.save({"format": 1, "state": Path("/")}, tmp_path / LAST)
    with pytest.raises(ValueError, match="cannot be read"):
        read_checkpoint(tmp_path / LAST)


# Settings
def test_settings_that_may_not_change(uninterrupted):
    content = read_checkpoint(uninterrupted / LAST)
    other = toy_config(**CHANGES | {"lr": 1.0, "crop_scale": (0.5, 1.0)})
    with pytest.raises(
        ValueError, match=r"crop_scale \(was \(0.08, 1.0\), is \(0.5, 1.0\)\), lr \(was 0.0005, is 1.0\)"
    ):
        check_same_run(uninterrupted / LAST, content, other, 4)
    with pytest.raises(ValueError, match="with 4 steps per epoch, and now there are 5"):
        check_same_run(uninterrupted / LAST, content, toy_config(**CHANGES), 5)
    with pytest.raises(ValueError, match=r"seed \(was 0, is 1\)"):
        train(uninterrupted, CHANGES | {"seed": 1})


def test_settings_that_may_change(tmp_path, uninterrupted):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, CHANGES, **OPTIONS, signals=((0, 2),))
    free = {"data": "elsewhere", "workers": 0, "log_every": 6, "save_every": 0, "time_limit": 60.0}
    train(tmp_path, CHANGES | free, **OPTIONS)
    found, expected = checkpoint(tmp_path), checkpoint(uninterrupted)
    assert found.pop("/state/loss") == pytest.approx(log_of(tmp_path)[-2]["loss"])
    assert_equal(found, {name: x for name, x in expected.items() if name != "/state/loss"})
    assert [line["step"] for line in log_of(tmp_path) if "loss" in line] == [6, 12]
