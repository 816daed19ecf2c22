import subprocess
import sys

import pytest

import cast_kernels
from cast_kernels import doctor
from cast_kernels.cli import main

OPS = {
    "seeds",
    "rgb_to_lab",
    "segment_mean",
    "farthest_point_sample",
    "assign_pool",
    "unpool",
    "unpool_concat",
    "unpool_linear",
    "superpixel_metrics",
}
OUTPUTS = {"segment_mean": 2, "assign_pool": 3}  # of ops that return more than one tensor


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


@pytest.mark.parametrize(("op", "output"), [(op, i) for op in sorted(OPS) for i in range(OUTPUTS.get(op, 1))])
def test_a_wrong_output_is_found(op, output, monkeypatch, capsys):
    right = getattr(doctor, op)

    def wrong(*args, **options):
        result = right(*args, **options)
        if isinstance(result, dict):
            return dict.fromkeys(result, 0.5)
        outputs = list(result) if isinstance(result, tuple) else [result]
        outputs[output] = outputs[output] + 1
        return tuple(outputs) if isinstance(result, tuple) else outputs[0]

    monkeypatch.setattr(doctor, op, wrong)
    assert main(["doctor"]) == 1
    assert f"1 of {len(OPS)} ops are wrong" in capsys.readouterr().out


@pytest.mark.parametrize("op", ["segment_mean", "assign_pool", "unpool"])
def test_a_wrong_gradient_is_found(op, monkeypatch, capsys):
    right = getattr(doctor, op)

    def wrong(x, *args, **options):
        return right(2 * x - x.detach(), *args, **options)  # the same values, twice the gradient

    monkeypatch.setattr(doctor, op, wrong)
    assert main(["doctor"]) == 1
    assert "gradient" in capsys.readouterr().out


def test_a_wrong_treatment_of_duplicates_is_found(monkeypatch, capsys):
    right = doctor.farthest_point_sample
    monkeypatch.setattr(doctor, "farthest_point_sample", lambda x, k, mask=None, **options: right(x, k, mask=mask))
    assert main(["doctor"]) == 1
    assert "equal and masked tokens" in capsys.readouterr().out


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
    functions = set(cast_kernels.__all__) - {"__version__", "seeds_count", "register_flop_formulas"}  # no ops
    assert functions == OPS == set(doctor._OPS)
