"""Ahead-of-time compilation of kernels, which needs no GPU: does it compile, does it spill, does it fit?"""

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# bytes a block may use
SHARED_MEMORY = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}


@dataclass(frozen=True)
class Case:
    """One specialisation of a kernel, as its launcher would make it.

    Attributes:
        kernel: The ``triton.jit`` function.
        signature: Type of each argument that is not a constant, in triton's words ("*bf16", "i32", "fp32"). Pointers
            are taken as 16-byte aligned; integers are not specialised.
        constants: Value of each ``tl.constexpr``.
        options: ``num_warps``, ``num_stages``, ``enable_fp_fusion`` ...
        name: What the case stands for, for messages.
    """

    kernel: Callable
    signature: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True)
class Report:
    """What the assembler made of one compiled case.

    Attributes:
        registers: Of a thread.
        spills: Bytes of a thread's stack; 0 where no instruction goes there, for the assembler may reserve it unused.
        shared: Bytes of shared memory of a block.
    """

    registers: int
    spills: int
    shared: int


def compile_case(case: Case, arch: int) -> Report:
    """Compile for sm_``arch`` and read registers and spills with the cuobjdump that triton ships."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(case.kernel, signature=signature, constexprs=case.constants, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=case.options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = _run(tool, "-res-usage", path)
        found = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
        spills = found["STACK"] + found["LOCAL"]
        if spills and not re.search(r"\b(LDL|STL)\b", _run(tool, "-sass", path)):
            spills = 0
    return Report(found["REG"], spills, max(found["SHARED"], compiled.metadata.shared))


def _run(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
