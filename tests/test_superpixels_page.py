"""What docs/superpixels.md shows, runs, and gives the shapes that it says."""

import re

import torch
from conftest import ROOT

from cast_kernels import seeds

PAGE = (ROOT / "docs" / "superpixels.md").read_text()


def test_the_code_runs_and_says_the_truth():
    images = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {"images": images}
    shown = []
    for line in code.splitlines():
        exec(line, names)
        if line.startswith("labels"):
            shown.append(names["labels"])
    default, fast, strided, sequential = shown
    assert default.dtype == torch.int32
    assert default.shape == fast.shape == sequential.shape == (2, 224, 224)
    assert not torch.equal(default, fast)
    assert not torch.equal(default, sequential)
    assert torch.equal(strided, default[:, ::8, ::8])
    assert names["count"] == default.max() + 1
    assert torch.equal(default, seeds(images, 196, order="parallel", quality="best"))
