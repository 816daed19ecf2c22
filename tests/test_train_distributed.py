import os

import pytest
import torch
import train_worker
from safetensors.torch import load_file
from task_helpers import POOLED, make_config, without_dropout
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from train_worker import assert_equal, checkpoint, finish, log_of, start, train, train_and_report

from cast.train import distributed
from cast.train.batch import Batch
from cast.train.errors import TrainingError
from cast.train.loop import run
from cast.train.tasks import make_task

CONTRASTIVE = {"contrastive": True}
SYNCED = {"sync_batchnorm": True}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def train_by_two(folder, changes=None, options=None):
    codes = finish(start(train_and_report, folder, changes, options, world=2))
    errors = [path.read_text() for path in sorted(folder.glob("error-*.txt"))]
    assert codes == [0, 0], errors


# Functions
def worker_of_functions(folder):
    with distributed.setup("cpu", timeout=60) as processes:
        rank = processes.rank
        assert (rank, processes.world_size) == (distributed.get_rank(), distributed.get_world_size())
        assert distributed.is_main() == (rank == 0)
        gathered = {d: distributed.all_gather(torch.tensor([[rank, 2 * rank]]).to(d)) for d in DTYPES}
        x = torch.ones(3, 2).T * (rank + 1)  # not contiguous
        gathered["transposed"] = distributed.all_gather(x.requires_grad_())
        names = ["b", "a"] if rank else ["a", "b"]
        values = {"a": torch.tensor(1.5 + rank), "b": torch.tensor([rank, 2])}
        sums = distributed.sum_over_processes({name: values[name] for name in names})
        module = nn.BatchNorm1d(2).requires_grad_(False)
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.fill_(rank)
        distributed.broadcast_tensors(module, parameters=False)
        buffers = [float(x.sum()) for x in [*module.parameters(), *module.buffers()]]
        distributed.broadcast_tensors(module, parameters=True)
        everything = [float(x.sum()) for x in [*module.parameters(), *module.buffers()]]
        acts = []
        distributed.on_main(lambda: acts.append(1))
        try:
            distributed.on_main(lambda: (_ for _ in ()).throw(TrainingError("the disk is full")))
        except TrainingError as error:
            acts.append(str(error))
        report = (gathered, sums, buffers, everything, acts, distributed.broadcast({"rank": rank}))
        torch.save(report, folder / f"{rank}.pt")


DTYPES = (torch.int64, torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.bool)


def test_functions(tmp_path):
    assert finish(start(worker_of_functions, tmp_path, world=2)) == [0, 0]
    for rank in range(2):
        gathered, sums, buffers, everything, acts, value = torch.load(tmp_path / f"{rank}.pt")
        for dtype in DTYPES:
            assert torch.equal(gathered[dtype], torch.tensor([[0, 0], [1, 2]]).to(dtype))
        assert torch.equal(gathered["transposed"], torch.tensor([1.0, 1, 2, 2])[:, None].expand(4, 3))
        assert not gathered["transposed"].requires_grad
        assert sums["a"] == 4.0
        assert sums["b"].tolist() == [1.0, 4.0]
        assert sums["a"].dtype == torch.float64
        assert buffers == [2.0 * rank, 2.0 * rank, 0, 0, 0]
        assert everything == [0] * 5
        assert acts == [1, "the disk is full"][rank:]
        assert value == {"rank": 0}


def test_functions_alone():
    x = torch.ones(2, requires_grad=True)
    assert torch.equal(distributed.all_gather(x), x)
    assert not distributed.all_gather(x).requires_grad
    assert distributed.sum_over_processes({"a": x})["a"].dtype == torch.float64
    assert distributed.broadcast(3) == 3
    assert (distributed.get_rank(), distributed.get_world_size(), distributed.is_main()) == (0, 1, True)


def test_setup(monkeypatch):
    with distributed.setup("cpu") as processes:
        assert processes == distributed.Processes(0, 1, 0, torch.device("cpu"))
        assert not torch.distributed.is_initialized()
    with pytest.raises(ValueError, match='expected device "auto"'), distributed.setup("gpu"):
        pass
    if not torch.cuda.is_available():
        with distributed.setup("auto") as processes:
            assert processes.device == torch.device("cpu")
        with pytest.raises(ValueError, match="PyTorch sees no GPU"), distributed.setup("cuda"):
            pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="expected the CPU or CUDA for several processes"), distributed.setup("meta"):
        pass
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ValueError, match="expected a number in the variable RANK"), distributed.setup("cpu"):
        pass


def test_no_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed._find_device("auto", 1, 4) == torch.device("cuda:1")
    assert distributed._find_device("cuda:1", 0, 1) == torch.device("cuda:1")
    with pytest.raises(ValueError, match="local rank 2, but there are 2"):
        distributed._find_device("cuda", 2, 4)


# Training
@pytest.mark.parametrize(
    ("changes", "options"),
    [
        (SYNCED, CONTRASTIVE),
        ({"accumulate": 2, "clip_grad": 0.5}, {"norm": False}),
        ({"accumulate": 2, "clip_grad": 0.5, "fsdp": True, "max_steps": 2}, {"norm": False}),
    ],
    ids=["ddp", "ddp in parts", "fsdp in parts"],
)
def test_two_processes_equal_one(tmp_path, changes, options):
    """At the same batch: weights, moments, figures of all steps, in float64."""
    train(tmp_path / "one", changes | {"accumulate": 1}, **options)
    train_by_two(tmp_path, changes, options)
    one, two = checkpoint(tmp_path / "one"), checkpoint(tmp_path)
    assert_equal(two, one, 1e-9)
    moved = torch.load(tmp_path / "model" / "net.pt")
    assert_equal(moved, {name: one[f"/task/net.{name}"] for name in moved}, 1e-9)
    for a, b in zip(log_of(tmp_path / "one"), log_of(tmp_path), strict=True):
        assert_equal(b, a, 1e-9)


