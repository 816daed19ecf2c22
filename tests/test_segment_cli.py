import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from segment_helpers import FILES, QUICK, left_in, make_scene, read, segment

import cast.results
from cast import Hierarchy, create_model
from cast.cli import main
from cast.data import read_image
from cast.results import result_names
from cast.segment import Settings, segment_image
from cast.weights import load_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="session")
def scene():
    return make_scene()


@pytest.fixture
def photo(tmp_path, scene):
    path = tmp_path / "photos" / "disc.png"
    path.parent.mkdir()
    Image.fromarray(scene).save(path)
    return path


def test_results_of_one_photo(tmp_path, photo, scene, capsys):
    assert segment(photo, "--out", tmp_path / "out") == 0
    out, err = capsys.readouterr()
    folder = tmp_path / "out" / "disc"
    assert out.splitlines() == [str(folder / "panel.png")]
    assert "random" in err
    assert set(left_in(folder)) == FILES
    assert left_in(tmp_path / "out") == ["disc"]

    about, arrays = read(folder)
    counts = arrays["num_segments"].tolist()
    assert counts[1:] == [16, 8, 4, 2]
    labels = arrays["level0"].astype(np.int64)
    for level, count in enumerate(counts):
        stored = arrays[f"level{level}"]
        assert stored.shape == (90, 130)
        np.testing.assert_array_equal(stored, labels)  # the chain of parents
        assert 0 <= stored.min() <= stored.max() < count  # every pixel is labelled
        entry = about["levels"][level]
        assert (entry["num_segments"], sum(entry["areas"])) == (count, 90 * 130)
        assert entry["areas"] == np.bincount(stored.ravel(), minlength=count).tolist()
        assert entry["num_present"] == len(np.unique(stored))
        if level:
            picture = Image.open(folder / f"level{level}.png")
            assert picture.mode == "P"
            np.testing.assert_array_equal(np.asarray(picture), stored)
        if level < 4:
            assert entry["parents"] == arrays[f"parents{level}"].tolist()
            labels = arrays[f"parents{level}"][labels]
    assert "parents" not in about["levels"][4]

    loaded = Hierarchy.load(folder / "hierarchy.npz")
    np.testing.assert_array_equal(loaded.labels(4)[0], arrays["level4"])
    np.testing.assert_array_equal(Image.open(folder / "superpixels.png").size, (130, 90))

    assert about["random_weights"] is True
    assert "mean nothing" in about["classes"]["note"]
    assert about["settings"]["weights"] is None
    top = about["classes"]["top5"]
    assert [entry["probability"] for entry in top] == sorted((e["probability"] for e in top), reverse=True)
    assert len({entry["class_id"] for entry in top}) == 5
    assert about["network_input"] == {"height": 64, "width": 96}
    assert about["region"] == {"top": 0, "left": 0, "bottom": 90, "right": 130}
    assert about["photo"]["path"] == str(photo)
    assert {"torch", "cast-kernels"} <= about["versions"].keys()


def test_superpixels_follow_the_contour(tmp_path, photo, scene):
    assert segment(photo, "--out", tmp_path / "out") == 0
    _, arrays = read(tmp_path / "out" / "disc")
    disc = (scene == (230, 40, 30)).all(-1)
    share = np.bincount(arrays["level0"].ravel(), disc.ravel()) / np.bincount(arrays["level0"].ravel())
    mixed = np.minimum(share, 1 - share) * np.bincount(arrays["level0"].ravel())
    assert mixed.sum() / disc.size < 0.03  # a fixed grid of as many squares leaves three times as much


def test_same_command_same_bytes(tmp_path, photo):
    for name in ("a", "b"):
        torch.manual_seed(hash(name) % 1000)  # the random state of the process does not matter
        assert segment(photo, "--out", tmp_path / name) == 0
    for name in FILES - {"hierarchy.json", "hierarchy.npz"}:
        assert (tmp_path / "a/disc" / name).read_bytes() == (tmp_path / "b/disc" / name).read_bytes()
    (about_a, arrays_a), (about_b, arrays_b) = read(tmp_path / "a/disc"), read(tmp_path / "b/disc")
    assert arrays_a.keys() == arrays_b.keys()
    assert all((arrays_a[name] == arrays_b[name]).all() for name in arrays_a)
    assert {**about_a, "seconds": 0} == {**about_b, "seconds": 0}


