"""The search for tile sizes, on functions whose minimum is known, and what it saves; --check, on a few kernels."""

import itertools
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

pytest.importorskip("triton", reason="needs triton")
from bench import tune

START = {"BLOCK_N": 64, "BLOCK_C": 32, "num_warps": 4, "num_stages": 3, "KEEP": True, "enable_fp_fusion": True}


def run(cost, start=START, seconds=60.0, **options):
    return list(tune.search(cost, start, seconds, **options))


def distance(point, goal):
    """Steps of each constant to the goal."""
    scale = {name: math.log2(value) if name.startswith("BLOCK") else value for name, value in point.items()}
    return sum(abs(scale[name] - (math.log2(v) if name.startswith("BLOCK") else v)) for name, v in goal.items())


def test_the_descent_reaches_a_minimum_and_yields_every_improvement():
    goal = {"BLOCK_N": 16, "BLOCK_C": 256, "num_warps": 8, "num_stages": 1}
    found = run(lambda point: 100 + 10 * distance(point, goal))
    assert found[0][0] == START
    assert {name: found[-1][0][name] for name in goal} == goal
    costs = [cost for _, cost in found]
    assert all(b < tune.WORTH * a for a, b in itertools.pairwise(costs))
    assert len(found) > 3


def test_constants_that_only_help_together_are_found():
    """More warps lose with this tile, and the larger tile loses with these warps."""

    def cost(point):
        together = point["BLOCK_N"] == 128 and point["num_warps"] == 8
        return 50.0 if together else 100.0 + 10 * (point["BLOCK_N"] != 64) + 10 * (point["num_warps"] != 4)

    point, least = run(cost)[-1]
    assert (point["BLOCK_N"], point["num_warps"], least) == (128, 8, 50.0)


def test_restarts_leave_a_local_minimum():
    """Three steps away, all of them uphill."""
    small = {"BLOCK_N": 64, "num_stages": 3, "num_warps": 4}
    goal = {"BLOCK_N": 8, "num_stages": 4, "num_warps": 4}
    point, least = run(lambda p: 1.0 if p == goal else 10.0 + distance(p, small), small, seconds=20)[-1]
    assert (point, least) == (goal, 1.0)


def test_what_does_not_work_is_never_taken():
    found = run(lambda point: math.inf if point["num_warps"] != 4 else 100.0 - point["num_stages"])
    assert all(point["num_warps"] == 4 for point, _ in found)
    assert found[-1][0]["num_stages"] == 5


def test_fusion_is_not_touched_and_flags_are_flipped():
    changed = {name for point in tune.neighbours(START) for name in point if point[name] != START[name]}
    assert changed == set(START) - {"enable_fp_fusion"}


def test_it_stops_in_time():
    ticks = itertools.count()
    calls = []
    run(lambda point: calls.append(point) or 100.0, seconds=25, clock=lambda: next(ticks))
    assert 5 < len(calls) <= 25


def test_what_is_known_to_be_worth_a_try_comes_first():
    calls = []
    run(lambda point: calls.append(point) or 100.0, first=({"BLOCK_C": 1},), seconds=0.2)
    assert calls[1] == START | {"BLOCK_C": 1}


def test_saving_adds_to_the_table(tmp_path):
    path = tmp_path / "tiles.json"
    path.write_text('{"80": {"other": {"N=64": {"BLOCK_N": 32}}}}')
    launch = tune._tiles.Launch("unpool", 90, "C=512", {})
    tune.save(launch, {"BLOCK_N": 8}, path)
    tune.save(launch, {"num_warps": 8}, path)
    table = json.loads(path.read_text())
    assert table["90"] == {"unpool": {"C=512": {"BLOCK_N": 8, "num_warps": 8}}}
    assert sorted(tune.tabled(path)) == [("80", "other", "N=64"), ("90", "unpool", "C=512")]


def test_indices_must_be_equal_and_values_nearly():
    assert tune.same(torch.tensor([1.0]), torch.tensor([1.005]))
    assert not tune.same(torch.tensor([1.0]), torch.tensor([1.5]))
    assert not tune.same((torch.tensor([1000]),), (torch.tensor([1001]),))


def test_check_compiles_without_a_gpu():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "bench.tune", "--check", "--arch", "90", "--only", "unpool_linear"]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("sm_90 unpool_linear") for line in lines)
    assert all("registers, 0 B spilled" in line and "<--" not in line for line in lines)


def test_check_fails_where_a_kernel_does_not_fit(monkeypatch, capsys):
    report = tune.compile_case.__globals__["Report"](255, 16, 1 << 20)
    monkeypatch.setattr(tune, "compile_case", lambda case, arch: report)
    assert tune.check([90], "unpool_linear bf16") == 1
    assert "<-- spills or does not fit" in capsys.readouterr().out
