"""What tests of the training loop share: a toy task, its data, and processes to train it in, which may be killed."""

import copy
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from processes import CONTEXT
from torch import nn

import cast.train.checkpoints
from cast._terminal import exit_code
from cast.train import distributed
from cast.train.batch import AUGMENT, Batch, numpy_generator
from cast.train.config import SupervisedConfig
from cast.train.logs import TIMES, RunLog, read_log
from cast.train.loop import run
from cast.train.task import Task

STEPS_PER_EPOCH = 4
CLASSES = 3
DEFAULTS = {
    "batch": 8,
    "epochs": 3,
    "warmup_epochs": 0,
    "precision": "float64",
    "log_every": 3,
    "save_every": 3,
    "device": "cpu",
}


def toy_config(**changes):
    return SupervisedConfig(**(DEFAULTS | changes))


class ToyTask(Task):
    """A small classifier. With ``contrastive``, images are to be told from each other by a momentum encoder too."""

    best_metric = "accuracy"
    best_is_highest = True

    def __init__(
        self, config, contrastive=False, norm=True, dropout=0.0, sleep=0.0, broken_step=None, signals=(), beacon=""
    ):
        super().__init__(config, CLASSES)
        torch.manual_seed(config.seed)
        norms = (nn.BatchNorm2d(4), nn.BatchNorm1d(6)) if norm else (nn.Identity(), nn.Identity())
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False), norms[0], nn.ReLU(), nn.Flatten(), nn.Linear(64, 6), norms[1], nn.ReLU()
        )
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(6, CLASSES)
        self.momentum = copy.deepcopy(self.net).requires_grad_(False)
        self.contrastive, self.sleep, self.broken_step, self.signals = contrastive, sleep, broken_step, signals
        self.steps, self.beacon = 0, beacon

    def prepare(self, batch, generator):
        noise = torch.rand(batch.images.shape, generator=generator)
        return batch._replace(images=batch.images.float() / 255 + (noise / 10 if self.drop.p else 0))

    def __call__(self, batch, epoch, first_part=True):  # before the call, as FSDP wants it
        if first_part and self.contrastive:
            with torch.no_grad():
                for own, other in zip(self.momentum.parameters(), self.net.parameters(), strict=True):
                    own.mul_(0.9).add_(other, alpha=0.1)
        return super().__call__(batch, epoch, first_part)

    def forward(self, batch, epoch, first_part=True):
        first, second = batch.images.unbind(1)
        loss = F.cross_entropy(self.head(self.drop(self.net(first))), batch.targets)
        if self.contrastive:
            with torch.no_grad():
                keys = distributed.all_gather(self.momentum(second))
            labels = torch.arange(len(first)) + distributed.get_rank() * len(first)
            loss = loss + F.cross_entropy(self.net(second) @ keys.T, labels)
        return loss

    def make_optimizer(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad])

    def learning_rate(self, epoch):
        return 1e-2 / (1 + epoch)

    def after_step(self):
        self.steps += 1
        if self.beacon:
            Path(self.beacon).write_text(f"{os.getpid()} {self.steps}")
        time.sleep(self.sleep)
        if (distributed.get_rank(), self.steps) in self.signals:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.steps == self.broken_step:
            with torch.no_grad():
                self.head.bias.fill_(float("nan"))

    def evaluate(self, batches):
        sums = {"accuracy": torch.zeros(()), "count": torch.zeros(())}
        for batch in batches:
            logits = self.head(self.net(batch.images[:, 0].to(self.head.weight.dtype) / 255))
            sums["accuracy"] += (logits.argmax(1) == batch.targets).sum()
            sums["count"] += len(batch.targets)
        return sums

    def modules_to_shard(self):
        return [self.net[0], self.net[4], self.momentum[0], self.momentum[4]]

    def save_model(self, folder):
        folder.mkdir(exist_ok=True)
        torch.save({name: x.clone() for name, x in self.net.state_dict().items()}, folder / "net.pt")


