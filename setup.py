"""Builds cast_kernels._C from csrc with CMake and Ninja. torch is not needed, nor imported.

Environment:
    CAST_KERNELS_CUDA        auto (default: CUDA where nvcc is found) | on (fail without nvcc) | off
    CAST_KERNELS_CUDA_ARCHS  CMake architectures, default "80-real;86-real;89-real;90-real;100-real;120"
    CAST_KERNELS_BUILD_DIR   folder in which CMake builds and which is kept, default one that pip removes
    MAX_JOBS                 parallel compile jobs, default bounded by cores and memory
    CXX                      the C++ compiler, default what the PATH offers
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
DEFAULT_ARCHS = "80-real;86-real;89-real;90-real;100-real;120"
GIB_PER_JOB = 2  # one nvcc process with six architectures stays below this

NO_COMPILER = """
cast-kernels compiles a small C++ extension (SEEDS superpixels), and no C++ compiler was found. Install one:
    Debian, Ubuntu   apt-get install g++
    Fedora, RHEL     dnf install gcc-c++
    Alpine           apk add g++
    macOS            xcode-select --install
    Windows          Visual Studio Build Tools, workload "Desktop development with C++"
    conda            conda install -c conda-forge cxx-compiler
or point CXX at the compiler to use.
"""


def require_compiler() -> None:
    """Fail with the name of the package to install, before CMake fails with a longer story."""
    if sys.platform == "win32":
        return  # MSVC is seldom on the PATH; CMake finds it through the registry
    wanted = os.environ.get("CXX")
    candidates = [wanted.split()[0]] if wanted else ["c++", "g++", "clang++"]
    if not any(shutil.which(name) for name in candidates):
        raise SystemExit(f"error: tried {', '.join(candidates)}{NO_COMPILER}")


def cuda_mode() -> str:
    """The value of CAST_KERNELS_CUDA, checked."""
    mode = os.environ.get("CAST_KERNELS_CUDA", "auto").lower()
    if mode not in ("auto", "on", "off"):
        raise SystemExit(f"error: CAST_KERNELS_CUDA must be auto, on or off, got {mode!r}")
    return mode


def max_jobs() -> int:
    """Parallel jobs: MAX_JOBS, else as many as cores and memory allow."""
    if jobs := os.environ.get("MAX_JOBS"):
        if not jobs.isdecimal() or int(jobs) < 1:
            raise SystemExit(f"error: MAX_JOBS must be a whole number of at least 1, got {jobs!r}")
        return int(jobs)
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1
    return max(1, min(os.cpu_count() or 1, memory // (GIB_PER_JOB << 30)))


def tool(name: str) -> str:
    """Cmake or ninja: the build requirement beside this interpreter first, then the PATH."""
    path = shutil.which(name, path=os.path.dirname(sys.executable)) or shutil.which(name)
    if path is None:
        raise SystemExit(f"error: {name} was not found; pip install {name}, or build with build isolation")
    return path


class CMakeBuild(build_ext):
    """build_ext that hands the one extension to CMake."""

    def build_extension(self, ext: Extension) -> None:
        """Configure and build in the temporary folder, and leave the module where setuptools looks for it."""
        import pybind11  # a build requirement, not needed to read this file's metadata

        require_compiler()
        output = Path(self.get_ext_fullpath(ext.name)).parent.resolve()
        build = Path(os.environ.get("CAST_KERNELS_BUILD_DIR") or f"{self.build_temp}/cmake").resolve()
        archs = os.environ.get("CAST_KERNELS_CUDA_ARCHS", DEFAULT_ARCHS).replace(",", ";")
        configure = [
            *(tool("cmake"), "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "--fresh"),
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DCMAKE_BUILD_TYPE={'RelWithDebInfo' if self.debug or os.environ.get('DEBUG') == '1' else 'Release'}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCAST_KERNELS_CUDA={cuda_mode()}",
            f"-DCAST_KERNELS_CUDA_ARCHS={archs}",
        ]
        output.mkdir(parents=True, exist_ok=True)
        build.mkdir(parents=True, exist_ok=True)
        for command in (configure, [tool("cmake"), "--build", str(build), "-j", str(max_jobs())]):
            if subprocess.run(command, check=False).returncode:
                raise SystemExit("error: CMake could not build csrc; its message stands above")


setup(ext_modules=[Extension("cast_kernels._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
