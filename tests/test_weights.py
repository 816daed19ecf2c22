import argparse

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cast import create_model
from cast._weight_files import read_weights
from cast.models.official import to_official
from cast.weights import load_model

PUBLISHED = ("published.pth", "deit.pth", "probe.pth.tar", "moco.pth.tar", "both.safetensors")  # names of parameters


def weights_files(tmp_path, model):
    """The same weights in every form that is read."""
    state = model.state_dict()
    save_file(state, tmp_path / "own.safetensors")
    torch.save(state, tmp_path / "own.pth")
    published = to_official(model)
    torch.save(published, tmp_path / "published.pth")
    torch.save({"model": published, "args": argparse.Namespace(lr=1.0)}, tmp_path / "deit.pth")
    wrapped = {f"module.{name}": value for name, value in published.items()}
    torch.save({"epoch": 1, "state_dict": wrapped}, tmp_path / "probe.pth.tar")
    encoder = {f"module.base_encoder.{n}": v for n, v in published.items() if not n.startswith("head.")}
    encoder |= {"module.base_encoder.head.0.weight": torch.zeros(3, 3), "module.predictor.0.weight": torch.zeros(3)}
    torch.save({"epoch": 1, "state_dict": encoder}, tmp_path / "moco.pth.tar")
    save_file({f"module.{name}": value for name, value in state.items()}, tmp_path / "parallel.SAFETENSORS")
    save_file(
        {f"_orig_mod.module.{name}": value.clone() for name, value in published.items()}, tmp_path / "both.safetensors"
    )
    torch.save({f"module._orig_mod.{name}": value for name, value in state.items()}, tmp_path / "both.pth")
    more = ["parallel.SAFETENSORS", "both.safetensors", "both.pth"]
    return [*more, "own.safetensors", "own.pth", "published.pth", "deit.pth", "probe.pth.tar", "moco.pth.tar"]