@pytest.mark.parametrize("kind", ["moco", "supervised"])
def test_two_processes_train_pieces_of_cast_as_one_does(tmp_path, kind):
    """The tasks themselves with FSDP (with DDP: test_train_real_tasks.py), momentum encoder and moving average too."""
    changes = {"fsdp": True, "sync_batchnorm": True, "max_steps": 2}
    train_cast(tmp_path / "one", kind, changes)
    assert finish(start(train_cast, tmp_path, kind, changes, world=2)) == [0, 0]
    one, two = checkpoint(tmp_path / "one"), checkpoint(tmp_path)
    assert log_of(tmp_path)[0] == log_of(tmp_path / "one")[0]  # the losses of all steps
    for values in (one, two):  # in evaluation, MoCo compares within a process
        values.pop("/state/metrics/loss"), values.pop("/state/best")
    assert_equal(two, one, 1e-6)
    own, other = (load_file(path / "model" / "model.safetensors") for path in (tmp_path / "one", tmp_path))
    assert_equal(other, own, 1e-6)


def train_cast(folder, kind, changes):
    off = {"mixup": 0.0, "cutmix": 0.0, "erasing": 0.0, "ema": 0.9} if kind == "supervised" else {}
    small = {"model_overrides": POOLED | {"depths": [1, 1], "num_clusters": [8, 4]}}
    config = make_config(kind, precision="float64", lr=1e-2, warmup_epochs=0, log_every=2, **small, **off, **changes)
    random = torch.Generator().manual_seed(0)
    with distributed.setup("cpu", timeout=60) as processes:
        task = without_dropout(make_task(config, 3))
        images = torch.rand((8, task.views, 3, 5, 5), generator=random).flatten(0, 1)
        images = nn.functional.interpolate(images, (64, 64), mode="bilinear").mul(255).to(torch.uint8)
        images = images.unflatten(0, (8, task.views))
        mine = slice(processes.rank, None, processes.world_size)
        batch = Batch(images[mine], (torch.arange(8) % 3)[mine])
        run(config, task, lambda step: iter([batch] * 2), lambda: [batch], 2, folder, processes, progress=False)


def test_without_synchronised_norms_they_differ(tmp_path):
    """The comparison above can fail."""
    train(tmp_path / "one", {"max_steps": 1})
    train_by_two(tmp_path, {"max_steps": 1})
    with pytest.raises(AssertionError, match="/state/loss"):
        assert_equal(checkpoint(tmp_path), checkpoint(tmp_path / "one"), 1e-9)


@pytest.mark.parametrize("fsdp", [False, True])
def test_another_number_of_processes_goes_on(tmp_path, fsdp):
    changes = SYNCED | {"fsdp": fsdp}
    train(tmp_path / "one", changes, **CONTRASTIVE)
    first = CONTRASTIVE | {"signals": ((1, 5),)}  # to one process only; both end, at the same step
    assert finish(start(train_and_report, tmp_path, changes, first, world=2)) == [143, 143]
    assert checkpoint(tmp_path)["/state/step"] == 5
    train(tmp_path, changes, **CONTRASTIVE)
    assert_equal(checkpoint(tmp_path), checkpoint(tmp_path / "one"), 1e-9)


def test_a_loss_that_is_not_finite_ends_all(tmp_path):
    assert finish(start(train_and_report, tmp_path, {}, {"broken_step": 5}, world=2)) == [1, 1]
    for rank in range(2):
        message = (tmp_path / f"error-{rank}.txt").read_text()
        assert "TrainingError: the loss is not finite at step 6; the checkpoint of step 4 is in" in message
    assert checkpoint(tmp_path)["/state/step"] == 4


def test_batch_that_cannot_be_divided(tmp_path):
    assert finish(start(train_and_report, tmp_path, {"batch": 6, "accumulate": 2}, world=2)) == [1, 1]
    assert "multiple of accumulate times the number of processes, 4, got 6" in (tmp_path / "error-1.txt").read_text()


def test_torchrun_ends_the_others_when_one_fails(tmp_path):
    """By what `torchrun` runs; one process fails where the other waits for it."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="forkserver",
    )
    with pytest.raises(ChildFailedError):
        elastic_launch(config, train_broken)(tmp_path)
    assert "broken.jpg cannot be read" in (tmp_path / "error-1.txt").read_text()
    assert (tmp_path / "log.jsonl").read_text() == ""  # the first line is that of step 3


def test_a_process_that_is_left_says_so(tmp_path):
    assert finish(start(train_broken, tmp_path, world=2)) == [1, 1]
    assert "broken.jpg cannot be read" in (tmp_path / "error-1.txt").read_text()
    assert "TrainingError: another process has ended" in (tmp_path / "error-0.txt").read_text()


def train_broken(folder):
    def fail(task):
        if distributed.get_rank() == 1:
            raise ValueError("the image broken.jpg cannot be read")

    torch.set_num_threads(1)
    train_worker.ToyTask.after_step = fail
    train_and_report(folder)


def test_a_folder_that_processes_do_not_share(tmp_path):
    train(tmp_path / "0", {"max_steps": 4})
    codes = finish(start(train_apart, tmp_path, world=2))
    assert codes == [1, 1]
    assert "expected" in (tmp_path / "1" / "error-1.txt").read_text()
    assert "to be the same for all processes" in (tmp_path / "0" / "error-0.txt").read_text()


def train_apart(folder):
    own = folder / os.environ["RANK"]
    own.mkdir(exist_ok=True)
    train_and_report(own, {"max_steps": 4})
