"""Programs and ONNX models: the outputs of the model they were made of, on a real photo; ops in ONNX."""

import importlib.resources
import json

import numpy as np
import pytest
import torch
from PIL import Image
from small_model import grid_labels, make_model, photo

from cast import create_model
from cast.cli import main
from cast.export import METADATA, compare, export_onnx, export_program, save_program
from cast.models import ImageConfig
from cast_kernels import farthest_point_sample, onnx_translations, references

SMALL = {"embed_dim": 48, "num_heads": 4, "num_classes": 5}


@pytest.fixture(scope="module")
def demo_photo():
    """The photo that the package ships, uint8 [1, 3, 224, 224]."""
    with Image.open(importlib.resources.files("cast") / "assets" / "demo.jpg") as photo:
        pixels = np.array(photo.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


@pytest.fixture
def mini():
    model = create_model("cast_mini", **SMALL, depths=(1, 1), num_clusters=(32, 8)).eval()
    for p in model.parameters():  # large enough that every part shows in the output
        if p.ndim < 2 or p is model.cls_token:
            p.data += 0.2 * torch.randn_like(p)
    return model


def assert_same(differences, tolerance):
    assert {name for name, value in differences.items() if not value <= tolerance} == set(), differences
    assert all(not differences[name] for name in differences if name.startswith(("parents", "label")))


# --- programs


@pytest.mark.parametrize("portable", [False, True])
def test_programs_on_a_photo(mini, demo_photo, tmp_path, portable):
    mini.set_granularity((12, 4))  # sampling is unrolled in a portable program
    program = export_program(mini, portable=portable)
    path = tmp_path / "model.pt2"
    save_program(program, path)
    labels = mini.superpixels(demo_photo)
    differences = compare(path, mini, demo_photo, labels)
    assert_same(differences, 0.0)
    assert list(differences) == ["logits", "embedding", "parents0", "parents1", "label_maps"]
    others = torch.cat([demo_photo.flip(3), demo_photo.flip(2), demo_photo])
    assert_same(compare(path, mini, others, mini.superpixels(others)), 0.0 if not portable else 1e-5)
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    assert any("cast_kernels" in str(n.target) for g in graphs for n in g.nodes) == (not portable)


def test_logits_alone_and_normalised_images(tmp_path):
    model = make_model()
    program = export_program(model, (48, 80), num_segments=20, hierarchy=False, dtype=torch.float32)
    image, labels = torch.randn(3, 3, 48, 80), grid_labels(3, 48, 80)
    output = program.module()(image, labels.int())
    assert list(output) == ["logits"]
    torch.testing.assert_close(output["logits"], model(image, labels, 20))


def test_programs_of_half_precision_models():
    model = make_model(depths=(1, 1), num_clusters=(8, 4)).bfloat16()
    image, labels = photo(3, 64, 64), grid_labels(3, 64, 64).int()
    program = export_program(model, num_segments=16)
    output, expected = program.module()(image, labels), model.forward_hierarchy(image, labels, 16)
    assert output["logits"].dtype == torch.bfloat16
    assert torch.equal(output["logits"], expected.logits)
    assert torch.equal(output["label_maps"], expected.hierarchy.label_maps())


def test_fused_models_go_out_without_batch_norms():
    for model, count in ((make_model(depths=(1,), num_clusters=(8,)), 4), (make_model().fuse(), 0)):
        nodes = export_program(model, hierarchy=False).graph.nodes
        assert sum("batch_norm" in str(node.target) for node in nodes) == count


# --- ONNX


def test_onnx_on_a_photo(mini, demo_photo, tmp_path):
    import onnx

    path = tmp_path / "model.onnx"
    export_onnx(mini, path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]  # one file, nothing beside it
    assert_same(compare(path, mini, demo_photo, mini.superpixels(demo_photo)), 1e-5)
    three = torch.cat([demo_photo.flip(3), demo_photo.flip(2), demo_photo])
    assert_same(compare(path, mini, three, mini.superpixels(three)), 1e-5)
    written = onnx.load(path)
    assert {node.domain for node in written.graph.node} <= {"", "ai.onnx"}  # nothing that a runtime would not know
    assert sum(node.op_type == "Loop" for node in written.graph.node) == 2
    assert len(written.graph.node) < 500
    about = json.loads({p.key: p.value for p in written.metadata_props}[METADATA])
    assert ImageConfig.from_dict(about["config"]) == mini.config
    assert (about["class"], about["size"], about["num_segments"]) == ("Cast", [224, 224], 196)


def test_onnx_of_a_dense_model(tmp_path):
    """Interpolated means of features and positions, unpooling, fused levels."""
    import onnx

    options = SMALL | {"img_size": 64, "depths": (1, 1), "num_clusters": (12, 6), "decoder_depth": 1}
    model = create_model("cast_segmenter_small", **options).eval()
    image, labels = photo(2, 56, 72), grid_labels(2, 56, 72, 12)
    export_onnx(model, tmp_path / "model.onnx", (56, 72), num_segments=30)
    differences = compare(tmp_path / "model.onnx", model, image, labels, num_segments=30)
    assert_same(differences, 2e-5)
    assert {"logits", "cls", "tokens", "parents1", "label_maps"} <= differences.keys()
    operators = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert "ScatterElements" in operators
    assert "ScatterND" not in operators  # see test_sums_of_rows_in_onnx


def test_onnx_of_published_behaviour(tmp_path):
    """Labels beyond the batch's largest take part in nothing, and the graph finds out which these are."""
    model = make_model(depths=(1,), num_clusters=(8,), compat="published")
    export_onnx(model, tmp_path / "model.onnx", num_segments=20)
    for cell in (16, 20):
        given = photo(2, 64, 64), grid_labels(2, 64, 64, cell)
        assert_same(compare(tmp_path / "model.onnx", model, *given, num_segments=20), 1e-5)


@pytest.mark.parametrize(
    ("start", "duplicates", "count", "masked", "dtype"),
    [
        ("mean", "distinct", 5, False, torch.float32),
        (2, "distinct", 7, True, torch.float32),
        (0, "repeat", 6, True, torch.float16),
        ("mean", "repeat", 4, True, torch.float64),
        (3, "distinct", 1, False, torch.float32),
    ],
)
def test_sampling_in_onnx(start, duplicates, count, masked, dtype):
    """Index for index: with ties, tokens that are equal or not numbers, and images without a valid token."""
    import onnxruntime

    class Sample(torch.nn.Module):
        def forward(self, x, mask=None):
            return farthest_point_sample(x, count, start=start, mask=mask, duplicates=duplicates)

    x = torch.randn(3, 7, 4).round().to(dtype)
    x[1], x[2, 3, 1] = 0, torch.nan
    mask = torch.rand(3, 7) > 0.4
    mask[1] = False
    inputs = (x, mask) if masked else (x,)
    with references(keep=["farthest_point_sample"]):
        program = torch.export.export(
            Sample(), inputs, dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in inputs)
        )
    exported = torch.onnx.export(program, custom_translation_table=onnx_translations(), verbose=False)
    session = onnxruntime.InferenceSession(exported.model_proto.SerializeToString())
    for rows in (slice(None), slice(0, 1), slice(1, 3)):
        some = [given[rows] for given in inputs]
        (found,) = session.run(None, {i.name: v.numpy() for i, v in zip(session.get_inputs(), some, strict=True)})
        assert found.tolist() == Sample()(*some).tolist()


