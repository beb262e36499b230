"""Bytes that a block of Wan moves beside its products: norms, rotation, zeroing, pooling, gates.

    python -m benchmarks.bounds.passes

The block is what Wan 2.1 1.3B of two layers has more than of one, at 480p: 32,760 tokens, 12 heads
of 128, bf16. Each launch counts its arguments once, whole, as Inductor has allocated them for a
GPU that need not be there. Products and dense attention are other libraries', and not counted.
Appends a line a direction to ``benchmarks/results/passes.jsonl``.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.compiled import pretend

ARCH = 90
KINDS = {"triton_tem": "attention", "triton_": "torch", "_": "ours"}  # by how names begin


def moved(source: str) -> Counter[str]:
    """Of a generated module, the launches of each kind and their bytes."""
    from benchmarks.bounds import buffers
    from benchmarks.compiled import machine_code

    defined = re.findall(r"^(\w+) = async_compile\.triton\(", source, re.M)
    kernels = dict(zip(defined, machine_code.kernels(source), strict=True))
    known, found = buffers.sizes(source), Counter()
    for started, given in re.findall(r"^\s+(\w+)\.run\((.*), stream=", source, re.M):
        name, text = kernels[started]
        if lost := buffers.unknown(given, known):
            raise RuntimeError(f"{name} is given {', '.join(lost)}, of no known size")
        kind = next(kind for begins, kind in KINDS.items() if name.startswith(begins))
        found[f"{kind}_launches"] += 1
        found[f"{kind}_bytes"] += buffers.least_moved(given, text, known)
    return found


def main(results: Path | None = None) -> int:
    try:
        pretend.start(ARCH)  # imports torch
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    warnings.simplefilter("ignore")  # torch's own, about fake tensors
    from benchmarks.compiled import capture
    from benchmarks.compiled.models import wan_case
    from benchmarks.compiled.rows import GRAPHS, versions
    from benchmarks.record import RESULTS, append
    from models.attention import BSA, VSA, Dense

    tile: Any = dict(tile=(3, 5, 4))
    slots: dict[str, Any] = {
        "dense": Dense(),
        "vsa 87.5% x2": VSA(sparsity=0.875, query_tiles=2, adapt=True, **tile),
        "bsa 95.0% x4": BSA(sparsity=0.95, query_tiles=4, **tile),
    }
    for name, slot in slots.items():
        found = []
        for layers in (1, 2):
            sources, error = capture.graphs(wan_case(slot, layers))
            if error is not None:
                raise RuntimeError(f"{name} of {layers} layers gave no graphs") from error
            found.append(list(map(moved, sources)))
        for graph, one, two in zip(GRAPHS, *found, strict=True):
            row = dict(attention=name, graph=graph, **{k: two[k] - one[k] for k in sorted(two)})
            print(row, flush=True)
            append("passes", {**row, **versions()}, results or RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
