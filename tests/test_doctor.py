import sys

import processes
import pytest
import torch

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
    "superpixel_summary",
    "labels_to_edges",
}
OUTPUTS = {
    "segment_mean": 2,
    "assign_pool": 3,
    "superpixel_summary": 4,
    "labels_to_edges": 2,
}  # of ops that return more than one tensor


def test_all_ops_are_right_here(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for op in OPS:
        assert f"{op} " in text
    assert "-> " in text
    assert "torch" in text
    assert "all" in text.splitlines()[-1]


def test_it_is_a_module_too(tmp_path):
    run = processes.run(processes.module, "cast_kernels", "doctor", folder=tmp_path)
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
    functions = {name for name in cast_kernels.__all__ if not isinstance(getattr(cast_kernels, name), type | str)}
    functions -= {"seeds_count", "register_flop_formulas", "references", "onnx_translations"}  # no ops
    assert functions == OPS == set(doctor._OPS)


def test_an_old_gpu_runs_the_references(monkeypatch):
    """Kernels are not even imported there, and doctor says so."""
    import cast_kernels as ops

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    backend, reason = doctor._kernel("cuda")
    assert backend == "PyTorch reference"
    assert "8.0" in reason
    assert doctor._seeds_backend("cuda")[0] == "C++ on the host"
    assert doctor._lab_backend("cuda")[0] == "PyTorch reference"
    x, index = torch.randn(2, 9, 4), torch.arange(18).view(2, 9) % 4
    for module, arguments in (
        ("assign_pool", (x, index[:, :3], x, 5.0)),
        ("farthest_point_sample", (x, 3, -1, None, "exact", "distinct")),
        ("segment_mean", (x[:, None], index[:, None], 4)),
        ("unpool", ([x, x[:, :4]], [index])),
        ("unpool_linear", ([x, x[:, :4]], [index])),
    ):
        page = sys.modules[f"{ops.__name__}.{module}"]
        found, expected = page._cuda(*arguments), page._op(*arguments)
        pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
        assert all(torch.equal(a, b) for a, b in pairs)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    assert doctor._kernel("cuda")[0].startswith("Triton")


def test_a_gpu_that_the_extension_was_not_built_for(pretend_gpu):
    pretend_gpu((9, 0), ["80-real", "90-real"])
    assert doctor._seeds_backend("cuda")[0] == doctor._lab_backend("cuda")[0] == "CUDA"
    pretend_gpu((12, 0), ["80-real", "90-real"])
    reason = "the extension was built for 80-real, 90-real, not this GPU"
    assert doctor._lab_backend("cuda") == ("PyTorch reference", reason)
    assert doctor._seeds_backend("cuda") == ("C++ on the host", f"{reason}: the images are copied to the host and back")
