import copy

import pytest
import torch
import train_worker
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cast.train import distributed
from cast.train.sync_batchnorm import SyncBatchNorm, convert_sync_batchnorm

CPU = torch.device("cpu")
CASES = {
    "rows": (nn.BatchNorm1d(3), (8, 3)),
    "tokens": (nn.BatchNorm1d(3, eps=1e-3, momentum=0.3), (8, 3, 5)),
    "images": (nn.BatchNorm2d(3), (8, 3, 4, 5)),
    "not affine": (nn.BatchNorm1d(3, affine=False), (8, 3)),
    "plain mean": (nn.BatchNorm1d(3, momentum=None), (8, 3)),
    "no statistics": (nn.BatchNorm1d(3, track_running_stats=False), (8, 3)),
    "one row here, seven there": (nn.BatchNorm1d(3), (8, 3)),
}


def make(name):
    norm, shape = copy.deepcopy(CASES[name][0]).double(), CASES[name][1]
    random = torch.Generator().manual_seed(0)
    for tensor in [*norm.parameters(), *norm.buffers()]:
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5, generator=random)
    # far from zero, where a variance in one pass would cancel
    x = [100 + torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(3)]
    y = [torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(3)]
    return norm, x, y


def apply(norm, x, gradients):
    """Two batches before one backward pass, and a third without gradients, as a momentum encoder has it."""
    x = [part.clone().requires_grad_() for part in x]
    y = [norm(x[0]), norm(x[1])]
    with torch.no_grad():
        y.append(norm(x[2]))
    torch.autograd.backward(y[:2], gradients[:2])
    results = {"y": torch.cat(y), "x": torch.cat([x[0].grad, x[1].grad])}
    return results, {name: p.grad for name, p in norm.named_parameters()}, norm.state_dict()


def share(name, x, rank):
    first, second = (x[:1], x[1:]) if name == "one row here, seven there" else (x[:4], x[4:])
    return second if rank else first


def worker(folder):
    with distributed.setup("cpu", timeout=60) as processes:
        rank, results = processes.rank, {}
        for name in CASES:
            norm, x, y = make(name)
            norm = convert_sync_batchnorm(norm, CPU)
            results[name] = apply(
                norm, [share(name, part, rank) for part in x], [share(name, part, rank) for part in y]
            )
        lone = SyncBatchNorm(2)
        half = lone(torch.full((1, 2), float(rank), dtype=torch.bfloat16))  # one row each is enough
        results["half"] = (half.dtype, half.float())
        results["eval"] = lone.eval()(torch.ones(3 + rank, 2)).shape  # unequal, and nothing is exchanged
        try:
            SyncBatchNorm(2)(torch.ones(1 - rank, 2))
        except ValueError as error:
            results["error"] = str(error)
        nested = nn.Sequential(nn.Linear(2, 2), nn.ModuleDict({"a": nn.BatchNorm2d(2).eval(), "b": nn.BatchNorm1d(2)}))
        names, weight = list(nested.state_dict()), nested[1]["a"].weight
        assert convert_sync_batchnorm(nested, CPU) is nested
        assert isinstance(nested[1]["a"], SyncBatchNorm)
        assert nested[1]["a"].weight is weight
        assert not nested[1]["a"].training
        assert nested[1]["b"].training
        assert list(nested.state_dict()) == names
        assert convert_sync_batchnorm(nested, CPU)[1]["b"] is nested[1]["b"]
        torch.save(results, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sync")
    assert train_worker.finish(train_worker.start(worker, folder, world=2)) == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_equals_a_batch_norm_of_the_batches_behind_each_other(results, name):
    norm, x, y = make(name)
    tensors, gradients, state = apply(norm, x, y)
    close = {"rtol": 1e-11, "atol": 1e-11}
    for rank in range(2):
        found, _, found_state = results[rank][name]
        for key, count in (("y", 3), ("x", 2)):
            expected = torch.cat([share(name, part, rank) for part in tensors[key].chunk(count)])
            torch.testing.assert_close(found[key], expected, **close)
        torch.testing.assert_close(found_state, state, **close)
    for key, expected in gradients.items():
        torch.testing.assert_close(results[0][name][1][key] + results[1][name][1][key], expected, **close)


def test_what_is_not_a_plain_case(results):
    for rank in range(2):
        assert results[rank]["half"][0] == torch.bfloat16
        torch.testing.assert_close(results[rank]["half"][1], torch.full((1, 2), 2.0 * rank - 1), rtol=1e-2, atol=0)
        assert results[rank]["eval"] == (3 + rank, 2)
        assert "more than 1 value per channel" in results[rank]["error"]


def test_a_process_alone_keeps_its_batch_norms():
    module = nn.Sequential(nn.BatchNorm1d(2))
    assert type(convert_sync_batchnorm(module, CPU)[0]) is nn.BatchNorm1d


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("momentum", [0.2, None])
def test_alone_it_is_a_batch_norm(training, tracked, momentum):
    one = nn.BatchNorm1d(3, momentum=momentum, track_running_stats=tracked).train(training)
    other = SyncBatchNorm(3, momentum=momentum, track_running_stats=tracked).train(training)
    for x in torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)):
        assert torch.equal(one(x), other(x))
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert isinstance(other, _BatchNorm)
    with pytest.raises(ValueError, match=r"\[N, C, ...\]"):
        other(torch.ones(3))
