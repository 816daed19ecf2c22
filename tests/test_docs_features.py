"""What docs/features.md shows, runs, with the shapes it says."""

import re

import pytest
import torch
from conftest import ROOT

PAGE = (ROOT / "docs" / "features.md").read_text()


def test_the_page_runs():
    torch.manual_seed(0)
    names, checked = {}, 0
    for tag, code in re.findall(r"```python( timm)?\n(.*?)```", PAGE, re.DOTALL):
        if tag:
            pytest.importorskip("timm.optim", exc_type=Exception)
        with torch.set_grad_enabled(bool(tag)):
            exec(compile(code, "features.md", "exec"), names)
        for targets, comment in re.findall(r"^([\w, ]+) = .*  # (\[.*)$", code, re.MULTILINE):
            shapes = [list(map(int, s.split(", "))) for s in re.findall(r"\[([\d, ]+)\]", comment)]
            for name, shape in zip(targets.split(", "), shapes, strict=True):
                found = names[name]
                assert (list(found.shape) if isinstance(found, torch.Tensor) else found) == shape, name
                checked += 1
    assert checked == 9
    assert isinstance(names["optimizer"], torch.optim.Optimizer)