def test_loading_random_weights_leaves_the_random_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = load_model("cast_mini", device="cpu").model
    assert torch.equal(torch.get_rng_state(), before)
    again = load_model("cast_mini", device="cpu").model
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not first.training


def test_crop_covers_the_central_square(tmp_path, photo):
    assert segment(photo, "--out", tmp_path / "out", "--crop") == 0
    about, arrays = read(tmp_path / "out/disc")
    region = about["region"]
    assert about["network_input"] == {"height": 64, "width": 64}
    # Resize(73) makes 73 x 105, the crop starts at (4, 20): 4.5 * 90 / 73 and 20.5 * 130 / 105 to whole pixels
    assert region == {"top": 5, "left": 25, "bottom": 84, "right": 104}
    assert arrays["level0"].shape == (region["bottom"] - region["top"], region["right"] - region["left"])
    assert Image.open(tmp_path / "out/disc/superpixels.png").size == (79, 79)


def test_soft_assignments_on_request(tmp_path, photo):
    assert segment(photo, "--out", tmp_path / "out", "--soft") == 0
    _, arrays = read(tmp_path / "out/disc")
    soft = np.eye(len(arrays["parents0"]), dtype=np.float32)
    for level in range(4):
        soft = soft @ arrays[f"assignments{level}"]
        np.testing.assert_allclose(arrays[f"soft{level + 1}"], soft, atol=1e-5)
        np.testing.assert_allclose(arrays[f"soft{level + 1}"].sum(1), 1, atol=1e-5)
    assert Hierarchy.load(tmp_path / "out/disc/hierarchy.npz").assignments is not None


def test_errors_do_not_stop_the_other_photos(tmp_path, photo, capsys):
    folder = photo.parent
    (folder / "a_broken.png").write_bytes(photo.read_bytes()[:300])
    Image.new("RGB", (400, 1)).save(folder / "b_narrow.png")
    Image.new("L", (40, 50), 9).save(folder / "flat ünï.jpg")
    code = segment(folder, tmp_path / "absent", tmp_path / "*.tif", "--out", tmp_path / "out")
    out, err = capsys.readouterr()
    assert code == 1
    assert left_in(tmp_path / "out") == ["disc", "flat ünï"]
    assert len(out.splitlines()) == 2
    report = err[err.index("4 errors:") :].splitlines()[1:]
    assert len(report) == 4
    for fragment in ("absent", "*.tif", "a_broken.png", "b_narrow.png"):
        assert sum(fragment in line for line in report) == 1
    assert "2 photos in" in err


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse names that are not text")
def test_file_names_that_are_not_text(tmp_path, scene, capsys):
    photo = tmp_path / os.fsdecode(b"caf\xe9.png")
    Image.fromarray(scene).save(photo)
    assert segment(photo, "--out", tmp_path / "out") == 0
    folder = tmp_path / "out" / photo.stem
    assert read(folder)[0]["photo"]["path"] == str(photo)
    assert r"caf\udce9" in capsys.readouterr().out


