import json
import subprocess
import sys

import pytest

HEAVY = ("triton", "timm", "torchvision", "cv2", "matplotlib", "skimage", "onnx", "huggingface_hub", "rich")
FORBIDDEN = (*HEAVY, "cast_kernels._C")
LOADED = f"""
print([name for name in {FORBIDDEN[1:]} if name in sys.modules])
"""
FREE = """
before = {{name.partition(".")[0] for name in sys.modules}} | set(sys.modules)
import {package}
for name in {package}.__all__:
    getattr({package}, name)
loaded = sorted(name for name in {forbidden} if name in sys.modules and name not in before)
assert not loaded, f"importing {package} loaded {{loaded}}"
assert not torch.cuda.is_initialized(), "importing {package} initialised CUDA"
"""
ASKS_NOT = """
def asked(*args, **kwargs): raise AssertionError("CUDA was asked at import")
for name in ("is_available", "device_count", "current_device", "init", "_lazy_init", "get_device_properties"):
    setattr(torch.cuda, name, asked)
import {package}
for name in {package}.__all__:
    getattr({package}, name)
"""
REGISTERS_NOTHING = """
import cast_kernels
from torch.utils.flop_counter import flop_registry
assert not [op for op in flop_registry if "cast_kernels" in str(op)]
"""
# Each in a process forked from one that has imported torch, once for all, and nothing else.
FORK = """
import json, os, sys, warnings
warnings.simplefilter("error")
import torch
for code in json.loads(sys.stdin.read()):
    read, write = os.pipe()
    if child := os.fork():
        os.close(write)
        said = open(read).read()
        print(json.dumps([os.waitpid(child, 0)[1], said]), flush=True)
    else:
        os.dup2(write, 1), os.dup2(write, 2)
        exec(code, {"sys": sys, "torch": torch})
        sys.exit()
"""


@pytest.fixture(scope="module")
def run():
    """`run(code)` -> the status and the output of a process that has imported torch alone."""
    packages = ("cast_kernels", "cast")
    free = [FREE.format(package=package, forbidden=FORBIDDEN) for package in packages]
    codes = [LOADED, REGISTERS_NOTHING, *free, *(ASKS_NOT.format(package=package) for package in packages)]
    command = [sys.executable, "-c", FORK]
    result = subprocess.run(command, input=json.dumps(codes), capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return dict(zip(codes, map(json.loads, result.stdout.splitlines()), strict=True)).__getitem__


@pytest.mark.parametrize("package", ["cast_kernels", "cast"])
def test_import_is_free(run, package):
    status, said = run(FREE.format(package=package, forbidden=FORBIDDEN))
    assert status == 0, said


@pytest.mark.parametrize("package", ["cast_kernels", "cast"])
def test_import_does_not_ask_cuda(run, package):
    """Not even whether there is a device: that alone costs a driver call, and forks badly."""
    status, said = run(ASKS_NOT.format(package=package))
    assert status == 0, said


def test_import_registers_no_flop_formulas(run):
    status, said = run(REGISTERS_NOTHING)
    assert status == 0, said


def test_torch_alone_does_not_hide_the_answer(run):
    """If torch itself imported these, the test above could not fail."""
    assert run(LOADED) == [0, "[]\n"]


def test_version_is_one(tmp_path):
    import cast
    import cast_kernels

    assert cast.__version__ == cast_kernels.__version__


def test_missing_extension_says_what_to_do(monkeypatch):
    import cast_kernels
    from cast_kernels import _ext

    _ext.load.cache_clear()
    monkeypatch.setitem(sys.modules, "cast_kernels._C", None)  # what an unbuilt source tree looks like
    monkeypatch.delattr(cast_kernels, "_C", raising=False)
    try:
        with pytest.raises(ImportError, match=r"pip install -e \."):
            _ext.load()
    finally:
        _ext.load.cache_clear()
