import json

import processes
import pytest
import torch
import train_worker

from cast.bench import models, paper
from cast.bench.inputs import photos
from cast.bench.profile import OPS, profile_forward
from cast.bench.table import read_rows
from cast.bench.throughput import Photos
from cast.cli import main
from cast.models import create_model

TINY = {"embed_dim": 48, "num_heads": 4, "depths": (1, 1, 1, 1), "num_classes": 7}


@pytest.fixture
def tiny_models(monkeypatch):
    for name in ("cast_mini", "cast_small", "cast_base"):
        monkeypatch.setitem(models.PEERS, name, lambda size, name=name: create_model(name, img_size=size, **TINY))


def test_profile_names_the_parts(tmp_path):
    model = create_model("cast_mini", **TINY).eval()
    images = photos(1, 224)
    profile = profile_forward(model, lambda: model(images), runs=2, trace=tmp_path / "trace.json")
    names = [part.name for part in profile.parts]
    stages = [f"blocks {i}" for i in (1, 2, 3, 4)]
    assert [name for name in names if name.startswith("blocks")] == stages
    for name in ("stem", "head", *OPS.values()):
        assert name in names or f"pool 1 / {name}" in names
    assert "pool 4" not in names  # of a forward pass it is left out
    assert names.index("stem") < names.index("blocks 1") < names.index("pool 1") < names.index("blocks 2")
    whole = profile.part("all")
    assert names[-1] == "all"
    outer = [part for part in profile.parts[:-1] if " / " not in part.name]
    assert 0 < sum(part.host_ms for part in outer) <= whole.host_ms
    inner = [part for part in profile.parts if part.name.startswith("pool 1 / ")]
    assert sum(part.host_ms for part in inner) <= profile.part("pool 1").host_ms
    assert profile.part("superpixels").host_ms > 0
    assert profile.part("pool 1 / sampling").calls > 1
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert any(event.get("name") == "cast: stem" for event in events)
    assert [p.name for p in tmp_path.iterdir()] == ["trace.json"]
    assert not any(module._forward_pre_hooks for module in model.modules())  # the model is as before


def test_profile_command(tmp_path, tiny_models, capsys):
    assert main(["bench", "profile", "--batch", "1", "--runs", "1", "--out", str(tmp_path), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["part", "host", "ms", "device", "ms", "share", "operators"]
    assert any(line.startswith("pool 1 / sampling") for line in lines)
    assert lines[-1] == str(tmp_path / "trace.json")
    assert main(["bench", "profile", "--model", "vit_small"]) == 2
    assert main(["bench", "profile", "--runs", "0", "--out", str(tmp_path)]) == 2


def test_gflops_of_the_paper():
    """The paper's counts are 0.1 to 0.4 G above ours, its ViT's too; the order and the steps agree."""
    rows = {row["item"]: row for row in paper.gflops_rows() if row["item"].startswith("cast_small")}
    assert len(rows) == 5
    here = [row["here"] for row in rows.values()]
    stated = [row["paper"] for row in rows.values()]
    assert here == sorted(here)
    for ours, theirs in zip(here, stated, strict=True):
        assert 0.88 < ours / theirs < 1.0
    assert rows["cast_small:196/64/32/16/8"]["here"] == pytest.approx(3.05, abs=0.02)


def test_paper_command(tmp_path, tiny_models, monkeypatch, capsys):
    monkeypatch.setattr(paper, "gflops_rows", lambda: iter(()))
    monkeypatch.setitem(models.PEERS, "vit_base", lambda size: torch.nn.Conv2d(3, 4, 16))
    assert main(["bench", "paper", "--batch", "1", "--out", str(tmp_path), "--device", "cpu"]) == 0
    rows = read_rows(tmp_path / "paper.csv")
    levels = [row for row in rows if row["table"] == "7"]
    assert [row["item"].split()[0] for row in levels[::5]] == ["196", "64", "32", "16"]
    for first in range(0, 20, 5):
        pool, sampling, assignment, rest = (float(row["here"]) for row in levels[first + 1 : first + 5])
        assert pool == pytest.approx(sampling + assignment + rest, abs=0.01)
    appendix = {row["item"]: row for row in rows if row["table"] == "A.4"}
    assert set(appendix) == {"vit_base", "cast_base", "superpixels", "superpixels on cpu"}
    assert appendix["vit_base"]["paper"] == "273.0"
    assert all(row["note"].startswith("not measured") for row in rows if row["table"] == "memory")
    assert "A.4  vit_base" in capsys.readouterr().out


def test_throughput_command(tmp_path, tiny_models, capsys):
    command = ["bench", "throughput", "--batch", "2", "--batches", "2", "--loaders", "0", "--out", str(tmp_path)]
    assert main([*command, "--device", "cpu"]) == 0
    rows = read_rows(tmp_path / "throughput.csv")
    assert [row["superpixels"] for row in rows] == ["workers", "made"]
    assert all(float(row["images_per_s"]) > 0 for row in rows)
    assert main([*command, "--model", "vit_small"]) == 2
    assert main([*command, "no_such_photo.jpg"]) == 2


def test_photos_are_decoded_and_cropped(tmp_path):
    image, labels = Photos(3, [])[1]
    assert (image.shape, image.dtype, labels.numel()) == ((3, 224, 224), torch.uint8, 0)
    settings = create_model("cast_mini", **TINY).config.superpixels
    image, labels = Photos(40, [], settings)[33]
    assert labels.shape == (224, 224)
    assert labels.max() == 195


def test_throughput_of_two_processes(tmp_path):
    """In the environment that `torchrun` sets."""
    command = ["bench", "throughput", "--model", "cast_mini", "--batch", "1", "--batches", "1", "--loaders", "0"]
    jobs = train_worker.start(processes.module, "cast", *command, "--device", "cpu", "--out", tmp_path, world=2)
    assert train_worker.finish(jobs) == [0, 0]
    rows = read_rows(tmp_path / "throughput.csv")
    assert [row["processes"] for row in rows] == ["2", "2"]
