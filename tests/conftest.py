"""Fixtures for all tests: devices, poisoned memory, and where the shared figures and photos lie."""

import importlib.util
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
import torch

from cast_kernels import _ext

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # else a pool of processes, each of which imports torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before any kernel module is imported: kernels then run on CPU tensors

    def patch_language_once_a_launch():
        """Triton's interpreter does it anew at each call of a function by a kernel, which took a third of its time."""
        import triton.language as tl
        from triton.runtime import interpreter

        patch, whole = interpreter._patch_lang, SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
        interpreter._patch_lang = lambda fn: patch(whole) if tl.core.is_builtin(tl.load) else None

    if importlib.util.find_spec("triton"):
        patch_language_once_a_launch()

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
KERNEL_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where kernels run: there, or in the interpreter
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]  # grows with the machine instead of skipping


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Random numbers that a test draws without a generator are the same in every run; before fixtures of any scope."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _seed():
    """And the same whether or not the test is the one for which those fixtures were set up."""
    torch.manual_seed(0)


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture
def poison(monkeypatch):
    """Fill fresh memory with NaN (integers: the largest), so that an element which nothing wrote is noticed."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def pretend_gpu(monkeypatch):
    """`pretend_gpu((9, 0), ["80-real", "90"])`: what every device is, and what the extension holds code for."""
    info = _ext.load().build_info()

    def pretend(capability, archs):
        built = SimpleNamespace(build_info=lambda: info | {"cuda": "12.4" if archs else None, "cuda_archs": archs})
        monkeypatch.setattr(_ext, "load", lambda: built)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)

    return pretend


@pytest.fixture(scope="module")
def one_thread():
    """For what is too small to share among threads, which only wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def heeded():
    """Signals as they are by default, whatever pytest was started with."""
    before = {number: signal.signal(number, handler) for number, handler in processes.HANDLERS.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def shared_folder():
    """`shared_folder("fixtures")` -> the folder, or a skip where it is absent."""

    def find(name):
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"needs ../shared/{name}, which is not part of the project")
        return path

    return find
