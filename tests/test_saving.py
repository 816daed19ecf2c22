"""Models in folders and on the Hub: what comes back, and what must be refused."""

import json
import pickle
import struct
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_model import VARIANTS, grid_labels, make_model, make_variant

import cast
from cast import Cast
from cast.models import saving


@pytest.fixture
def saved(tmp_path):
    model = make_model(kappa=4.0, mean=(0.1, 0.2, 0.3))
    model.save_pretrained(tmp_path / "a" / "model")
    return model, tmp_path / "a" / "model"


def inputs():
    return torch.randn(2, 3, 64, 64), grid_labels(2, 64, 64), 16


@pytest.mark.parametrize("load", [cast.from_pretrained, Cast.from_pretrained, lambda f: cast.from_pretrained(str(f))])
def test_the_same_model_comes_back(saved, load):
    model, folder = saved
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    other = load(folder)
    assert type(other) is Cast
    assert other.config == model.config
    assert not other.training
    assert [n for n, p in other.named_parameters() if not p.requires_grad] == [
        n for n, p in model.named_parameters() if not p.requires_grad
    ]
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert torch.equal(other.image_mean, model.image_mean)
    args = inputs()
    assert torch.equal(other(*args), model(*args))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_class_of_models(tmp_path, name):
    model = make_variant(name)
    model.save_pretrained(tmp_path)
    other = cast.from_pretrained(tmp_path)
    assert type(other) is type(model)
    args = inputs()[:1] if name == "vit" else inputs()
    assert torch.equal(other(*args), model(*args))
    assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match=f"it holds a {type(model).__name__}, not a Cast$"):
        Cast.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes_are_kept(tmp_path, dtype):
    model = make_model(pos_embed="learned").to(dtype)
    model.save_pretrained(tmp_path)
    other = cast.from_pretrained(tmp_path, device="cpu")
    assert {p.dtype for p in other.parameters()} == {dtype}
    assert other.image_mean.dtype == torch.float32
    args = inputs()
    assert torch.equal(other(*args), model(*args))


def test_tensors_that_share_memory_are_saved(tmp_path):
    model = make_model(depths=(2, 2, 1))
    model.stages[0].blocks[1] = model.stages[0].blocks[0]
    model.save_pretrained(tmp_path)
    args = inputs()
    assert torch.equal(cast.from_pretrained(tmp_path)(*args), model(*args))


def test_saving_again_replaces_the_model_and_keeps_the_rest(saved):
    _, folder = saved
    (folder / "README.md").write_text("mine")
    other = make_model(num_classes=3)
    other.save_pretrained(folder)
    assert cast.from_pretrained(folder).config.num_classes == 3
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (folder / "README.md").read_text() == "mine"


@pytest.mark.parametrize("stage", ["weights", "config", "rename"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_fails_leaves_the_earlier_model(saved, monkeypatch, stage, error):
    model, folder = saved
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def fail(*args, **kwargs):
        raise error("no space")

    rename, calls = Path.rename, []

    def rename_some(source, target):
        calls.append(target)
        if len(calls) == 4:  # both old files are aside, one new file is in place
            fail()
        return rename(source, target)

    if stage == "weights":
        monkeypatch.setattr(saving, "save_file", fail)
    elif stage == "config":
        monkeypatch.setattr(Path, "write_text", fail)
    else:
        monkeypatch.setattr(Path, "rename", rename_some)
    with pytest.raises(error):
        make_model(num_classes=3).save_pretrained(folder)
    monkeypatch.undo()
    assert stage != "rename" or len(calls) > 4
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    with pytest.raises(ValueError, match="is a file"):
        model.save_pretrained(folder / "config.json")
    (folder.parent / "b" / "config.json").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"folders config\.json"):
        model.save_pretrained(folder.parent / "b")
    assert [p.name for p in (folder.parent / "b").iterdir()] == ["config.json"]


def test_a_model_that_is_not_finite_is_not_saved(tmp_path):
    model = make_model()
    model.head.bias.data[1] = torch.nan
    with pytest.raises(ValueError, match=r"head\.bias has values that are NaN"):
        model.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def change_config(folder, **changes):
    about = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        place, _, key = name.rpartition("__")
        (about[place] if place else about)[key] = value
    (folder / "config.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "cast-model-2"}, "of format 'cast-model-2'; this version reads 'cast-model-1'"),
        ({"format": 1}, 'does not name its "format"'),
        ({"class": "Popen"}, "names the class 'Popen', but its settings are those of 'Cast'"),
        ({"class": "../../Cast"}, "names the class"),
        ({"config": []}, 'no "config"'),
        ({"config__kind": "resnet"}, "kind"),
        ({"config__kind": ["cast"]}, 'no "config" with a "kind"'),
        ({"config__colour": 1}, "unknown CastConfig values: colour"),
        ({"config__weights": "/etc/passwd"}, "unknown CastConfig values: weights"),
        ({"config__embed_dim": 8 * 10**9, "config__num_heads": 1}, "no tensor in model.safetensors is that wide"),
        ({"config__depths": [10**9, 2, 1]}, "states 1000000003 blocks and layers"),
        ({"config__img_size": 8 * 10**6}, "expected at most 4096"),
        ({"config__num_classes": 10**12}, r"does not fit: head.weight"),
        ({"config__mlp_ratio": 1e300}, "does not describe a model"),
        ({"config__num_classes": 7}, r"does not fit: head.weight \(5, 48\) instead of \(7, 48\)"),
        ({"config__num_classes": 0}, "unknown: head.bias, head.weight"),
        ({"config__pos_embed": "learned"}, "missing: pos_embed"),
        ({"config__pos_embed": {}}, "pos_embed"),
        ({"config__depths": "3"}, "depths"),
        ({"config__superpixels": {"bins": "many"}}, "bins"),
    ],
)
def test_settings_that_do_not_belong_to_the_weights(saved, changes, message):
    _, folder = saved
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=message) as error:
        cast.from_pretrained(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[1, 2]", '"format"'),
        ('{"format": NaN}', "NaN is not a number"),
        ("[" * 10**5, "not JSON|recursion"),
        ('{"format": "' + "x" * 2**21, "more than 1048576 bytes"),
        ("\udcff", "not JSON"),
    ],
)
def test_settings_that_are_no_settings(saved, text, message):
    _, folder = saved
    (folder / "config.json").write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        cast.from_pretrained(folder)


