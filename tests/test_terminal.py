import os
import subprocess
import sys

import processes
import pytest
from PIL import Image
from segment_helpers import FILES, QUICK, left_in, make_scene, segment

from cast._terminal import printable
from cast.cli import main


def test_printable_text_stays_as_it_is():
    for text in ("a b/ü.png", "\u3000全角.jpg", "👩\u200d🔬.png", r"back\slash", ""):
        assert printable(text) == text
    assert printable("a\nb\r\x1b[31m\x7f\x9b\u2028") == r"a\nb\r\x1b[31m\x7f\x9b\u2028"


@pytest.mark.skipif(os.name != "posix", reason="other file systems refuse such names")
@pytest.mark.parametrize("bar", [False, True])
def test_control_characters_in_names_do_not_reach_the_terminal(tmp_path, monkeypatch, capsys, bar):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(make_scene()).save(folder / "a\x1b[31m\nb.png")
    (folder / "broken\x1b[2J.png").write_bytes(b"x")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: bar)
    assert segment(folder, f"{folder}/absent\x1b]0;x\x07", "--out", tmp_path / "out\x1b[1m") == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert r"a\x1b[31m\nb" in out
    assert r"broken\x1b[2J" in err
    assert r"absent\x1b]0;x\x07" in err
    assert "\x1b" not in out
    assert "\x1b" not in err.replace("\r\x1b[K", "")  # what the bar itself sends
    assert main(["segment", str(folder), "--out", f"{folder}/broken\x1b[2J.png", *QUICK]) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("photo", ["", "  "])
def test_an_empty_name_is_an_error(tmp_path, monkeypatch, capsys, photo):
    Image.fromarray(make_scene()).save(tmp_path / "disc.png")
    monkeypatch.chdir(tmp_path)
    assert segment(photo, "--out", tmp_path / "out") == 1
    assert ("empty name" if photo == "" else "no such file") in capsys.readouterr().err
    assert left_in(tmp_path) == ["disc.png"]


@pytest.mark.skipif(os.name != "posix", reason="processes as POSIX has them")
@pytest.mark.parametrize("closed", [("stdout",), ("stderr",), processes.STREAMS])
def test_closed_streams(tmp_path, closed):
    Image.fromarray(make_scene()).save(tmp_path / "disc.png")
    arguments = ("cast", "segment", tmp_path / "disc.png", "--out", tmp_path / "out", *QUICK)
    run = processes.run(processes.module, *arguments, folder=tmp_path, closed=closed)
    assert run.returncode == 0, run.stderr
    assert set(left_in(tmp_path / "out/disc")) == FILES
    assert "Traceback" not in run.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
def test_closed_streams_from_the_start(tmp_path):
    """Also while Python and torch start."""
    Image.fromarray(make_scene()).save(tmp_path / "disc.png")
    command = [sys.executable, "-m", "cast", "segment", tmp_path / "disc.png", "--out", tmp_path / "out", *QUICK]
    run = subprocess.run(["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *map(str, command)], check=False)
    assert run.returncode == 0
    assert set(left_in(tmp_path / "out/disc")) == FILES


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_no_stream_in_this_process(tmp_path, name):
    code = f"""
import os, sys
sys.{name} = None
from cast.cli import main
code = main(["segment", {str(tmp_path / "absent")!r}, "--out", {str(tmp_path / "out")!r}])
os.write(1, b"fd 1 is still that of the process")
sys.exit(code)
"""
    run = processes.run(exec, code, {}, folder=tmp_path)
    assert run.returncode == 1, run.stderr
    assert run.stdout == "fd 1 is still that of the process"
    assert ("no such file" in run.stderr) == (name == "stdout")
