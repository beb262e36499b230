"""Compiles the Triton kernels of a generated module to machine code for the pretended GPU."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import triton
from torch._inductor.codecache import PyCodeCache
from triton import knobs


class Kernel(NamedTuple):
    """What ptxas says of a kernel."""

    registers: int  # of a thread
    spilled_bytes: int  # that a thread stores in local memory for want of registers
    stack_bytes: int  # local memory of a thread, arrays that the code itself has among it
    shared_bytes: int  # of a block
    warps: int
    remarks: list[str]  # of lost performance, such as serialised wgmma


class Assembly(NamedTuple):
    """A kernel, and its machine code (SASS) as nvdisasm prints it with encodings.

    Attributes:
        elements: that a program has of Inductor's own kernels, else 0.
    """

    kernel: Kernel
    sass: str
    elements: int


class _Compiled(BaseException):
    """Carries a kernel out of Inductor before it looks for a driver, past its ``except``."""


def kernels(source: str) -> Iterator[tuple[str, str]]:
    """Name and source of every kernel that a generated module defines.

    The sources are free of the names, which count the kernels of a graph: two graphs' equal
    kernels are equal strings.
    """
    definition = r"^\w+ = async_compile\.triton\('(\w+)', '''(.*?)'''"
    for name, text in re.findall(definition, source, re.S | re.M):
        yield name, re.sub(rf"\b{name}\b", "kernel", text)


def constants(text: str) -> dict[str, Any]:
    """The numbers and bools that a template, such as FlexAttention's, was written for: compute
    blocks among them, with stages and warps."""
    written = r"^\s*([A-Z_0-9]+) : tl.constexpr = ([\d.e-]+|True|False)$|^(num_\w+)=(\d+)"
    found = re.findall(written, text, re.M)
    return {a or b: json.loads((x or y).lower()) for a, x, b, y in found}


def compile_kernel(text: str) -> Kernel:
    """Compile one of :func:`kernels` with the first config of its launch."""
    return _compile(text)[0]


def assembly(text: str) -> Assembly:
    """The same with its machine code."""
    kernel, cubin, elements = _compile(text)
    return Assembly(kernel, disassemble(cubin), elements)


def _compile(text: str) -> tuple[Kernel, bytes, int]:
    def compile_and_leave(*args: Any, **kwargs: Any) -> None:
        raise _Compiled(compile_to_binary(*args, **kwargs))

    tuner: Any = vars(PyCodeCache.load(text))["kernel"]
    compile_to_binary, log = triton.compile, io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(triton, "compile", compile_and_leave))
        stack.enter_context(mock.patch.object(knobs.nvidia, "dump_ptxas_log", True))
        stack.enter_context(mock.patch.object(knobs.compilation, "always_compile", True))
        stack.enter_context(contextlib.redirect_stdout(log))
        try:
            tuner._precompile_config(tuner.configs[0])
        except _Compiled as compiled:
            found = compiled.args[0]
            kernel = _kernel(found.metadata, log.getvalue())
            elements = tuner.configs[0].kwargs.get("XBLOCK", 0)
            return kernel, found.asm["cubin"], elements
    raise RuntimeError("Inductor compiled no kernel")


def disassemble(cubin: bytes) -> str:
    """By the nvdisasm that comes with Triton."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-c", "-hex", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _kernel(metadata: Any, log: str) -> Kernel:
    def number(words: str) -> int:
        return max(map(int, re.findall(words.replace("N", r"(\d+)"), log)))

    return Kernel(
        registers=number("Used N registers"),
        spilled_bytes=max(number("N bytes spill stores"), number("N bytes spill loads")),
        stack_bytes=number("N bytes stack frame"),
        shared_bytes=metadata.shared,
        warps=metadata.num_warps,
        remarks=sorted(set(re.findall(r"\(C\d+\) Potential Performance Loss: .*", log))),
    )
