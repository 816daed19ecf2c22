import subprocess
import sys

import pytest
import torch

import cast_kernels
from cast_kernels import doctor
from cast_kernels.cli import main

OPS = {"seeds", "rgb_to_lab", "segment_mean", "farthest_point_sample", "assign_pool", "unpool"}


def test_all_ops_are_right_here(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for op in OPS:
        assert f"{op} " in text
    assert "-> " in text
    assert "torch" in text
    assert "all" in text.splitlines()[-1]


def test_it_is_a_module_too():
    run = subprocess.run([sys.executable, "-m", "cast_kernels", "doctor"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("op", sorted(OPS))
def test_a_wrong_op_is_found(op, monkeypatch, capsys):
    right = getattr(doctor, op)

    def wrong(*args, **options):
        result = right(*args, **options)
        first = result[0] if isinstance(result, tuple) else result
        first[..., -1] = first[..., -1].flip(0) + 1 if first.dtype != torch.int64 else 0
        return result

    monkeypatch.setattr(doctor, op, wrong)
    assert main(["doctor"]) == 1
    assert "1 of 6 ops are wrong" in capsys.readouterr().out


def test_an_op_that_raises_is_found(monkeypatch, capsys):
    def broken(*args, **options):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(doctor, "unpool", broken)
    assert main(["doctor"]) == 1
    assert "no kernel image" in capsys.readouterr().out


def test_a_missing_extension_is_found(monkeypatch, capsys):
    def missing():
        raise ImportError("not built: run pip install")

    monkeypatch.setattr(doctor._ext, "load", missing)
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "seeds                  cpu   -> missing" in text
    assert "not built: run pip install" in text


def test_every_public_op_is_examined():
    functions = set(cast_kernels.__all__) - {"__version__"}
    derived = {"seeds_count", "unpool_concat", "superpixel_metrics"}  # counts, an op under another name, plain numpy
    assert functions - derived == OPS == set(doctor._OPS)
