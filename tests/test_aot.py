"""Every kernel compiles for the architectures we name, spills nothing and fits their shared memory; needs no GPU."""

import json
import os
import pkgutil
import subprocess
import sys

import pytest
from conftest import ROOT

import cast_kernels.kernels

MODULES = [m.name for m in pkgutil.iter_modules(cast_kernels.kernels.__path__) if not m.name.startswith("_")]
ARCHITECTURES = (80, 86, 90, 100, 120)

# A process of its own, without the interpreter that the other tests run kernels in.
COMPILE = """
import importlib, json, sys
from cast_kernels.kernels._aot import compile_case
module = importlib.import_module(f"cast_kernels.kernels.{sys.argv[1]}")
for arch in map(int, sys.argv[2:]):
    for case in module.aot_cases(arch):
        report = compile_case(case, arch)
        print(json.dumps([arch, case.name, report.registers, report.stack, report.shared]), flush=True)
"""


@pytest.mark.parametrize("module", MODULES)
def test_compiles_ahead_of_time(module):
    from cast_kernels.kernels._aot import SHARED_MEMORY

    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE, module]
    runs = [
        subprocess.Popen([*command, *map(str, half)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for half in (ARCHITECTURES[::2], ARCHITECTURES[1::2])  # compiling takes minutes: two at a time
    ]
    reports = []
    for run in runs:
        out, errors = run.communicate()
        assert run.returncode == 0, errors.decode()[-4000:]
        reports += [json.loads(line) for line in out.splitlines()]
    assert {arch for arch, *_ in reports} == set(ARCHITECTURES)
    for arch, name, registers, stack, shared in reports:
        assert stack == 0, f"{name} spills on sm_{arch}: {stack} bytes of stack, {registers} registers"
        assert shared <= SHARED_MEMORY[arch], f"{name} needs {shared} bytes of shared memory on sm_{arch}"


def test_there_are_kernels_to_compile():
    assert set(MODULES) >= {"assign_pool", "farthest_point_sample", "segment_mean", "unpool"}
