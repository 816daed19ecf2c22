"""The weights that come with the package: what lies there, how they are found, and that users are told the terms.

Nothing here depends on the values of the weights, which are trained again from time to time.
"""

import csv
import re
import shutil

import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors import safe_open
from segment_helpers import FILES, left_in, make_scene, read

from cast import create_model, from_pretrained, shipped
from cast._files import hash_file
from cast.cli import _parser, main
from cast.data import read_image
from cast.data.geometry import check_size
from cast.models.base import fixed_positions
from cast.models.saving import WEIGHTS, read_config
from cast.weights import load_model

RED = (190, 30, 20)  # of the line under the panel that warns of random weights
SMALL = {"img_size": 64, "embed_dim": 48, "depths": (1, 1), "num_clusters": (8, 4), "num_classes": 3}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "disc.png"
    Image.fromarray(make_scene()).save(path)
    return path


def test_what_lies_in_the_package():
    assert (shipped.FOLDER / WEIGHTS).stat().st_size <= 16_000_000
    with safe_open(shipped.FOLDER / WEIGHTS, framework="pt") as file:
        dtypes = {file.get_slice(name).get_dtype() for name in file.keys() if "num_batches" not in name}  # noqa: SIM118
    assert dtypes == {"F16"}
    config, _ = read_config(shipped.find_folder())
    assert len(shipped.class_names()) == len(set(shipped.class_names())) == config.num_classes == 10
    terms = " ".join((shipped.FOLDER / "LICENSE").read_text().split())
    assert "non-commercial research" in terms
    assert "without warranty of any kind" in terms
    card = (shipped.FOLDER / "README.md").read_text()
    for link in re.findall(r"\]\(([^)]+)\)", card):
        assert (shipped.FOLDER / link).is_file(), link
    assert "cast/assets/imagenette" in (ROOT / "NOTICE").read_text()