def test_only_errors(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert segment(tmp_path / "empty", "--out", tmp_path / "out") == 1
    assert "no images in the folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_photos_of_the_same_name_do_not_overwrite_each_other(tmp_path, scene):
    for place in ("a/x.png", "b/x.png", "b/x.jpg", "y.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.fromarray(scene[:, :: 1 + len(place) % 2]).save(tmp_path / place)
    photos = [tmp_path / place for place in ("a/x.png", "b", "y.png", "a/../y.png")]  # y.png twice: once is enough
    assert segment(*photos, "--out", tmp_path / "out") == 0
    assert left_in(tmp_path / "out") == ["a_x_png", "b_x_png", "x_jpg", "y"]
    for name, source in (("a_x_png", "a/x.png"), ("b_x_png", "b/x.png"), ("x_jpg", "b/x.jpg")):
        assert read(tmp_path / "out" / name)[0]["photo"]["path"] == str(tmp_path / source)


@pytest.mark.parametrize(
    ("photos", "names"),
    [
        (["a.jpg", "b.jpg"], ["a", "b"]),
        (["a.jpg", "a.png"], ["a_jpg", "a_png"]),
        (["p/a.jpg", "q/a.jpg"], ["p_a_jpg", "q_a_jpg"]),
        (["p/A.jpg", "q/a.jpg"], ["p_A_jpg", "q_a_jpg"]),
        (["r/p/a.jpg", "s/p/a.jpg"], ["r_p_a_jpg", "s_p_a_jpg"]),
        (["a.jpg", "a.png", "a_jpg.png"], None),
        (["p/q_a.jpg", "p_q/a.jpg"], ["q_a", "a"]),
        (["x/p/q_a.jpg", "x/p_q/a.jpg", "y/p/q_a.jpg", "y/p_q/a.jpg"], None),
        (["e\u0301.jpg", "\u00e9.png"], ["e\u0301_jpg", "\u00e9_png"]),
        ([], []),
    ],
)
def test_result_names(photos, names):
    found = result_names([Path(photo) for photo in photos])
    assert len({name.casefold() for name in found}) == len(photos)
    assert all(os.sep not in name for name in found)
    if names is not None:
        assert found == names


def test_a_later_run_keeps_results_of_another_photo(tmp_path, photo, scene, capsys):
    assert segment(photo, "--out", tmp_path / "out") == 0
    before = read(tmp_path / "out/disc")[0]
    other = tmp_path / "elsewhere" / "disc.png"
    other.parent.mkdir()
    Image.fromarray(scene[::-1].copy()).save(other)
    assert segment(other, "--out", tmp_path / "out") == 1
    assert "results of another photo" in capsys.readouterr().err
    assert read(tmp_path / "out/disc")[0] == before


def test_results_are_replaced_by_those_of_new_settings(tmp_path, photo):
    assert segment(photo, "--out", tmp_path / "out", "--crop") == 0
    assert segment(photo, "--out", tmp_path / "out") == 0
    assert read(tmp_path / "out/disc")[0]["settings"]["crop"] is False
    assert left_in(tmp_path / "out") == ["disc"]


@pytest.mark.parametrize("content", ["foreign file", "extra file", "a file", "broken json"])
def test_other_files_are_never_touched(tmp_path, photo, content, capsys):
    target = tmp_path / "out" / "disc"
    target.parent.mkdir()
    if content == "a file":
        target.write_text("mine")
    elif content == "extra file":
        assert segment(photo, "--out", tmp_path / "out") == 0
        (target / "notes.txt").write_text("mine")
    else:
        target.mkdir()
        (target / ("hierarchy.json" if content == "broken json" else "notes.txt")).write_text("[1")
    before = {p: p.read_bytes() for p in target.parent.rglob("*") if p.is_file()}
    assert segment(photo, "--out", tmp_path / "out") == 1
    assert "other files than earlier results" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in target.parent.rglob("*") if p.is_file()} == before


def test_skip_existing(tmp_path, photo, scene, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(cast.results, "segment_image", lambda *arguments: calls.append(1) or segment_image(*arguments))
    arguments = (photo, "--out", tmp_path / "out", "--skip-existing")
    assert segment(*arguments) == 0
    assert segment(*arguments) == 0
    assert len(calls) == 1
    out, err = capsys.readouterr()
    assert "1 already there" in err
    assert out.splitlines() == [str(tmp_path / "out/disc/panel.png")] * 2
    assert segment(*arguments, "--crop") == 0  # other settings
    (tmp_path / "out/disc/panel.png").unlink()  # no longer complete
    assert segment(*arguments, "--crop") == 0
    Image.fromarray(scene[::-1].copy()).save(photo)  # another photo under the same name
    assert segment(*arguments, "--crop") == 0
    assert len(calls) == 4
    assert segment(photo, "--out", tmp_path / "out", "--crop") == 0
    assert len(calls) == 5


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_half_written_stays(tmp_path, photo, scene, monkeypatch, capsys, error):
    Image.fromarray(scene).save(photo.with_name("e.png"))
    draw = cast.results.draw_panel

    def fail_second(image, *arguments, **options):
        if (tmp_path / "out/disc").exists():
            raise error
        return draw(image, *arguments, **options)

    monkeypatch.setattr(cast.results, "draw_panel", fail_second)
    assert segment(photo.parent, "--out", tmp_path / "out") == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert left_in(tmp_path / "out") == ["disc"]
    assert set(left_in(tmp_path / "out/disc")) == FILES
    err = capsys.readouterr().err
    assert ("stopped" if isinstance(error, KeyboardInterrupt) else "No space left") in err


def test_interrupted_replacement_keeps_the_old_results(tmp_path, photo, monkeypatch):
    assert segment(photo, "--out", tmp_path / "out") == 0
    before = read(tmp_path / "out/disc")[0]
    rename = Path.rename

    def interrupted(self, target):
        if self.suffix == ".tmp":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    assert segment(photo, "--out", tmp_path / "out", "--crop") == 130
    assert read(tmp_path / "out/disc")[0] == before
    assert left_in(tmp_path / "out") == ["disc"]


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_to_a_real_process(tmp_path, photo, scene, number, code):
    for n in range(40):
        Image.fromarray(scene).save(photo.with_name(f"n{n}.png"))
    arguments = ("cast", "segment", photo.parent, "--out", tmp_path / "out", *QUICK)
    process = processes.start(processes.module, *arguments, folder=tmp_path)
    while process.is_alive() and "\n" not in (tmp_path / "stdout").read_text():
        time.sleep(0.01)
    os.kill(process.pid, number)
    run = processes.finish(process, tmp_path)
    assert run.returncode == code, run.stderr
    assert "stopped" in run.stderr
    assert "Traceback" not in run.stderr
    assert Path(run.stdout.splitlines()[0]).is_file()
    assert not [name for name in left_in(tmp_path / "out") if name.startswith(".")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--levels", "16,8,4"], "expected 4 levels"),
        (["--size", "7"], "--size: expected a size of 8 to 8192 pixels, got 7"),
        (["--size", "8200"], "--size: expected a size of 8 to 8192 pixels"),
        (["--size", "20", "--crop"], "--size and --crop: a square crop needs a size that is a multiple of 8"),
        (["--superpixels", "12"], "--superpixels 12 are fewer than the 16 segments of the first of --levels"),
        (["--model", "cast_huge"], "unknown model"),
        (["--model", "vit_conv_small"], "vit_conv_small makes no segments"),
        (["--device", "cuda:99"], "CUDA device"),
        (["--device", "abacus"], "expected a device"),
        (["--device", "mps"], "cpu or cuda"),
        (["--weights", "absent.safetensors"], "no such file of weights"),
    ],
)
def test_command_lines_that_cannot_be_followed(tmp_path, photo, arguments, message, capsys):
    assert main(["segment", str(photo), "--out", str(tmp_path / "out"), *QUICK, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or not left_in(tmp_path / "out")


@pytest.mark.parametrize(
    "arguments", [["--size", "9000"], ["--size", "20", "--crop"], ["--superpixels", "12"], ["--levels", "9,8,7"]]
)
def test_settings_are_checked_before_a_model_is_built(tmp_path, photo, monkeypatch, arguments):
    def too_late(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("cast.weights.load_model", too_late)
    assert main(["segment", str(photo), "--out", str(tmp_path / "out"), *QUICK, *arguments]) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--levels", "16,x"],
        ["--levels", ""],
        ["--levels", "2,4,8,16"],
        ["--superpixels", "0"],
        ["--superpixels", "65537"],
        ["--size", "-8"],
        ["--out", ""],
        ["--unknown"],
        [],
    ],
)
def test_command_lines_that_argparse_rejects(tmp_path, photo, arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["segment", *([str(photo), "--out", str(tmp_path)] if arguments else []), *arguments])
    assert stop.value.code == 2
    assert "error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "8"], "--superpixels"),
        (["--size", "16", "--superpixels", "17"], "--superpixels"),
        (["--size", "40", "--superpixels", "64", "--levels", "64,8,4,2"], "the first of --levels = 64 superpixels"),
    ],
)
def test_settings_that_a_photo_cannot_follow(tmp_path, photo, arguments, message, capsys):
    assert main(["segment", str(photo), "--out", str(tmp_path / "out"), *QUICK, *arguments]) == 1
    assert message in capsys.readouterr().err


