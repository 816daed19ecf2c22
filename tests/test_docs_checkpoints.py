"""What docs/checkpoints.md shows, runs, on files that are made here."""

import re
import shlex
import shutil

import pytest
import torch
from conftest import ROOT
from official_files import deit_file, moco_file

import cast
from cast.cli import main
from cast.models.official import to_official

PAGE = (ROOT / "docs" / "checkpoints.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that the page names."""
    folder = tmp_path_factory.mktemp("page")
    torch.manual_seed(0)
    for name, wrap, path in (
        ("cast_small", moco_file, "snapshots/moco/imagenet1k/cast_small/checkpoint_0099.pth.tar"),
        ("cast_deit_small", deit_file, "snapshots/deit/imagenet1k/cast_small/best_checkpoint.pth"),
    ):
        (folder / path).parent.mkdir(parents=True)
        torch.save(wrap(to_official(cast.create_model(name))), folder / path)
    shutil.copy(ROOT / "cast" / "assets" / "demo.jpg", folder / "photo.jpg")
    return folder


def test_the_page_runs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    names = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(code, "checkpoints.md", "exec"), names)
        if "print(report)" in code:
            (shown,) = re.findall(r"^    (cast_small from .*\n(?:      .*\n)+)", PAGE, re.MULTILINE)
            shown = [line.strip() for line in shown.splitlines()]
            printed = [line.strip() for line in capsys.readouterr().out.splitlines()]
            printed[0] = re.sub(r"from .*/", "from .../", printed[0])
            assert printed == shown
            assert type(names["model"]) is cast.Cast
    for name in re.findall(r"^(\w+) = .*# True$", PAGE, re.MULTILINE):
        assert names[name] is True, name
    assert names["coarse"].config.num_clusters == (32, 16, 8, 4)
    assert names["model"].config.compat == "published"
    file = torch.load("snapshots/moco/imagenet1k/cast_small/checkpoint_0099.pth.tar", weights_only=True)
    saved = file["state_dict"]["module.base_encoder.pool2.pool_block.fc1.1.weight"]
    assert torch.equal(names["again"].stages[1].pool.fc1.weight, saved)

    commands = re.findall(r"^    (cast segment .*)$", PAGE, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert main([*shlex.split(command)[1:], "--size", "128"]) == 0, command
        assert (folder / "results" / "photo" / "panel.png").is_file()
        shutil.rmtree(folder / "results")


def test_options_and_models_exist():
    for name in re.findall(r"`((?:cast|vit)_[a-z_*]*)`", PAGE):
        assert cast.list_models(name), name
    for layout in re.findall(r"^\|[^|]*\| (\w[\w ]*) \| `", PAGE, re.MULTILINE):
        assert layout in ("moco", "probe", "deit", "spml", "segmenter"), layout
