"""Presets are the paper's tables; a file and the command line override them; what does not fit is refused by name."""

import dataclasses
import json

import pytest

from cast.cli import _parser, main
from cast.train.cli import parse_changes
from cast.train.config import CONFIGS, MocoConfig, ProbeConfig, SupervisedConfig, TrainConfig
from cast.train.presets import PRESETS
from cast.train.settings import FILE_NAME, read_settings, resolve, save_config

# Table 11: IN-100 | IN-1K | COCO; Table 12; linear probe (Appendix F.5). Facts of the paper, written out a second time.
TABLE_11 = {"imagenet100": (200, 20), "imagenet1k": (100, 10), "coco": (400, 40)}


@pytest.mark.parametrize("name", TABLE_11)
def test_moco_presets_are_table_11(name):
    config = resolve("moco", preset=name)
    assert (config.epochs, config.warmup_epochs) == TABLE_11[name]
    assert (config.batch, config.img_size, config.lr, config.weight_decay) == (256, 224, 1.5e-4, 0.1)
    assert (config.temperature, config.dim, config.momentum, config.hidden_dim) == (0.2, 256, 0.99, 4096)
    assert config.learning_rate == 1.5e-4
    assert config.sync_batchnorm


def test_the_supervised_preset_is_table_12():
    config = resolve("supervised", preset="imagenet1k")
    assert (config.batch, config.lr, config.weight_decay, config.epochs, config.warmup_epochs) == (
        1024, 5e-4, 0.05, 300, 5,
    )  # fmt: skip
    assert (config.warmup_lr, config.rand_augment, config.rand_augment_std) == (1e-6, 9, 0.5)
    assert (config.smoothing, config.mixup, config.cutmix, config.repeats) == (0.1, 0.8, 1.0, 3)
    assert (config.drop_path, config.erasing, config.ema) == (0.1, 0.25, 0.99996)
    assert config.learning_rate == 1e-3  # what the published code runs at


def test_probe_presets_run_at_the_published_rates():
    assert resolve("probe", preset="imagenet1k").learning_rate == 120.0
    assert resolve("probe", preset="imagenet100").learning_rate == 0.8
    assert resolve("probe").epochs == 90


def test_every_preset_is_a_config():
    for task, presets in PRESETS.items():
        for name in presets:
            assert type(resolve(task, preset=name)) is CONFIGS[task]


def test_the_last_word_counts(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('preset = "imagenet100"\nepochs = 7\nwarmup_epochs = 1\ncrop_scale = [0.2, 1]\n'
                    "[model_overrides]\nembed_dim = 96\nnum_heads = 6\n")  # fmt: skip
    config = resolve("moco", file=file, changes={"lr": 1e-3, "model_overrides": {"embed_dim": 48}})
    assert (config.epochs, config.warmup_epochs, config.lr, config.weight_decay) == (7, 1, 1e-3, 0.1)
    assert config.crop_scale == (0.2, 1)
    assert config.model_overrides == {"embed_dim": 48, "num_heads": 6}
    assert resolve("moco", file=file, preset="imagenet1k").momentum == 0.99


@pytest.mark.parametrize("suffix", [".toml", ".yaml", ".json"])
def test_files_of_every_form(tmp_path, suffix):
    text = {".toml": "epochs = 3\nwarmup_epochs = 0", ".yaml": "epochs: 3\nwarmup_epochs: 0",
            ".json": '{"epochs": 3, "warmup_epochs": 0}'}[suffix]  # fmt: skip
    (tmp_path / f"f{suffix}").write_text(text)
    assert resolve("moco", file=tmp_path / f"f{suffix}").epochs == 3


@pytest.mark.parametrize("task", CONFIGS)
def test_the_saved_config_gives_the_same_run(tmp_path, task):
    config = resolve(task, changes={"img_size": 64, "model_overrides": {"num_clusters": [8, 4]}, "seed": 3})
    save_config(config, tmp_path)
    assert resolve(task, file=tmp_path / FILE_NAME) == config
    assert json.loads((tmp_path / FILE_NAME).read_text())["task"] == task


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 0}, "epochs >= 1"),
        ({"epochs": 2.5}, "epochs to be of type int"),
        ({"epochs": True}, "epochs to be of type int"),
        ({"compile": 1}, "compile to be of type bool"),
        ({"lr": float("nan")}, "lr to be finite"),
        ({"lr": "fast"}, "lr to be of type float"),
        ({"img_size": 100}, "multiple of 8"),
        ({"accumulate": 3}, "accumulate to divide batch"),
        ({"warmup_epochs": 200}, "warmup_epochs <= epochs"),
        ({"precision": "half"}, "precision 'float32' or"),
        ({"cache": "device", "superpixels_on": "cpu"}, "superpixels_on"),
        ({"crop_scale": [0.5]}, "crop_scale"),
        ({"temperature": 0}, "temperature > 0"),
        ({"momentum": 1.5}, "momentum in"),
        ({"workers": -2}, "workers >= -1"),
        ({"colour": 1}, "unknown settings of moco: colour"),
        ({"compat": "x"}, "compat"),
        ({"model_overrides": [1]}, "model_overrides"),
    ],
)
def test_values_that_do_not_fit_are_named(changes, said):
    with pytest.raises(ValueError, match=said):
        resolve("moco", changes=changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"smoothing": 2.0}, "smoothing"),
        ({"rand_augment": 11.0}, "rand_augment"),
        ({"repeats": 0}, "repeats"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
    ],
)
def test_supervised_values_that_do_not_fit_are_named(changes, said):
    with pytest.raises(ValueError, match=said):
        resolve("supervised", changes=changes)