@pytest.mark.parametrize(("dim", "alpha"), [(0, 1), (1, 1), (-1, 2)])
def test_sums_of_rows_in_onnx(dim, alpha):
    """``ScatterND`` adds from several threads of onnxruntime at once and loses terms, so the graph has none."""
    import onnxruntime

    class Sum(torch.nn.Module):
        def forward(self, x, index, rows):
            return x.index_add(dim, index, rows, alpha=alpha)

    shape = [4, 5, 6]
    x, index = torch.zeros(shape), torch.randint(0, 4, (9,))
    shape[dim] = len(index)
    inputs = (x, index, torch.randn(shape))
    program = torch.export.export(Sum(), inputs)
    exported = torch.onnx.export(program, custom_translation_table=onnx_translations(), verbose=False)
    assert "ScatterND" not in {node.op_type for node in exported.model_proto.graph.node}
    session = onnxruntime.InferenceSession(exported.model_proto.SerializeToString())
    (found,) = session.run(None, {i.name: v.numpy() for i, v in zip(session.get_inputs(), inputs, strict=True)})
    torch.testing.assert_close(torch.from_numpy(found), Sum()(*inputs))


# --- refusals


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": torch.int32}, TypeError, r"expected dtype uint8 or floating point, got torch\.int32"),
        ({"size": 60}, ValueError, "multiples of 8"),
        ({"size": 8}, ValueError, "SEEDS cannot divide"),
        ({"num_segments": 15}, ValueError, r"at least num_clusters\[0\] = 16"),
    ],
)
def test_bad_arguments(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        export_program(make_model(), **options)
    with pytest.raises(error, match=message):
        export_onnx(make_model(), tmp_path / "model.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_other_modules_are_not_ours_to_export(tmp_path):
    for module in (create_model("cast_mini", features_only=True).eval(), torch.nn.Linear(2, 2).eval()):
        with pytest.raises(TypeError, match=f"expected a model of this package, got {type(module).__name__}"):
            export_onnx(module, tmp_path / "model.onnx")


def test_train_mode(tmp_path):
    with pytest.raises(ValueError, match=r"call eval\(\)"):
        export_program(make_model().train())
    with pytest.raises(ValueError, match=r"call eval\(\)"):
        export_onnx(make_model().train(), tmp_path / "model.onnx")


def test_patches_have_no_segments():
    vit = create_model("vit_conv_small", **SMALL, img_size=64, depth=1).eval()
    with pytest.raises(ValueError, match="ViT is a model of patches"):
        export_program(vit, num_segments=16)
    image = photo(3, 64, 64)
    torch.testing.assert_close(export_program(vit).module()(image)["logits"], vit(image))


def test_an_earlier_file_survives_a_failure(tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"earlier")
    program = torch.export.export(torch.nn.Identity(), (torch.zeros(1),))

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(torch.export, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_program(program, path)
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_only_known_files_are_compared(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.onnx or \.pt2, got"):
        compare(tmp_path / "model.pth", make_model(), photo(1, 64, 64), grid_labels(1, 64, 64))


def test_command_line_errors(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["export", "--out", "model.pth"])
    assert "expected a file that ends in .onnx or .pt2, got 'model.pth'" in capsys.readouterr().err
    assert main(["export", "--out", str(tmp_path / "no" / "model.onnx")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["export", "--model", "cast_mini", "--size", "60", "--out", str(tmp_path / "model.pt2")]) == 2
    assert "multiples of 8, got torch.uint8 of shape (2, 3, 60, 60)" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    import sys

    import cast_kernels

    monkeypatch.delitem(sys.modules, "cast_kernels.onnx_ops", raising=False)
    monkeypatch.delattr(cast_kernels, "onnx_ops", raising=False)
    for name in [n for n in sys.modules if n.partition(".")[0] == "onnxscript"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'cast-kernels\[export\]'"):
        export_onnx(make_model(), tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime: pip install 'cast-kernels\[export\]'"):
        compare(tmp_path / "model.onnx", make_model(), photo(1, 64, 64), grid_labels(1, 64, 64))