def test_out_that_cannot_be_a_folder(tmp_path, photo, capsys):
    (tmp_path / "file").write_text("mine")
    assert segment(photo, "--out", tmp_path / "file") == 2
    assert "cannot create the folder" in capsys.readouterr().err
    assert segment(photo, "--out", tmp_path / "file" / "out") == 2
    assert (tmp_path / "file").read_text() == "mine"


def test_weights_are_named_in_the_results(tmp_path, photo, capsys):
    torch.manual_seed(3)
    save_file(create_model("cast_mini", num_classes=0).state_dict(), tmp_path / "w.safetensors")
    assert segment(photo, "--out", tmp_path / "out", "--weights", tmp_path / "w.safetensors") == 0
    assert "random" not in capsys.readouterr().err
    about, _ = read(tmp_path / "out/disc")
    assert about["random_weights"] is False
    assert about["settings"]["weights"]["path"] == str(tmp_path / "w.safetensors")
    assert about["classes"] == {"num_classes": 0, "top5": []}
    red = (read_image(tmp_path / "out/disc/panel.png") == (190, 30, 20)).all(2)
    assert not red.any()


def test_random_weights_are_named_in_the_panel(tmp_path, photo):
    assert segment(photo, "--out", tmp_path / "out") == 0
    red = (read_image(tmp_path / "out/disc/panel.png") == (190, 30, 20)).all(2)
    assert red.sum() > 100


