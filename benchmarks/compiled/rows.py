"""A compiled case as rows of results: launches, calls outside Triton, machine code."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from math import prod

import torch
import triton

from benchmarks.compiled import capture, machine_code
from benchmarks.compiled.capture import Case
from benchmarks.record import Row, commit

FLEX = re.compile(r"triton_tem_\w*flex_attention")  # its templates, not what is fused around them
GRAPHS = "forward", "backward"
_compile_once = cache(machine_code.compile_kernel)


def rows_of(name: str, case: Case, arch: int, whole: bool = True) -> Iterator[Row]:
    """A row for each of the case's two graphs, or for that of an ``_inference`` case.

    ``kernels`` has FlexAttention's and our own (their names begin with ``_``). ``whole`` compiles
    the others of the graph as well, and has those that spill or have a remark.

    Raises:
        RuntimeError: no graph a direction; with what stopped the compiler as its cause.
    """
    due = GRAPHS[:1] if name.endswith("_inference") else GRAPHS
    sources, error = capture.graphs(case, backward=due == GRAPHS)
    if error is not None or len(sources) != len(due):
        raise RuntimeError(f"{name} gave {len(sources)} graphs, not {len(due)}") from error
    for graph, source in zip(due, sources):
        body = source[source.rfind("def call(") :]
        launches = re.findall(r"^\s+(\w+)\.run\(", body, re.M)
        outside = re.findall(r"(?:extern_kernels|torch\.ops)\.[\w.]+(?=\()", body)
        compiled = [
            {"kernel": kernel, **_compile_once(text)._asdict(), **_written_for(kernel, text)}
            for kernel, text in machine_code.kernels(source)
            if whole or _is_ours(kernel)
        ]
        yield {
            "case": name,
            "graph": graph,
            "arch": f"sm_{arch}",
            "triton_launches": len(launches),
            "flex_launches": len([x for x in launches if FLEX.match(x)]),
            "outside_calls": len(outside),
            "outside": dict(Counter(outside)),
            "kept_ints": _kept_ints(body) if graph == "forward" else 0,
            "kernels": [
                kernel
                for kernel in compiled
                if _is_ours(kernel["kernel"]) or kernel["spilled_bytes"] or kernel["remarks"]
            ],
            **versions(),
        }


def _kept_ints(body: str) -> int:
    """The numbers in int32 that a forward returns: what it keeps of a choice for its backward."""
    made = re.findall(r"(\w+) = empty_strided_cuda\(\(([^)]*)\), \([^)]*\), torch\.int32\)", body)
    sizes = {name: prod(map(int, filter(None, size.split(", ")))) for name, size in made}
    returned = set(re.findall(r"\bbuf\d+\b", body[body.rfind("return (") :]))
    return sum(size for name, size in sizes.items() if name in returned)


def versions() -> Row:
    """Of what compiled a row."""
    return {
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _written_for(kernel: str, text: str) -> Row:
    return {"constants": machine_code.constants(text)} if FLEX.match(kernel) else {}


def _is_ours(kernel: str) -> bool:
    return kernel[0] == "_" or FLEX.match(kernel) is not None
