import dataclasses
import json

import pytest
import torch
from PIL import Image

from cast.bench import gate, models, paths
from cast.bench.flops import count_flops
from cast.bench.inputs import normalised, photos, seeds_worker
from cast.bench.models import Missing, build
from cast.bench.published import PublishedForward
from cast.bench.setting import Setting
from cast.bench.table import Table, read_rows
from cast.cli import main
from cast.models import create_model

TINY = {"embed_dim": 48, "num_heads": 4, "depths": (1, 1, 1, 1), "num_classes": 7}


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch):
    """Models small enough for a test, under the names that a user would type."""

    def make(name):
        return lambda size: create_model(name, img_size=size, **TINY)

    for name in ("cast_mini", "cast_small"):
        monkeypatch.setitem(models.PEERS, name, make(name))
    monkeypatch.setitem(models.PEERS, "vit_small", lambda size: torch.nn.Sequential(_Patches(), torch.nn.Linear(48, 7)))


class _Patches(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = torch.nn.Conv2d(3, 48, 16, 16)

    def forward(self, x):
        return self.proj(x).relu().mean((2, 3))


def bench(out, *options):
    return main(
        ["bench", "latency", "--models", "cast_mini", "vit_small", "--batch", "1", "--seconds", "0", "--out", str(out)]
        + [str(option) for option in options]
    )


def test_what_a_run_leaves(tmp_path, capsys):
    assert bench(tmp_path, "--device", "cpu") == 0
    rows = read_rows(tmp_path / "latency.csv")
    assert [row["superpixels"] for row in rows] == ["made", "workers", "given", "-"]
    assert rows == read_rows(tmp_path / "latency.json")
    for row in rows:
        assert 0 < float(row["p20_ms"]) <= float(row["p50_ms"]) <= float(row["p80_ms"])
        assert float(row["images_per_s"]) == pytest.approx(1e3 / float(row["p50_ms"]), rel=1e-2)
        assert float(row["ratio"]) == pytest.approx(float(row["p50_ms"]) / float(rows[3]["p50_ms"]), rel=1e-3)
        assert float(row["error"]) < 1e-4
        assert row["torch"] == torch.__version__
        assert row["command"].startswith("cast bench latency --models cast_mini vit_small")
    assert "thread" in rows[1]["note"]
    with Image.open(tmp_path / "latency.png") as chart:
        assert chart.size[0] > 500
    out = capsys.readouterr().out
    assert "vit_small" in out
    assert str(tmp_path / "latency.png") in out

    assert bench(tmp_path, "--resume") == 0  # nothing is left to do
    assert read_rows(tmp_path / "latency.csv") == rows
    assert bench(tmp_path, "--against", tmp_path / "latency.json") == 0
    assert "of 4 settings moved" in capsys.readouterr().out
    assert len(read_rows(tmp_path / "latency.csv")) == 8  # results are kept


def test_against_finds_a_slowdown(tmp_path, capsys):
    assert bench(tmp_path, "--superpixels", "given") == 0
    rows = json.loads((tmp_path / "latency.json").read_text())
    for row in rows:
        row["p50_ms"] = row["p50_ms"] / 100
        row["p20_ms"] = row["p80_ms"] = row["p50_ms"]
        row["torch"] = "1.0"
    (tmp_path / "old.json").write_text(json.dumps(rows))
    assert bench(tmp_path, "--superpixels", "given", "--against", tmp_path / "old.json") == 0
    out = capsys.readouterr().out
    assert "2 of 2 settings moved" in out
    assert "another torch" in out


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_a_wrong_path_gets_no_figure(tmp_path, monkeypatch, capsys, direction):
    launch = paths.Workshop._launch

    def wrong(self, model, *rest):
        call = launch(self, model, *rest)
        return lambda: 1.01 * call()

    monkeypatch.setattr(paths.Workshop, "_launch", wrong)
    assert bench(tmp_path, "--superpixels", "given", "--direction", direction) == 1
    rows = read_rows(tmp_path / "latency.csv")
    assert all("p50_ms" not in row and row["note"].startswith("refused") for row in rows)
    assert "nothing was measured" in capsys.readouterr().err


def test_train_mode_is_checked_too(monkeypatch):
    workshop = paths.Workshop(torch.device("cpu"), 1)
    setting = Setting("vit_small", 3, direction="forward+backward")
    assert workshop.path(setting).error < 1e-5
    forward = _Patches.forward
    monkeypatch.setattr(
        _Patches, "forward", lambda self, x: forward(self, x) * (torch.rand(()) if self.training else 1)
    )
    with pytest.raises(gate.Refused):
        workshop.path(setting)


def test_gate_sees_gradients_superpixels_and_nan():
    torch.manual_seed(0)
    model = create_model("cast_mini", **TINY, num_clusters=(8, 6, 4, 2)).eval()
    models._spread(model)
    images = photos(2, 64)
    labels = model.superpixels(images)
    expected = gate.reference(model, (normalised(images), labels), gradients=True)

    def step(scale=1.0, only="", factor=1.0):
        logits = model(normalised(images), labels)
        gate.loss(logits).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and only in name:
                parameter.grad *= scale
        return logits * factor

    def check(call):
        return gate.check(expected, gate.observe(call, model, [0, 1]), "fp32")

    assert check(step) < 1e-4
    with pytest.raises(gate.Refused, match="gradients of"):
        check(lambda: step(1.1))
    for name in ("stem.proj.weight", "stages.0.pool.fc1.weight", "stages.3.blocks.0.mlp.fc2.weight"):
        with pytest.raises(gate.Refused, match=f"gradients of {name}"):
            check(lambda name=name: step(1.5, name))
    with pytest.raises(gate.Refused, match="other parameters"):
        gate.check(expected, gate.Outcome(expected.logits), "fp32")
    with pytest.raises(gate.Refused, match="logits"):
        check(lambda: step(factor=float("nan")))
    with pytest.raises(gate.Refused, match="shape"):
        check(lambda: step()[:, :3])
    gate.check_superpixels(model, images, labels)
    with pytest.raises(gate.Refused, match="superpixels"):
        gate.check_superpixels(model, images, labels.flip(1))


def test_gate_looks_at_the_last_image(monkeypatch):
    forward = _Patches.forward

    def wrong(self, x):
        features = forward(self, x)
        return features if len(x) < 3 else torch.cat([features[:-1], features[:1]])

    workshop = paths.Workshop(torch.device("cpu"), 1)
    monkeypatch.setattr(_Patches, "forward", wrong)
    with pytest.raises(gate.Refused, match="logits"):
        workshop.path(Setting("vit_small", 3))


def test_logits_depend_on_what_a_path_is_given(monkeypatch):
    """Else no tolerance would tell a right path from one that ignores its input."""
    monkeypatch.delitem(models.PEERS, "cast_mini")
    model, images = build("cast_mini"), photos(2, 224)
    labels, pixels = model.superpixels(images), normalised(images)
    expected = gate.reference(model, (pixels, labels))
    with torch.no_grad():
        for inputs in ((pixels, labels.flip(1)), (pixels.flip(0), labels.flip(0))):
            with pytest.raises(gate.Refused):
                gate.check(expected, gate.observe(lambda inputs=inputs: model(*inputs), model, [0, 1]), "bf16")


def test_a_path_that_fails_is_a_row(tmp_path, monkeypatch):
    def broken(size):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setitem(models.PEERS, "vit_small", broken)
    assert bench(tmp_path, "--superpixels", "given") == 1
    ours, peer = read_rows(tmp_path / "latency.csv")
    assert peer["note"] == "failed: RuntimeError: out of memory"
    assert "p50_ms" in ours
    assert "ratio" not in ours  # there is nothing to refer to
    assert "baseline" not in ours


def test_resume_measures_what_is_missing_once(tmp_path, monkeypatch, capsys):
    command = ("--superpixels", "given", "--batch", "1", "2", "--resume")
    path = workshop_path = paths.Workshop.path

    def stop(self, setting):
        if setting.batch == 2:
            raise KeyboardInterrupt
        return workshop_path(self, setting)

    monkeypatch.setattr(paths.Workshop, "path", stop)
    assert bench(tmp_path, *command) == 130
    first = read_rows(tmp_path / "latency.csv")
    assert [row["batch"] for row in first] == ["1", "1"]
    monkeypatch.setattr(paths.Workshop, "path", path)
    Table(tmp_path / "latency.csv").add(first[0] | {"batch": "2", "cpu": "another"})  # of another machine: not ours
    assert bench(tmp_path, *command) == 0
    rows = read_rows(tmp_path / "latency.csv")
    assert rows[:2] == first
    assert [row["batch"] for row in rows] == ["1", "1", "2", "2", "2"]
    assert len(read_rows(tmp_path / "latency.json")) == 4  # the rows of before are results of this run, too
    assert bench(tmp_path, *command, "--models", "cast_mini", "vit_small", "vit_conv_small") == 0
    rows = read_rows(tmp_path / "latency.csv")
    assert len({(row["model"], row["batch"], row["cpu"]) for row in rows}) == len(rows) == 7


def test_quality_goes_into_the_settings_of_superpixels_that_are_made(tmp_path, monkeypatch):
    seen = []

    def settings(before, count, quality):
        seen.append(quality)
        return dataclasses.replace(before, num_superpixels=count, bins=5 if quality == "fast" else 15)

    monkeypatch.delitem(models.PEERS, "cast_mini")
    monkeypatch.setattr(models, "superpixel_settings", settings)
    assert bench(tmp_path, "--models", "cast_mini", "--quality", "fast", "best", "--superpixels", "made", "given") == 0
    rows = read_rows(tmp_path / "latency.csv")
    assert [(row["superpixels"], row["quality"]) for row in rows] == [
        ("made", "fast"),
        ("made", "best"),
        ("given", "-"),
    ]
    assert seen == ["fast", "best", "-"]


def test_missing_peers_are_named(tmp_path, monkeypatch):
    def absent(size):
        raise Missing("it is not installed")

    monkeypatch.setitem(models.PEERS, "tome_small", absent)
    assert bench(tmp_path, "--models", "vit_small", "tome_small") == 0
    rows = {row["model"]: row for row in read_rows(tmp_path / "latency.csv")}
    assert rows["tome_small"]["note"] == "missing: it is not installed"
    assert "p50_ms" in rows["vit_small"]


@pytest.mark.parametrize(
    "options",
    [
        ("--models", "vit_huge"),
        ("--models", "vit_small:196/64"),
        ("--models", "cast_small:196/a"),
        ("--launch", "graph", "--device", "cpu"),
        ("--dtype", "fp8"),
        ("--batch", "0"),
        ("--threads", "0"),
        ("--baseline", "nothing"),
        ("--device", "abacus"),
        ("--against", "no_such_file.csv"),
        ("--quality", "good"),
        ("--models", "cast_seg_small"),
    ],
)
def test_bad_options(tmp_path, options, capsys):
    assert bench(tmp_path / "out", *options) == 2
    assert "error" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_granularity_in_a_name(monkeypatch):
    monkeypatch.delitem(models.PEERS, "cast_mini")
    model = build("cast_mini:100/32/16/8/4", 224)
    assert model.config.num_clusters == (32, 16, 8, 4)
    assert model.superpixels(photos(1, 224)).max() < 100
    assert build("cast_mini", 448).config.superpixels.num_superpixels == 784


def test_inputs_are_the_same_for_all():
    few, many = photos(2, 64), photos(3, 64)
    assert torch.equal(few, many[:2])
    assert not torch.equal(many[0], many[2])
    settings = create_model("cast_mini", **TINY).config.superpixels
    maker, name = seeds_worker(settings)
    assert maker(few).shape == (2, 64, 64)
    assert name


@pytest.mark.parametrize("sampling", [True, False])
def test_published_forward_is_the_model(sampling):
    torch.manual_seed(0)
    model = create_model("cast_mini", **TINY).double().eval()
    image = torch.rand(3, 3, 128, 128, dtype=torch.float64)
    labels = torch.arange(256).view(1, 16, 16).repeat_interleave(8, 1).repeat_interleave(8, 2).expand(3, -1, -1) % 90
    published = PublishedForward(model, sampling=sampling)
    with torch.no_grad():
        expected = model(image, labels, 90)
        for _ in range(2):
            torch.testing.assert_close(published(image, labels), expected, rtol=1e-9, atol=1e-11)


def test_flops_are_those_of_the_products():
    linear = torch.nn.Linear(5, 7)
    assert count_flops(linear, torch.zeros(3, 5)) == 2 * 5 * 7
    pool = create_model("cast_mini", **TINY).eval()
    image, labels = torch.zeros(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.int32)
    less = count_flops(pool, image, labels, 64)
    assert count_flops(pool, image, labels, 128) > less
