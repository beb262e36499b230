"""Runs the problems' graphs, as Inductor wrote them for a GPU, on a CPU.

    python -m benchmarks.compiled.run [NAME ...]

One process pretends the GPU and writes the graphs, another runs them in Triton's interpreter, with
NaN in memory that nobody wrote, and holds output and gradients to fp64 by the rule of
``flexsparse.selfcheck.accuracy``: a number up to 1 is right.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[2]
ARCH = 90


class OutOfBounds(RuntimeError):
    """A signal ended the process in which kernels were interpreted."""


def ratios(
    names: Sequence[str] = (), root: Path = ROOT, python: str = sys.executable
) -> dict[str, dict[str, float]]:
    """Of each problem, the error of every result over what it may be.

    Args:
        names: some problems; none are all.
        root: a checkout of the project.
        python: an interpreter, with the torch that writes and the Triton that runs.

    Raises:
        OutOfBounds: a kernel read or wrote outside of the process's memory.
        RuntimeError: a graph could not be made or run; with what the process said last.
    """
    command = [python, "-m", "benchmarks.compiled.run"]

    def finish(*arguments: str, interpret: str) -> str:
        given = {**os.environ, "TRITON_INTERPRET": interpret}
        done = subprocess.run([*command, *arguments], cwd=root, env=given, **_READ)
        if done.returncode < 0:
            raise OutOfBounds(f"signal {-done.returncode} in {' '.join(arguments)}")
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)} failed: {done.stderr[-3000:]}")
        return done.stdout

    with tempfile.TemporaryDirectory() as folder:
        finish("--write", folder, *names, interpret="0")
        rows = finish("--read", folder, interpret="1").splitlines()
    return {row["problem"]: row["ratios"] for row in map(json.loads, rows)}


_READ: Any = dict(capture_output=True, text=True)


def write(folder: Path, names: Sequence[str]) -> None:
    """Write each problem's graphs; in a process that pretends a GPU."""
    import torch

    from benchmarks.compiled import capture
    from benchmarks.compiled.problems import PROBLEMS

    for name in names or PROBLEMS:
        problem = PROBLEMS[name]
        torch.compiler.reset()  # problems of one shape are one function in different closures
        sources, error = capture.graphs(problem.case(), problem.trains)
        if error is not None or len(sources) != 1 + problem.trains:
            said = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}" if error else ""
            raise RuntimeError(f"{name} gave {len(sources)} graphs {said}") from error
        (folder / f"{name}.json").write_text(json.dumps(sources))


def read(folder: Path, name: str) -> dict[str, float]:
    """Run a problem's graphs: the error of each result over what it may be."""
    import torch
    from torch import Tensor

    from benchmarks.compiled import interpret
    from benchmarks.compiled.problems import PROBLEMS
    from flexsparse import reference
    from flexsparse.selfcheck.accuracy import error_ratios, recomputed_attention
    from flexsparse.selfcheck.laws import with_gradients

    problem = PROBLEMS[name]
    sources = json.loads((folder / f"{name}.json").read_text())
    forward, *backward = map(interpret.load, sources)
    *inputs, g = problem.draw()
    with torch.no_grad():
        out, *saved = forward([*map(problem.tiled, inputs), *problem.others])
        found = [out]
        if backward:
            strides = interpret.strides_of_tangent(sources[1])
            grad = torch.empty_strided(out.shape, strides, dtype=out.dtype)
            found += backward[0]([*saved, grad.copy_(problem.tiled(g))])[: len(inputs)]
    compute = problem.oracle(*inputs[:2], *problem.others)

    def due(attend: Any, dtype: torch.dtype) -> list[Tensor]:
        with mock.patch.object(reference, "attention", attend):
            cast = [x.to(dtype) for x in inputs]
            return with_gradients(lambda *x: compute(*x, dtype=dtype), cast, g)[: len(found)]

    exact, dtype = due(reference.attention, torch.float64), out.dtype
    plain = [due(attend, dtype) for attend in (reference.attention, recomputed_attention)]
    raster = [problem.tiling.from_tiles(x) for x in found]
    named = zip(["out", "dq", "dk", "dv", "dgate_coarse", "dgate_fine"], raster)
    return dict(zip(dict(named), error_ratios(raster, plain, exact, [*inputs, g])))


def main(arguments: Sequence[str]) -> int:
    match arguments:
        case ["--write", folder, *names]:
            from benchmarks.compiled import pretend

            pretend.start(ARCH)
            write(Path(folder), names)
        case ["--read", folder]:
            from benchmarks.compiled import interpret

            interpret.prepare()
            for path in sorted(Path(folder).glob("*.json")):
                row = {"problem": path.stem, "ratios": read(Path(folder), path.stem)}
                print(json.dumps(row), flush=True)
        case names:
            from benchmarks.compiled.problems import PROBLEMS

            if unknown := [name for name in names if name not in PROBLEMS]:
                print(f"no problem {unknown}: there are {', '.join(PROBLEMS)}", file=sys.stderr)
                return 2
            for name, found in ratios(names).items():
                print(f"{name:28}", *(f"{what} {ratio:.3f}" for what, ratio in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
