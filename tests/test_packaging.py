"""The sdist and the wheel are complete, and the build fails with advice rather than with a compiler's last words."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT

from cast_kernels import _ext

NVCC = next((str(Path(d) / "nvcc") for d in os.environ["PATH"].split(os.pathsep) if (Path(d) / "nvcc").exists()), None)
NOT_KEPT = {"CAST_KERNELS_BUILD_DIR": ""}  # what a test builds must not replace what is installed
WEIGHTS = {
    f"cast/assets/imagenette/{name}"
    for name in ("LICENSE", "README.md", "classes.txt", "config.json", "model.safetensors")
}


# Compiles in the time that -O0 takes, and a file that includes nothing of Python once for all versions of Python.
LAUNCHER = """
import hashlib, pathlib, shutil, subprocess, sys

command = sys.argv[1:]
source, options = pathlib.Path(command[-1]), [word for word in command if word[0] == "-"]
if source.parent.name != "csrc":  # CMake tries the compiler
    sys.exit(subprocess.call(command))
output, included = (command[command.index(option) + 1] for option in ("-o", "-MF"))
key = hashlib.sha256(repr((source.name, source.read_bytes(), options)).encode()).hexdigest()
kept = pathlib.Path(__file__).parent / key
if kept.exists():
    shutil.copy(kept, output)
    pathlib.Path(included).write_text(f"{output}: {source}")
    sys.exit()
code = subprocess.call([*command, "-O0"])
if code == 0 and "Python.h" not in pathlib.Path(included).read_text():
    shutil.copy(output, kept)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    """Environment variables with which CMake compiles through `LAUNCHER`."""
    path = tmp_path_factory.mktemp("objects") / "launcher.py"
    path.write_text(LAUNCHER)
    return {"CMAKE_CXX_COMPILER_LAUNCHER": f"{sys.executable};-SE;{path}"}


def other_pythons():
    """Interpreters on this machine that we declare and that can build extensions: the PATH's, and pyenv's."""
    names = [f"python3.{minor}" for minor in range(11, 15)]
    found = [shutil.which(name) for name in names]
    found += [str(path) for name in names for path in Path(sys.base_prefix).parent.glob(f"*/bin/{name}")]
    ask = "import os, sys, sysconfig as s; print(sys.version_info[1], os.path.isdir(s.get_path('include')))"
    usable = {}
    for python in filter(None, found):
        answer = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False).stdout.split()
        if answer[1:] == ["True"] and int(answer[0]) != sys.version_info.minor:
            usable[f"3.{answer[0]}"] = python
    return usable


def tracked(*folders):
    """Files of the project as git knows them, or as they lie in an unpacked sdist."""
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *folders],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode == 0 and listing.stdout:
        return {line for line in listing.stdout.splitlines() if (ROOT / line).exists()}
    files = (p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file())
    return {str(p.relative_to(ROOT)) for p in files if "__pycache__" not in p.parts and p.suffix not in (".so", ".pyd")}


