"""What a figure must be read with: processor, GPU, driver, versions, commit, command."""

import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def machine(command: Sequence[str]) -> dict[str, str]:
    """Describe this machine and process, as columns of a table.

    Args:
        command: The command line that the figures come from.
    """
    facts = {
        "cpu": _cpu(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "gpu": "none",
        "driver": "none",
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "triton": _version("triton"),
        "timm": _version("timm"),
        "python": platform.python_version(),
        "os": platform.platform(terse=True),
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "command": shlex.join(command),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        facts |= {
            "gpu": properties.name,
            "sm": f"{properties.major}{properties.minor}",
            "driver": driver.split("\n")[0] or "unknown",
        }
    return facts


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _commit() -> str:
    """The commit of a checkout, marked where files differ from it; of an installed package its version."""
    if named := os.environ.get("CAST_KERNELS_COMMIT"):
        return named
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists() and (commit := _output("git", "-C", str(root), "rev-parse", "--short=12", "HEAD")):
        changed = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
        return f"{commit}+changes" if changed else commit
    from cast_kernels import __version__

    return f"v{__version__}"


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
