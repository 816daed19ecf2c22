"""The GPU's code for SEEDS, compiled for the CPU: teams of real threads give every label of the CPU's own drivers.

tests/emulation/main.cpp makes the images and compares; nothing of it is part of the package.
"""

import shutil
import subprocess

import pytest
from conftest import ROOT

CPU_DRIVERS = ("bins", "grid", "launch", "literal", "pixels_scalar", "plans", "schedule", "sequential")
SOURCES = [ROOT / "tests" / "emulation" / "main.cpp", *(ROOT / "csrc" / f"seeds_{name}.cpp" for name in CPU_DRIVERS)]
COMPILER = shutil.which("g++") or shutil.which("clang++")


def build(folder, *flags):
    program = folder / "emulation"
    command = [COMPILER, "-std=c++20", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-pthread", *flags]
    includes = [f"-I{ROOT / 'csrc'}"]
    run = subprocess.run([*command, *includes, *SOURCES, "-o", program], capture_output=True, text=True, check=False)
    if "cannot find" in run.stderr and "-fsanitize=thread" in flags:
        pytest.skip("this compiler has no thread sanitizer to link")
    assert run.returncode == 0, run.stderr[-4000:]
    return program


@pytest.fixture(scope="module")
def emulation(tmp_path_factory):
    assert COMPILER, "building the package needs a C++ compiler, and so does this test"
    return build(tmp_path_factory.mktemp("emulation"), "-O1")


def assert_equal_labels(program, *arguments):
    run = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    runs, _, rest = run.stdout.partition(" runs, ")
    assert int(runs) > 0
    assert rest == "0 differ\n"


def test_one_thread_gives_the_labels_of_the_cpu(emulation):
    """Photos, noise, constant, two colours, gradients; odd sizes; both qualities; every option; all three drivers."""
    assert_equal_labels(emulation, "alone")


def test_teams_of_threads_give_the_labels_of_the_cpu(emulation):
    """Part of a warp, a whole one, and two."""
    assert_equal_labels(emulation, "teams", 7, 32, 64)


def test_threads_do_not_race(tmp_path):
    """Under the thread sanitizer: between two barriers nothing is written that another thread reads or writes."""
    assert_equal_labels(build(tmp_path, "-O0", "-g", "-fsanitize=thread"), "race", 5)
