"""What docs/training.md shows, runs, on a miniature folder of photos."""

import json
import re
import shlex
import shutil

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from cast.cli import _parser, main
from cast.train.presets import PRESETS

PAGE = (ROOT / "docs" / "training.md").read_text()
COMMANDS = re.findall(r"^    (cast .*)$", PAGE, re.MULTILINE)
SMALL = {  # a model and images that take seconds
    "model": "cast_mini",
    "img_size": 32,
    "model_overrides": {
        "embed_dim": 24, "num_heads": 2, "depths": [1, 1], "num_clusters": [4, 2],
        "superpixels": {"num_superpixels": 16},
    },
    "precision": "float32",
    "workers": 0,
    "device": "cpu",
    "log_every": 1,
}  # fmt: skip
OPTIONS = {
    "moco": ["--epochs", "1", "--warmup-epochs", "0", "--batch", "4", "--dim", "16", "--hidden-dim", "32"],
    "supervised": ["--epochs", "1", "--warmup-epochs", "0", "--batch", "8"],
    "probe": ["--epochs", "2", "--batch", "4"],
    "segment": ["--size", "64", "--device", "cpu"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the photos that the page names."""
    folder = tmp_path_factory.mktemp("page")
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for channel, name in enumerate(("blue", "red")):
            place = folder / "photos" / split / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 90, (40, 48, 3), dtype=np.uint8)
                pixels[8:30, 10:34, 2 - 2 * channel] = 220
                Image.fromarray(pixels).save(place / f"{i}.png")
    shutil.copy(ROOT / "cast" / "assets" / "demo.jpg", folder / "photo.jpg")
    (folder / "small.json").write_text(json.dumps(SMALL))
    return folder


def test_from_a_folder_of_images_to_a_figure_in_four_commands(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for command in COMMANDS[:4]:
        words = shlex.split(command)[1:]
        kind = words[1] if words[0] == "train" else words[0]
        if kind != "segment":
            words += ["--config", "small.json"]
        assert main([*words, *OPTIONS[kind]]) == 0, capsys.readouterr().err
        if kind == "segment":
            continue
        printed = capsys.readouterr().out.splitlines()
        figures = json.loads(printed[0])
        assert figures["status"] == "done"
        assert np.isfinite(figures["loss"])
        assert kind == "moco" or 0 <= figures["top1"] <= 1
        run = folder / printed[1]
        assert (run / "model.safetensors").is_file()
        for name in ("config.json", "log.jsonl", "last.pt", "best.pt", "result.json"):
            assert (run.parent / name).is_file(), name
    assert (folder / "runs/supervised/model/ema/model.safetensors").is_file()
    assert (folder / "results/photo/panel.png").is_file()


def test_the_python_snippet_runs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "training.md", "exec"), {"small": SMALL | {"dim": 16, "hidden_dim": 32}})
    assert re.match(r"done \d", capsys.readouterr().out)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command):
    _parser().parse_args(shlex.split(command)[1:])


def test_options_and_presets_exist(capsys):
    known = ""
    for words in (["train", "moco"], ["train", "supervised"], ["probe"]):
        with pytest.raises(SystemExit):
            _parser().parse_args([*words, "--help"])
        known += capsys.readouterr().out
    for option in re.findall(r"`(--[a-z][\w-]*)", PAGE):
        if option != "--nproc-per-node":
            assert option in known, option
    rows = re.findall(r"^\| `(\w+) (\w+)`(?:, `(\w+)`)? \| (?:Table|App)", PAGE, re.MULTILINE)
    named = {task: set() for task in PRESETS}
    for task, *names in rows:
        named[task] |= {name for name in names if name}
    assert named == {task: set(presets) for task, presets in PRESETS.items()}
