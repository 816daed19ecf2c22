import subprocess
import sys

import pytest

FORBIDDEN = ("triton", "timm", "torchvision", "cv2", "matplotlib", "onnx", "huggingface_hub", "cast_kernels._C")
PROBE = """
import sys, warnings
warnings.simplefilter("error")
import torch
before = {{name.partition(".")[0] for name in sys.modules}} | set(sys.modules)
import {package}
for name in {package}.__all__:
    getattr({package}, name)
loaded = sorted(name for name in {forbidden} if name in sys.modules and name not in before)
assert not loaded, f"importing {package} loaded {{loaded}}"
assert not torch.cuda.is_initialized(), "importing {package} initialised CUDA"
"""


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("package", ["cast_kernels", "cast"])
def test_import_is_free(package):
    result = run(PROBE.format(package=package, forbidden=FORBIDDEN))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("package", ["cast_kernels", "cast"])
def test_import_does_not_ask_cuda(package):
    """Not even whether there is a device: that alone costs a driver call, and forks badly."""
    code = f"""
import torch
def asked(*args, **kwargs): raise AssertionError("CUDA was asked at import")
for name in ("is_available", "device_count", "current_device", "init", "_lazy_init", "get_device_properties"):
    setattr(torch.cuda, name, asked)
import {package}
for name in {package}.__all__:
    getattr({package}, name)
"""
    result = run(code)
    assert result.returncode == 0, result.stderr


def test_torch_alone_does_not_hide_the_answer():
    """If torch itself imported these, the test above could not fail."""
    result = run(f"import sys, torch; print([n for n in {FORBIDDEN[1:]} if n in sys.modules])")
    assert result.stdout.strip() == "[]", result.stdout


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