def setup(arguments, tmp_path, **environment):
    """Run setup.py with the build folder out of the way."""
    return subprocess.run(
        [
            sys.executable,
            "setup.py",
            *arguments,
            "--build-temp",
            str(tmp_path / "temp"),
            "--build-lib",
            str(tmp_path / "lib"),
        ],
        cwd=ROOT,
        env=os.environ | NOT_KEPT | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.fixture(scope="module")
def archives(tmp_path_factory, launcher):
    """sdist, and the wheel built from it as pip would: what the sdist lacks, the wheel's build misses."""
    out = tmp_path_factory.mktemp("dist")
    run = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)],
        env=os.environ | NOT_KEPT | launcher | {"CAST_KERNELS_CUDA": "off"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def test_sdist_is_complete(archives):
    with tarfile.open(archives[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = tracked("cast", "cast_kernels", "csrc", "tests", "bench", "docs", "examples")
    expected |= {
        "CMakeLists.txt",
        "LICENSE",
        "NOTICE",
        "CITATION.cff",
        "CHANGELOG.md",
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "setup.py",
        "pyproject.toml",
    }
    assert expected >= WEIGHTS
    assert not {name for name in expected if not name.startswith("bench/results/")} - names


def test_wheel_holds_both_packages_and_nothing_else(archives):
    with zipfile.ZipFile(archives[1]) as archive:
        names = set(archive.namelist())
    code = {name for name in names if ".dist-info/" not in name}
    extension = {name for name in code if name.startswith("cast_kernels/_C.")}
    assert len(extension) == 1
    assert code - extension == tracked("cast", "cast_kernels")
    assert {"cast/py.typed", "cast_kernels/py.typed"} | WEIGHTS <= code


def test_wheel_metadata(archives):
    with zipfile.ZipFile(archives[1]) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
        files = "\n".join(archive.namelist())
        commands = archive.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert "Name: cast-kernels" in metadata
    assert "License-Expression: Apache-2.0 AND LicenseRef-imagenette-weights\n" in metadata
    assert "License-File: cast/assets/imagenette/LICENSE\n" in metadata
    assert ".dist-info/licenses/cast/assets/imagenette/LICENSE\n" in files
    assert "Requires-Python: >=3.11" in metadata
    assert "Requires-Dist: torch>=2.11\n" in metadata
    assert "LICENSE" in files
    assert "NOTICE" in files
    assert "cast = cast.cli:main" in commands
    assert "cast-kernels = cast_kernels.cli:main" in commands


def test_build_needs_no_torch():
    for line in (ROOT / "setup.py").read_text().splitlines():
        assert not line.strip().startswith(("import torch", "from torch"))
    requires = next(
        line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("requires =")
    )
    assert "torch" not in requires


def test_missing_compiler_names_the_package(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("cmake", "ninja"):
        (tools / name).symlink_to(Path(sys.executable).parent / name)
    result = setup(["build_ext"], tmp_path, PATH=str(tools), CXX="")
    assert result.returncode != 0
    assert "apt-get install g++" in result.stderr
    assert "Traceback" not in result.stderr


def test_missing_compiler_of_ones_own_is_named(tmp_path):
    result = setup(["build_ext"], tmp_path, CXX="no-such-compiler -O2")
    assert result.returncode != 0
    assert "tried no-such-compiler" in result.stderr


def test_cuda_on_without_nvcc_fails_loudly(tmp_path):
    clean = os.pathsep.join(d for d in os.environ["PATH"].split(os.pathsep) if not (Path(d) / "nvcc").exists())
    cleared = {"CUDACXX": "", "CUDA_PATH": "", "CUDA_HOME": "", "CUDAToolkit_ROOT": ""}
    hidden = {"CMAKE_IGNORE_PATH": "/usr/local/cuda/bin"}
    result = setup(["build_ext"], tmp_path, PATH=clean, CAST_KERNELS_CUDA="on", **cleared, **hidden)
    assert result.returncode != 0
    assert "no working nvcc" in result.stderr


def test_a_failing_compiler_speaks_for_itself(tmp_path):
    result = setup(["build_ext"], tmp_path, CXX="false", CAST_KERNELS_CUDA="off")
    assert result.returncode != 0
    assert "CMake Error" in result.stderr
    assert "its message stands above" in result.stderr
    assert "Traceback" not in result.stderr


def test_bad_number_of_jobs_is_refused(tmp_path):
    result = setup(["build_ext"], tmp_path, MAX_JOBS="many", CAST_KERNELS_CUDA="off")
    assert result.returncode != 0
    assert "MAX_JOBS must be a whole number of at least 1, got 'many'" in result.stderr


def test_unknown_cuda_mode_is_refused(tmp_path):
    result = setup(["build_ext"], tmp_path, CAST_KERNELS_CUDA="maybe")
    assert result.returncode != 0
    assert "auto, on or off, got 'maybe'" in result.stderr


@pytest.fixture(scope="module")
def cuda_build(tmp_path_factory):
    """(build_info, ptxas' reports) of the extension as built with nvcc for sm_90 and for sm_999, which no nvcc knows.

    That is a build of its own, unless the installed extension is such a one and CAST_KERNELS_BUILD_DIR has its folder.
    """
    if NVCC is None:
        pytest.skip("this machine has no nvcc")
    kept, installed = os.environ.get("CAST_KERNELS_BUILD_DIR"), _ext.load().build_info()
    if kept and installed["cuda_archs"] == ["90"]:
        return installed, ptxas_reports(Path(kept))
    build = tmp_path_factory.mktemp("cuda")
    result = setup(["build_ext"], build, CAST_KERNELS_CUDA="on", CAST_KERNELS_CUDA_ARCHS="90-real;999")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    (extension,) = (build / "lib").rglob("_C.*")
    code = f"""
import importlib.util, json
spec = importlib.util.spec_from_file_location("_C", {str(extension)!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(json.dumps(module.build_info()))
"""
    info = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return json.loads(info), ptxas_reports(build / "temp" / "cmake")


def ptxas_reports(folder):
    return {path.name: path.read_text() for path in (folder / "ptxas").glob("*.txt")}


def test_cuda_build_cuts_the_architectures_to_those_nvcc_knows(cuda_build):
    """And a GPU newer than they are gets PTX."""
    assert cuda_build[0]["cuda_archs"] == ["90"]


def test_cuda_kernels_spill_nothing(cuda_build):
    """What ptxas reported, which the build keeps: no kernel uses the stack, and each can have its threads."""
    reports = cuda_build[1]
    assert set(reports) == {f"{path.name}.txt" for path in (ROOT / "csrc").glob("*.cu")}
    spills, used = r"(\d+) bytes stack frame, (\d+) bytes spill stores.*", r".*Used (\d+) registers"
    kernels = re.findall(rf"Function properties for (\S+)\n\s+{spills}\n{used}", "".join(reports.values()))
    names = "".join(name for name, *_ in kernels)
    for expected in ("rgb_to_lab", "seeds_block", "seeds_cluster", "seeds_step", "seeds_sequential"):
        assert expected in names
    for name, stack, spilled, registers in kernels:
        assert (stack, spilled) == ("0", "0"), f"{name}: {stack} bytes of stack, {spilled} spilled"
        if "seeds_block" in name:
            assert int(registers) * 1024 <= 65536  # of a multiprocessor
        if "seeds_sequential" in name:
            assert int(registers) * 2 * 224 <= 65536  # two images at a time


@pytest.mark.skipif(NVCC is None, reason="this machine has no nvcc")
def test_every_default_architecture_compiles(tmp_path):
    """With little optimisation, as compiling it all in full takes minutes; `cuda_build` is of sm_90, in full."""
    archs = [arch.partition("-")[0] for arch in default_architectures()]
    archs.remove("90")
    sources = sorted((ROOT / "csrc").glob("*.cu"))
    known = subprocess.run([NVCC, "--help"], capture_output=True, text=True, check=True).stdout
    fast = ["--Ofast-compile=max"] if "--Ofast-compile" in known else ["-Xcicc", "-O1", "-Xptxas", "-O1"]  # CUDA 12.9
    flags = ["-std=c++17", "--fmad=false", "-cubin", *fast]

    def compile_one(job):
        source, arch = job
        output = tmp_path / f"{source.stem}_{arch}.cubin"
        run = subprocess.run(
            [NVCC, *flags, f"-arch=sm_{arch}", "-o", output, source], capture_output=True, text=True, check=False
        )
        return source.name, arch, run.returncode, run.stderr

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(compile_one, [(source, arch) for source in sources for arch in archs]))
    assert not [result for result in results if result[2] != 0]


def default_architectures():
    """DEFAULT_ARCHS of setup.py, which CMakeLists.txt repeats."""
    (line,) = [line for line in (ROOT / "setup.py").read_text().splitlines() if line.startswith("DEFAULT_ARCHS")]
    archs = line.split('"')[1]
    assert f'set(CAST_KERNELS_CUDA_ARCHS "{archs}"' in (ROOT / "CMakeLists.txt").read_text()
    return archs.split(";")


@pytest.mark.usefixtures("archives")  # compiled by then, so that what is kept of that stands for it here
def test_extension_builds_for_every_python_that_is_installed(tmp_path, launcher):
    """It needs neither torch nor numpy, so any interpreter with headers can build, load and ask it."""
    import pybind11

    for version, python in other_pythons().items():
        build = tmp_path / version
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": build,
            "CMAKE_MAKE_PROGRAM": Path(sys.executable).parent / "ninja",
            "Python_EXECUTABLE": python,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "CAST_KERNELS_CUDA": "off",
        }
        cmake = Path(sys.executable).parent / "cmake"
        define = [f"-D{name}={value}" for name, value in options.items()]
        for command in ([cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *define], [cmake, "--build", build]):
            run = subprocess.run(command, env=os.environ | launcher, capture_output=True, text=True, check=False)
            assert run.returncode == 0, f"{version}: {run.stdout[-2000:]}{run.stderr[-2000:]}"
        code = "import _C; print(_C.seeds_count(224, 224, 196, 1), _C.build_info()['compiler'])"
        answer = subprocess.run([python, "-c", code], cwd=build, capture_output=True, text=True, check=True).stdout
        assert answer.startswith("196 "), version