def test_what_is_no_settings_file(tmp_path):
    for name, text in (("a.toml", "x = ="), ("b.json", "[1]"), ("c.txt", ""), ("d.yaml", "a: [")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=name):
            read_settings(tmp_path / name)
    with pytest.raises(ValueError, match=r"missing\.toml"):
        read_settings(tmp_path / "missing.toml")


def test_unknown_names_list_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="moco, supervised, probe"):
        resolve("finetune")
    with pytest.raises(ValueError, match="imagenet1k, imagenet100, coco"):
        resolve("moco", preset="imagenet22k")
    save_config(resolve("probe"), tmp_path)
    with pytest.raises(ValueError, match="settings of task 'moco'"):
        resolve("moco", file=tmp_path / FILE_NAME)


def parse(*words):
    arguments = _parser().parse_args(words)
    config = {"moco": MocoConfig, "supervised": SupervisedConfig}.get(getattr(arguments, "kind", ""), ProbeConfig)
    return parse_changes(arguments, config)


def test_the_command_line_names_every_setting():
    words = [
        "train",
        "supervised",
        "photos",
        "--out",
        "run",
        "--batch",
        "8",
        "--crop-scale",
        "0.5",
        "1",
        "--no-compile",
    ]
    words += ["--model-set", "embed_dim=96", "--model-set", 'superpixels={"bins": 5}', "--model-set", "init=deit"]
    assert parse(*words) == {
        "data": "photos",
        "batch": 8,
        "crop_scale": [0.5, 1.0],
        "compile": False,
        "model_overrides": {"embed_dim": 96, "superpixels": {"bins": 5}, "init": "deit"},
    }
    assert parse("probe", "photos", "--out", "run", "--no-augment", "--lr", ".1") == {
        "data": "photos", "augment": False, "lr": 0.1,
    }  # fmt: skip
    every = {f.name for f in dataclasses.fields(MocoConfig)}
    assert every <= set(vars(_parser().parse_args(["train", "moco", "photos", "--out", "run"])))


def test_help_says_what_each_setting_is(capsys):
    for words in (["train", "moco"], ["train", "supervised"], ["probe"]):
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert "Passes over the data (default:" in said
        assert "learning rate" in said.lower()
    from cast.train.cli import _help_texts

    for config in CONFIGS.values():
        assert {f.name for f in dataclasses.fields(config)} <= set(_help_texts(config))


def test_a_config_is_not_abstract_by_accident():
    assert not hasattr(TrainConfig, "task")
    assert {c.task for c in CONFIGS.values()} == {"moco", "supervised", "probe"}
