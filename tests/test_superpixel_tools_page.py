"""What docs/superpixel_tools.md shows, runs, and has the shapes that it says."""

import importlib.util
import re
import shlex

import pytest
import torch
from conftest import ROOT
from PIL import Image

PAGE = (ROOT / "docs" / "superpixel_tools.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line.strip() for line in PAGE.splitlines() if line.startswith("    python ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A photo of the size that the page names, and a film: the same photo, moving."""
    path = tmp_path_factory.mktemp("page")
    with Image.open(ROOT / "cast" / "assets" / "demo.jpg") as photo:
        photo.save(path / "photo.jpg")
        small = photo.resize((150, 100))
    first, *rest = [small.crop((x, 0, x + 120, 100)) for x in (0, 10, 20)]
    first.save(path / "clip.gif", save_all=True, append_images=rest, duration=100)
    return path


@pytest.fixture
def threads():
    """Puts back what a benchmark sets."""
    import cv2

    before = torch.get_num_threads(), cv2.getNumThreads()
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


def test_the_code_runs_and_says_the_truth(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names, checked = {}, 0
    for code in CODE:
        for statement in code.strip().splitlines():
            expression, _, comment = statement.partition("  # ")
            if not comment:
                exec(statement, names)
                continue
            value, checked = eval(expression, names), checked + 1
            said = re.fullmatch(r"(\[[\d, ]*\]|\d+)(?: (\w+))?", comment)
            assert said, statement
            if isinstance(value, torch.Tensor):
                assert str(list(value.shape)) == said[1], statement
                assert str(value.dtype) == f"torch.{said[2]}", statement
            else:
                assert str(value) == said[1], statement
    assert checked == "".join(CODE).count("  # ")
    assert {"outlined.png", "mosaic.png", "labels.png"} <= {path.name for path in folder.iterdir()}
    assert (names["matrix"].sum((1, 2)) == 2 * names["count"]).all()


@pytest.mark.parametrize("command", [line for line in COMMANDS if "examples" in line])
def test_the_example_runs(command, folder, monkeypatch):
    monkeypatch.chdir(folder)
    _, script, *words = shlex.split(command)
    spec = importlib.util.spec_from_file_location("example", ROOT / script)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(words)
    with Image.open("outlined.gif") as animation:
        assert animation.n_frames == 3


@pytest.mark.parametrize("command", [line for line in COMMANDS if "bench" in line])
def test_the_benchmark_runs(command, folder, monkeypatch, capsys, threads):
    from bench.superpixels import main

    monkeypatch.chdir(folder)
    words = shlex.split(command)[3:]
    for option, small in (("--case", "64,30"), ("--images", "2"), ("--turns", "1")):  # quick: nobody reads its figures
        if option in words:
            words[words.index(option) + 1] = small
    main(words)
    assert (folder / words[-1]).stat().st_size
    if words[-1].endswith(".csv"):
        said = capsys.readouterr().out
        for provider in ("OpenCV SEEDS", "scikit-image SLIC", "ours, sequential", "cuda-slic (GPU)"):
            assert provider in said


def test_there_are_commands():
    assert len(COMMANDS) == 3


def test_linked_files_exist():
    for name in re.findall(r"`((?:tests|docs|examples|cast)/[\w./]+)`", PAGE):
        assert (ROOT / name).exists(), name
