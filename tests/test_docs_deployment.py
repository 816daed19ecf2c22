"""What docs/deployment.md shows, runs: on a small model, and compiled by a compiler that is quick."""

import dataclasses
import functools
import re
import shlex

import torch
from conftest import ROOT
from safetensors.torch import save_file

import cast
from cast.cli import main
from cast.models.registry import CONFIGS

PAGE = (ROOT / "docs" / "deployment.md").read_text()


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = dataclasses.replace(CONFIGS["cast_mini"], embed_dim=48, depths=(1,), num_clusters=(8,), num_classes=5)
    monkeypatch.setitem(CONFIGS, "cast_mini", small)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    names = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(code, "deployment.md", "exec"), names)
    assert names["fused"].config.fused
    assert names["maps"].shape == (2, 2, 224, 224)
    assert {name for name, off in names["differences"].items() if off > 1e-5} == set()
    assert {"logits", "embedding", "parents0", "label_maps"} <= names["outputs"].keys() & names["differences"].keys()
    assert (tmp_path / "pool.onnx").is_file()

    (command,) = re.findall(r"^    (cast export .*)$", PAGE, re.MULTILINE)
    torch.manual_seed(0)
    monkeypatch.setitem(CONFIGS, "cast_small", small)
    save_file(cast.create_model("cast_small").state_dict(), "cast_small.safetensors")
    assert main([*shlex.split(command)[1:], "--size", "64", "--levels", "8"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "cast.onnx"
    assert shown[1].startswith("  logits: off by at most ")
    assert shown[-1] == "  label_maps: 0.000% differ"


def test_links_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