def test_segment_image_for_python_users(scene):
    loaded = load_model("cast_mini", levels=(16, 8, 4, 2), device="cpu")
    result = segment_image(loaded.model, scene, Settings(size=64, num_superpixels=100))
    assert result.hierarchy.size == (64, 96)
    assert result.full_hierarchy().size == (90, 130)
    assert result.logits.shape == (1000,)
    best = result.top_classes(3)
    assert best[0]["class_id"] == int(result.logits.argmax())
    with pytest.raises(ValueError, match="RGB image"):
        segment_image(loaded.model, scene[..., 0])


@pytest.mark.parametrize("name", ["cast_seg_small", "cast_seg_small_pretrain", "cast_segmenter_small_linear"])
def test_segment_image_with_a_dense_model(scene, name):
    """There is a hierarchy; classes only where they are the image's."""
    model = create_model(name, embed_dim=48, depths=(1,) * 4, num_clusters=(16, 8, 4, 2), num_classes=3).eval()
    result = segment_image(model, scene, Settings(size=64, num_superpixels=100))
    assert result.hierarchy.num_segments[1:] == (16, 8, 4, 2)
    assert result.hierarchy.size == (64, 96)
    assert len(result.top_classes()) == (3 if "pretrain" in name else 0)


def test_top_classes_on_ties_and_with_few_classes(scene):
    model = create_model("cast_mini", num_clusters=(16, 8, 4, 2), num_classes=3).eval()
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    best = segment_image(model, scene, Settings(64, num_superpixels=100)).top_classes()
    assert [entry["class_id"] for entry in best] == [0, 1, 2]
    assert best[0]["probability"] == pytest.approx(1 / 3)


def test_demo_runs_in_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--model", "cast_mini"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{Path('cast_demo') / 'panel.png'}\n"
    assert "random" in err
    assert set(left_in(tmp_path / "cast_demo")) == FILES
    assert left_in(tmp_path) == ["cast_demo"]
    about, arrays = read(tmp_path / "cast_demo")
    assert arrays["num_segments"].tolist()[1:] == [64, 32, 16, 8]
    assert about["levels"][1]["num_present"] == 64
    assert main(["demo", "--model", "cast_mini"]) == 0  # again, over its own results
    (tmp_path / "cast_demo/notes.txt").write_text("mine")
    assert main(["demo", "--model", "cast_mini"]) == 1
    assert (tmp_path / "cast_demo/notes.txt").read_text() == "mine"


def test_bar_on_a_terminal(tmp_path, photo, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert segment(photo, photo.parent / "absent.png", "--out", tmp_path / "out") == 1
    err = capsys.readouterr().err
    assert "] 0/1" in err
    assert "disc.png" in err
    assert "1/1 " not in err  # the line per photo is for logs
    assert err.rstrip().splitlines()[-1].strip().startswith("no such file or folder")


def test_help_and_version_do_not_import_torch():
    code = """
import sys
from cast.cli import main
for arguments in (["--help"], ["segment", "--help"], ["demo", "--help"], ["--version"]):
    try:
        main(arguments)
    except SystemExit as stop:
        assert stop.code == 0
    assert "torch" not in sys.modules, f"cast {arguments} imported torch"
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert "segment" in result.stdout
    assert "--skip-existing" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("cast-kernels ")


def test_a_reader_that_stops_listening_is_no_traceback(tmp_path, photo):
    more = photo.with_name("other.png")
    more.write_bytes(photo.read_bytes())
    command = [sys.executable, "-m", "cast", "segment", photo, more, "--out", tmp_path / "out", *QUICK]
    read_end, write_end = os.pipe()
    os.close(read_end)
    run = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write_end)
    assert run.returncode == 141
    assert "Traceback" not in run.stderr
    assert {path.name for path in (tmp_path / "out" / "disc").iterdir()} == FILES
