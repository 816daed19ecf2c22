"""From the model of a run to the weights of the package."""

import pytest
import torch

from bench.ship_weights import main, ship
from cast import create_model, from_pretrained, shipped

SMALL = {"img_size": 64, "embed_dim": 48, "depths": (1, 1), "num_clusters": (8, 4), "num_classes": 10}


@pytest.fixture
def trained(tmp_path):
    """The folder of a saved model, small but for its classes."""
    torch.manual_seed(3)
    create_model("cast_mini", **SMALL).save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def test_weights_are_rounded(tmp_path, trained, capsys):
    out = tmp_path / "assets"
    out.mkdir()
    (out / "LICENSE").write_text("terms")
    before = {path: path.stat().st_mtime_ns for path in shipped.FOLDER.iterdir()}
    assert main([str(trained), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"LICENSE", "config.json", "model.safetensors"}
    assert (out / "config.json").read_bytes() == (trained / "config.json").read_bytes()
    half, model = from_pretrained(out).state_dict(), from_pretrained(trained).state_dict()
    assert half.keys() == model.keys()
    for name, value in model.items():
        assert half[name].dtype == (torch.float16 if value.is_floating_point() else value.dtype)
        assert torch.equal(half[name], value.to(half[name].dtype)), name
    assert {path: path.stat().st_mtime_ns for path in shipped.FOLDER.iterdir()} == before  # --out is obeyed
    said = capsys.readouterr().out
    size = sum(value.numel() * value.element_size() for value in half.values())
    assert said.startswith(f"{out}: {size / 1e6:.1f} MB; logits off by at most ")


def test_the_difference_is_that_of_the_logits(tmp_path, trained):
    size, off, largest = ship(trained, tmp_path / "assets")
    assert size < 1_000_000
    assert 0 < off < 0.01 * largest
    model = from_pretrained(trained)
    model.half().float().save_pretrained(trained)  # rounded already
    assert ship(trained, tmp_path / "assets")[1] == 0


def test_what_cannot_be_shipped(tmp_path, trained, monkeypatch, capsys):
    out = tmp_path / "assets"
    create_model("cast_mini", **SMALL | {"num_classes": 3}).save_pretrained(tmp_path / "three")
    model = from_pretrained(trained)
    with torch.no_grad():
        model.head.bias[0] = 1e5
    model.save_pretrained(tmp_path / "large")
    for folder, message in (
        ("three", "expected 10 classes, got 3"),
        ("large", "head.bias has values that are NaN or infinite"),
        ("none", "no such folder"),
    ):
        assert main([str(tmp_path / folder), "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr("bench.ship_weights.MOST_BYTES", 1000)
    assert main([str(trained), "--out", str(out)]) == 2
    assert "expected at most 1000 bytes in float16" in capsys.readouterr().err
    assert not out.exists()