def test_the_card_has_its_figures():
    card = (shipped.FOLDER / "README.md").read_text()
    assert "FIGURES" not in card
    with (ROOT / "bench/results/imagenette_cpu.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["model"], row["seed"]) == ("cast", "0")]
    figures = {(row["piece"], row["masks"], row["segments"]): row for row in rows}
    for kind in ("butterfly", "person"):
        row = figures["segment", kind, "8"]
        assert f"| {100 * float(row['majority']):.1f} / {100 * float(row['best_match']):.1f} |" in card
    for piece in ("train", "probe"):
        assert f"| {100 * float(figures[piece, '', '']['top1']):.1f} |" in card


def test_help_tells_the_defaults():
    config, _ = read_config(shipped.FOLDER)
    commands = next(action for action in _parser()._actions if action.dest == "command").choices
    said = {name: " ".join(commands[name].format_help().split()) for name in ("segment", "demo", "export")}
    assert f"(default: {','.join(map(str, config.num_clusters))}; of --model" in said["segment"]
    assert f"(default: {shipped.SIZE}; of --model and other weights, 224)" in said["segment"]
    assert config.superpixels.num_superpixels / config.img_size**2 == 196 / 224**2
    check_size(shipped.SIZE, crop=True)
    assert all(f"{shipped.NAME}, the small model that comes with the package" in text for text in said.values())
    assert all("non-commercial" in text for text in said.values())


def test_no_name_and_no_weights_mean_the_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = load_model(device="cpu")
    assert (loaded.name, loaded.shipped, loaded.random) == ("imagenette", True, False)
    assert loaded.weights == str(shipped.FOLDER.resolve())
    assert loaded.weights_sha256 == hash_file(shipped.FOLDER / WEIGHTS)
    assert loaded.size == shipped.SIZE
    kept = from_pretrained(shipped.FOLDER).state_dict()
    for name, value in loaded.model.state_dict().items():
        assert value.dtype == (torch.int64 if "num_batches" in name else torch.float32), name
        assert torch.equal(value, kept[name].to(value.dtype)), name
    if loaded.model.config.pos_embed == "sincos":  # not among the weights: made in float32, not rounded with them
        assert torch.equal(loaded.model.pos_embed, fixed_positions(loaded.model.config))
    assert not loaded.model.training
    with torch.inference_mode():
        logits = loaded.model(torch.randint(0, 256, (2, 3, 128, 160), dtype=torch.uint8))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()
    for again in ({"name": "imagenette"}, {"weights": "imagenette"}, {"weights": shipped.FOLDER}):
        other = load_model(**again, device="cpu")
        assert (other.name, other.shipped, other.weights) == (loaded.name, True, loaded.weights)
        assert torch.equal(other.model.head.weight, loaded.model.head.weight)
    coarse = load_model(levels=(6, 4, 2), device="cpu").model
    assert [stage.pool.num_clusters for stage in coarse.stages] == [6, 4, 2]


def test_other_models_are_what_they_were(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = load_model("cast_mini", device="cpu")
    assert (loaded.random, loaded.shipped, loaded.class_names, loaded.size) == (True, False, (), 224)
    with pytest.raises(ValueError, match=r"holds a .* not cast_mini"):
        load_model("cast_mini", weights="imagenette")
    with pytest.raises(ValueError, match="imagenette groups 3 times, so expected 3 levels"):
        load_model(levels=(16, 8, 4, 2))
    create_model("cast_mini", **SMALL).save_pretrained("imagenette")  # a path of that name comes first
    own = load_model(weights="imagenette", device="cpu")
    assert (own.name, own.shipped, own.weights) == ("cast", False, str(tmp_path / "imagenette"))


def test_missing_weights_are_named(tmp_path, photo, monkeypatch, capsys):
    folder = tmp_path / "assets"
    folder.mkdir()
    shutil.copy(shipped.FOLDER / "config.json", folder)
    monkeypatch.setattr(shipped, "FOLDER", folder)
    for asked in ({}, {"weights": "imagenette"}):
        with pytest.raises(ValueError, match=r"come with the package are missing \(no model\.safetensors in"):
            load_model(**asked)
    assert main(["segment", str(photo), "--out", str(tmp_path / "out")]) == 2
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 2
    assert capsys.readouterr().err.count("are missing") == 2
    assert load_model("cast_mini", device="cpu").random


def test_demo_names_weights_and_terms(tmp_path, capsys):
    assert main(["demo", "--device", "cpu", "--out", str(tmp_path / "demo")]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'demo' / 'panel.png'}\n"
    assert err.count("for non-commercial research only") == 1
    assert str(shipped.FOLDER / "LICENSE") in err
    assert "random" not in err
    assert set(left_in(tmp_path / "demo")) == FILES - {"level4.png"}
    about, arrays = read(tmp_path / "demo")
    config, _ = read_config(shipped.FOLDER)
    assert arrays["num_segments"].tolist()[1:] == list(config.num_clusters)
    assert about["network_input"]["height"] == shipped.SIZE
    assert about["random_weights"] is False
    assert about["settings"]["model"] == "imagenette"
    assert about["settings"]["weights"]["sha256"] == hash_file(shipped.FOLDER / WEIGHTS)
    assert about["settings"]["random_weights_seed"] is None
    assert about["classes"]["num_classes"] == 10
    assert all(e["class"] == shipped.class_names()[e["class_id"]] for e in about["classes"]["top5"])
    assert not (read_image(tmp_path / "demo/panel.png") == RED).all(2).any()


def test_segment_with_the_shipped_weights(tmp_path, photo, capsys):
    command = ["segment", str(photo), str(photo), "--out", str(tmp_path / "out"), "--size", "64", "--superpixels", "40"]
    assert main([*command, "--levels", "12,6,3"]) == 0
    assert capsys.readouterr().err.count("for non-commercial research only") == 1
    about, arrays = read(tmp_path / "out/disc")
    assert arrays["num_segments"].tolist()[1:] == [12, 6, 3]
    assert about["network_input"] == {"height": 64, "width": 96}
    assert main([*command, "--levels", "12,6,3", "--weights", "imagenette", "--skip-existing"]) == 0
    assert "1 already there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--levels", "16,8,4,2"], "--levels: imagenette groups 3 times, so expected 3 levels"),
        (["--superpixels", "12", "--levels", "16,8,4"], "--superpixels 12 are fewer than the 16 segments"),
        (["--size", "20", "--crop"], "--size and --crop: "),
    ],
)
def test_settings_are_checked_before_a_model_is_built(tmp_path, photo, monkeypatch, capsys, arguments, message):
    def too_late(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("cast.weights.load_model", too_late)
    assert main(["segment", str(photo), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_export_takes_them_too(tmp_path, monkeypatch, capsys):
    exported = []
    done = {"logits": 0.0}, True
    monkeypatch.setattr("cast._export_command.export_and_compare", lambda *given: exported.append(given) or done)
    assert main(["export", "--out", str(tmp_path / "model.pt2"), "--device", "cpu"]) == 0
    ((model, path, size),) = exported
    config, _ = read_config(shipped.FOLDER)
    assert (model.config, path, size) == (config, tmp_path / "model.pt2", config.img_size)
    assert str(shipped.FOLDER / "LICENSE") in capsys.readouterr().err
