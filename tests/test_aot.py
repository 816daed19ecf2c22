"""Kernels compile for the architectures we name, spill nothing and fit their shared memory; needs no GPU.

For sm_90 that is all that CAST launches, for the others one case of each kernel, and the one of most shared memory. The
whole table takes minutes: ``python -m bench.tune --check``.
"""

import json
import os
import pkgutil
import subprocess
import sys

import pytest
from conftest import ROOT

import cast_kernels.kernels
from cast_kernels.kernels._aot import SHARED_MEMORY

MODULES = [m.name for m in pkgutil.iter_modules(cast_kernels.kernels.__path__) if not m.name.startswith("_")]
WHOLE = 90
ARCHITECTURES = (WHOLE, 80, 100, 120)

# Processes of their own, without the interpreter that the other tests run kernels in.
COMPILE = """
import importlib, json, sys
from cast_kernels.kernels._aot import compile_case
whole, *modules = sys.argv[1].split(",")
for arch in sys.argv[2].split(","):
    for name in modules:
        cases = importlib.import_module(f"cast_kernels.kernels.{name}").aot_cases(int(arch))
        if arch != whole:
            first = {case.kernel.fn.__name__: case for case in reversed(cases)}.values()
            cases = [*first, *(case for case in cases if "bf16 256 -> 8" in case.name)]  # shared memory for all tokens
        for case in cases:
            report = compile_case(case, int(arch))
            print(json.dumps([name, int(arch), case.name, report.registers, report.spills, report.shared]), flush=True)
"""


@pytest.fixture(scope="module")
def reports():
    """What the assembler said, by module: (architecture, case, registers, bytes spilled, bytes shared)."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE, ",".join([str(WHOLE), *MODULES])]
    runs = [
        subprocess.Popen([*command, share], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for share in (str(WHOLE), ",".join(str(arch) for arch in ARCHITECTURES if arch != WHOLE))
    ]
    found = {module: [] for module in MODULES}
    for run in runs:
        out, errors = run.communicate()
        assert run.returncode == 0, errors.decode()[-4000:]
        for module, *report in map(json.loads, out.splitlines()):
            found[module].append(report)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_compiles_ahead_of_time(reports, module):
    assert {arch for arch, *_ in reports[module]} == set(ARCHITECTURES)
    for arch, name, registers, spills, shared in reports[module]:
        assert spills == 0, f"{name} spills {spills} bytes on sm_{arch}, {registers} registers"
        assert shared <= SHARED_MEMORY[arch], f"{name} needs {shared} bytes of shared memory on sm_{arch}"


def test_there_are_kernels_to_compile():
    assert set(MODULES) >= {"assign_pool", "farthest_point_sample", "segment_mean", "unpool"}