def toy_batches(config, rank=0, world=1):
    def training_batches(step):
        while True:
            images, targets = _images(config, step, config.batch)
            images, targets = images[rank::world], targets[rank::world]
            yield from map(Batch, images.chunk(config.accumulate), targets.chunk(config.accumulate))
            step += 1

    return training_batches


def toy_held_out(config, rank=0, world=1):
    images, targets = _images(config, 10**6, 7)
    return lambda: [Batch(images[rank::world, :1], targets[rank::world])]


def _images(config, number, count):
    random = numpy_generator(AUGMENT, config.seed, number)
    images = torch.from_numpy(random.integers(0, 256, (count, 2, 3, 6, 6)).astype("uint8"))
    return images, torch.from_numpy(random.integers(0, CLASSES, count))


def train(folder, changes=None, **options):
    """Train the toy in this process, or in its share of several."""
    config = toy_config(**(changes or {}))
    with distributed.setup(config.device, timeout=60) as processes:
        place = (processes.rank, processes.world_size)
        batches, held_out = toy_batches(config, *place), toy_held_out(config, *place)
        task = ToyTask(config, **options)
        return run(config, task, batches, held_out, STEPS_PER_EPOCH, Path(folder), processes, progress=False)


def checkpoint(folder):
    """The last checkpoint of a run, flat, without its settings."""
    content = torch.load(Path(folder) / "last.pt", weights_only=True)
    return {name: x for name, x in flatten(content) if not name.startswith("/config")}


def log_of(folder):
    """The log of a run, without times."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_log(Path(folder) / "log.jsonl")]


def flatten(value, name=""):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        yield name, value
    for key, item in items or ():
        yield from flatten(item, f"{name}/{key}")


def assert_equal(found, expected, tolerance=0.0):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        if isinstance(x, torch.Tensor):
            torch.testing.assert_close(
                found[name], x, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )
        else:
            assert found[name] == (pytest.approx(x, rel=1e-4) if tolerance and isinstance(x, float) else x), name


# Processes
def start(function, *arguments, world=1):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    jobs = [CONTEXT.Process(target=_enter, args=(function, arguments, r, world, port)) for r in range(world)]
    for job in jobs:
        job.start()
    return jobs


def finish(jobs, timeout=300):
    """Wait for processes and return how they ended."""
    for job in jobs:
        job.join(timeout)
        if job.is_alive():
            job.kill()
            job.join()
            raise AssertionError("a process hangs")
    return [job.exitcode for job in jobs]


def _enter(function, arguments, rank, world, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    function(*arguments)


def train_and_report(folder, changes=None, options=None, kill=None):
    """`train`; what is raised goes to a file for each rank, and to the exit code."""
    rank = os.environ["RANK"]
    if kill is not None:
        _kill_at(*kill)
    try:
        train(folder, changes, **(options or {}))
    except KeyboardInterrupt as stop:
        os._exit(exit_code(stop))
    except Exception as error:
        Path(folder, f"error-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        os._exit(1)


def _kill_at(place, count):
    """Let this process be killed by SIGKILL at the ``count``-th call of something; the first half of it is done."""
    owner, name, first_half = {
        "checkpoint": (cast.train.checkpoints._Watched, "write", lambda f, self, data: f(self, data[: len(data) // 2])),
        "sync": (os, "fsync", lambda f, *_: None),
        "rename": (os, "replace", lambda f, *_: None),
        "renamed": (os, "replace", lambda f, *names: f(*names)),
        "link": (os, "link", lambda f, *names: f(*names)),
        "log": (RunLog, "write", lambda f, self, record: os.write(self.file.fileno(), b'{"step": 1, "ep')),
        "model": (ToyTask, "save_model", lambda f, self, folder: folder.mkdir()),
    }[place]
    original, calls = getattr(owner, name), 0

    def counted(*arguments):
        nonlocal calls
        calls += 1
        if calls == count:
            first_half(original, *arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    setattr(owner, name, counted)
