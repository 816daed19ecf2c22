"""What bench.gpu does next, by how the steps before it ended; no step is run."""

import subprocess
import types

import pytest
import torch

from bench import gpu


@pytest.fixture
def bench_gpu(monkeypatch, tmp_path):
    """`bench_gpu(tests=1)` -> exit code, names of the commands that ran, number of groups of ops that were measured."""

    def start(*options, **codes):
        commands, groups = [], []

        def run(command, timeout, **options):
            words = {"doctor": "doctor", "gpu": "tests", "latency": "latency"} | {
                c: c for c in ("memcheck", "racecheck")
            }
            name = next(words[word] for word in command if word in words)
            commands.append(name)
            if codes.get(name) == "slow":
                raise subprocess.TimeoutExpired(command, timeout)
            return types.SimpleNamespace(returncode=codes.get(name, 0))

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(gpu, "machine", lambda: {"sm": "90"})
        monkeypatch.setattr(gpu, "RESULTS", tmp_path)
        monkeypatch.setattr(gpu.subprocess, "run", run)
        monkeypatch.setattr(gpu.shutil, "which", lambda name: name)
        monkeypatch.setattr(gpu, "run", lambda group, table: groups.append(group))
        monkeypatch.setattr("sys.argv", ["bench.gpu", *options])
        return gpu.main(), commands, len(groups)

    return start


EVERY = ["doctor", "tests", "latency", "memcheck", "racecheck"]
GROUPS = len(gpu.HEADLINES) + len(gpu.SWEEP)


def test_all_is_well(bench_gpu):
    assert bench_gpu() == (0, EVERY, GROUPS)


@pytest.mark.parametrize("step", ["doctor", "tests"])
def test_wrong_ops_are_not_measured(bench_gpu, capsys, step):
    assert bench_gpu(**{step: 1}) == (1, EVERY, 0)
    assert capsys.readouterr().out.endswith(f"failed: {step}; ops were not measured\n")


def test_other_failures_are_named_and_the_rest_goes_on(bench_gpu, capsys):
    assert bench_gpu(latency=1, racecheck=9) == (1, EVERY, GROUPS)
    assert capsys.readouterr().out.endswith("failed: cast bench latency, racecheck\n")
    assert bench_gpu(tests="slow", latency="slow") == (0, EVERY, GROUPS)
    assert "tests ran out of time" in capsys.readouterr().out


def test_measuring_alone_and_out_of_time(bench_gpu, capsys):
    assert bench_gpu("--skip-checks") == (0, ["latency"], GROUPS)
    assert bench_gpu("--seconds", "0")[2] == 0
    assert "out of time before" in capsys.readouterr().out