class Evil:
    def __reduce__(self):
        return (open, (str(Evil.target), "w"))


def break_weights(folder, how):
    path = folder / "model.safetensors"
    whole, state = path.read_bytes(), load_file(path)
    if how == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "pickle":
        Evil.target = folder / "executed"
        path.write_bytes(pickle.dumps(Evil()))
    elif how == "huge header":
        path.write_bytes(struct.pack("<Q", 2**62) + whole[8:])
    elif how == "huge shape":
        header = json.dumps({"head.bias": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    elif how == "nan":
        state["head.bias"][0] = torch.nan
        save_file(state, path)
    elif how == "integers":
        state["head.bias"] = state["head.bias"].long()
        save_file(state, path)
    elif how == "missing":
        path.unlink()
    return folder


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", ""),
        ("empty", ""),
        ("pickle", ""),
        ("huge header", ""),
        ("huge shape", ""),
        ("nan", r"head\.bias has values that are NaN"),
        ("integers", r"head\.bias is torch\.int64"),
        ("missing", r"there is no model\.safetensors"),
    ],
)
def test_damaged_weights(saved, how, message):
    _, folder = saved
    break_weights(folder, how)
    with pytest.raises(ValueError, match=f"cannot load a model from .*{message}"):
        cast.from_pretrained(folder)
    assert not (folder / "executed").exists()


def test_a_pickle_beside_the_weights_is_not_read(saved):
    _, folder = saved
    Evil.target = folder / "executed"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    cast.from_pretrained(folder)
    assert not (folder / "executed").exists()


@pytest.mark.parametrize("source", ["nowhere", "a/b/c", "../up", "user/..", "/no/such/folder", ""])
def test_names_that_are_neither_folders_nor_repositories(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"no such folder|there is no config\.json"):
        cast.from_pretrained(source)


# --- the Hub, without a network


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that is a folder."""
    root = tmp_path / "hub"

    class Api:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, name, private=None, exist_ok=False):
            (root / name).mkdir(parents=True, exist_ok=exist_ok)

        def upload_folder(self, repo_id, folder_path, commit_message, revision=None):
            for file in Path(folder_path).iterdir():
                (root / repo_id / file.name).write_bytes(file.read_bytes())
            return f"https://hub/{repo_id}/commit/1"

    def snapshot_download(name, **options):
        hub.options = options
        if not (root / name).exists():
            raise FileNotFoundError(f"404 {name}\nmore")
        return str(root / name)

    hub = types.SimpleNamespace(HfApi=Api, snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    return hub


def test_to_the_hub_and_back(hub):
    model = make_model()
    assert model.push_to_hub("me/cast") == "https://hub/me/cast/commit/1"
    args = inputs()
    assert torch.equal(Cast.from_pretrained("me/cast", revision="main")(*args), model(*args))
    assert hub.options["revision"] == "main"
    assert hub.options["allow_patterns"] == ["config.json", "model.safetensors"]
    with pytest.raises(
        ValueError, match=r"no folder me/other, and no such repository .*FileNotFoundError: 404 me/other\)$"
    ):
        Cast.from_pretrained("me/other")
    with pytest.raises(ValueError, match="user/name"):
        model.push_to_hub("cast")


def test_our_calls_are_those_of_the_real_hub():
    """The functions and arguments that the stand-in above takes exist in huggingface_hub."""
    import inspect

    real = pytest.importorskip("huggingface_hub")
    for function, names in (
        (real.snapshot_download, {"allow_patterns", "revision", "token", "cache_dir", "local_files_only"}),
        (real.HfApi.create_repo, {"private", "exist_ok"}),
        (real.HfApi.upload_folder, {"repo_id", "folder_path", "commit_message", "revision"}),
    ):
        assert names <= set(inspect.signature(function).parameters)
    with pytest.raises(ValueError, match="no folder me/cast"):
        cast.from_pretrained("me/cast", local_files_only=True, cache_dir="/nonexistent/cache")


def test_from_the_cache_of_the_real_hub(tmp_path):
    """A repository that was fetched before: blobs, and links to them under the commit's name."""
    pytest.importorskip("huggingface_hub")
    model, repository = make_model(), tmp_path / "models--me--cast"
    commit = "0123456789" * 4
    model.save_pretrained(repository / "blobs")
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for name in ("config.json", "model.safetensors"):
        (repository / "snapshots" / commit / name).symlink_to(Path("..") / ".." / "blobs" / name)
    other = cast.from_pretrained("me/cast", cache_dir=tmp_path, local_files_only=True)
    args = inputs()
    assert torch.equal(other(*args), model(*args))


def test_without_huggingface_hub(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    for call in (lambda: cast.from_pretrained("me/cast"), lambda: make_model().push_to_hub("me/cast")):
        with pytest.raises(ImportError, match=r"cast-kernels\[hub\]"):
            call()