def test_weights_of_every_form(tmp_path):
    torch.manual_seed(3)
    model = create_model("cast_mini", num_classes=7).eval()
    image = torch.randint(0, 256, (1, 88, 128, 3), dtype=torch.uint8)
    labels = (torch.arange(88)[:, None] // 8 * 16 + torch.arange(128) // 8)[None]
    with torch.inference_mode():
        expected = model(image, labels, 176)
        embedding = model.forward_head(model.forward_features(image, labels, 176), pre_logits=True)
    for name in weights_files(tmp_path, model):
        loaded = load_model("cast_mini", weights=tmp_path / name, device="cpu")
        assert not loaded.random
        assert loaded.weights == str(tmp_path / name)
        with torch.inference_mode():
            found = loaded.model(image, labels, 176)
        assert torch.equal(found, embedding if name.startswith("moco") else expected), name
        theirs = "sequential" if name in PUBLISHED else "parallel"  # a name beside published weights changes nothing
        assert loaded.model.config.superpixels.order == theirs, name
        if name in PUBLISHED:
            unnamed = load_model(weights=tmp_path / name, device="cpu").model.config
            assert loaded.model.config.superpixels == unnamed.superpixels


def test_the_weights_tell_the_model(tmp_path):
    """A published checkpoint and a saved model need no name, and contradict a wrong one."""
    torch.manual_seed(3)
    model = create_model("cast_deit_small", num_classes=7).eval()
    torch.save({"model": to_official(model), "args": argparse.Namespace()}, tmp_path / "best_checkpoint.pth")
    model.save_pretrained(tmp_path / "saved")
    for weights in (tmp_path / "best_checkpoint.pth", tmp_path / "saved"):
        loaded = load_model(weights=weights, levels=(32, 16, 8, 4), device="cpu")
        assert loaded.name == "cast_deit_small"
        assert loaded.weights == str(weights)
        assert len(loaded.weights_sha256) == 64
        assert loaded.model.config.num_clusters == (32, 16, 8, 4)
        assert loaded.model.config.superpixels.bins == 5
        assert torch.equal(loaded.model.head.weight, model.head.weight)
        with pytest.raises(ValueError, match=r"do not fit the model|holds cast_deit_small, not cast_small"):
            load_model("cast_small", weights=weights)
    assert load_model("cast_deit_small", weights=tmp_path / "saved", device="cpu").name == "cast_deit_small"
    with pytest.raises(ValueError, match="groups 4 times"):
        load_model(weights=tmp_path / "saved", levels=(32, 16))
    create_model("vit_conv_small", embed_dim=48).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="expected a model that makes segments, got vit"):
        load_model(weights=tmp_path / "vit")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"there is no config\.json"):
        load_model(weights=tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.safetensors", b"nonsense", "cannot read weights"),
        ("w.pth", b"nonsense", "cannot read weights|not a PyTorch file"),
        ("w.pth", b"hello world\n", r"w\.pth: KeyError 101"),
        ("w.pth", {"state_dict": 3}, "expected a state dict of tensors"),
        ("w.pth", [1, 2], "expected a state dict"),
        ("w.pth", {"stages.0.x": torch.zeros(2)}, "do not fit"),
        ("w.pth", {"patch_embed.x": torch.zeros(2)}, "do not fit"),
        ("w.pth", {}, "expected a state dict"),
        ("w.pth", {"evil": print}, "not safe to read"),
        ("w.pth", {"x": torch.zeros(2), "module.x": torch.zeros(2)}, "with and without a prefix"),
        ("w.pth", {"head.weight": torch.tensor(1.0)}, r"head.weight \[num_classes, C\], got shape \(\)"),
        ("w.pth", {"head.weight": torch.zeros(3)}, r"head.weight \[num_classes, C\]"),
        ("w.pth", {"head.weight": torch.zeros(10**9, 0)}, r"head.weight \[num_classes, C\]"),
        ("w.pth", {"a.bias": torch.tensor([1.0, float("nan")])}, "a.bias has values that are NaN"),
        ("w.pth", {"a.bias": torch.tensor([float("inf")])}, "a.bias has values that are NaN"),
        ("w.pth", {"a.bias": torch.tensor([1e300], dtype=torch.float64)}, "a.bias has values .* infinite in float32"),
        ("w.pth", {"a.bias": torch.zeros(2, dtype=torch.complex64)}, "a.bias is torch.complex64"),
        ("w.pth", {"a.bias": torch.zeros(2, dtype=torch.int64)}, "a.bias is torch.int64"),
        ("w.pth", {"a.bias": torch.eye(2).to_sparse()}, "a.bias is not a plain tensor"),
        ("w.pth", {"a.bias": torch.zeros(2, device="meta")}, "a.bias is not a plain tensor"),
    ],
)
def test_wrong_weights(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message) as error:
        load_model("cast_mini", weights=path)
    assert str(path) in str(error.value)
    assert "weights_only" not in str(error.value)  # no advice to lift the protection


@pytest.mark.parametrize("change", [lambda v: v * float("nan"), lambda v: v.long(), lambda v: v.to(torch.complex64)])
def test_weights_of_the_right_shape_with_the_wrong_numbers(tmp_path, change):
    state = create_model("cast_mini").state_dict()
    for name, value in state.items():
        if name.endswith("head.bias"):
            state[name] = change(value)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w\.safetensors: head\.bias"):
        load_model("cast_mini", weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize("form", ["legacy.pth", "zip.pth", "w.safetensors"])
def test_changed_bytes_raise_nothing_but_value_errors(tmp_path, form):
    state, path = {"a": torch.zeros(3), "head.weight": torch.zeros(2, 2)}, tmp_path / form
    if form.endswith("pth"):
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip.pth")
    else:
        save_file(state, path)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    messages = set()
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = whole.copy()
        broken[rng.integers(0, len(broken), rng.integers(1, 5))] = rng.integers(0, 256)
        path.write_bytes(broken[: rng.integers(1, 2 * len(broken))].tobytes())
        try:
            read_weights(path)
        except ValueError as error:
            messages.add(str(error))
    assert len(messages) > 1
    assert all(str(path) in message for message in messages)
