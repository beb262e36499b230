"""The page's sections on the coarse stage: what GPUs measured, and what follows from shapes."""

from __future__ import annotations

from pathlib import Path

from benchmarks.gpu import list_memory
from benchmarks.gpu import traffic as bytes_moved
from benchmarks.gpu.coarse_tables import coarse_tables, goals
from benchmarks.gpu.tables import markdown
from benchmarks.record import read


def coarse(results: Path) -> str:
    """What GPUs measured, or that none has; a rehearsal's rows are no GPU's."""
    rows = [row for row in read("gpu", results) if row.get("cuda") and row["part"] == "coarse"]
    if not rows:
        return f"**No GPU has run this yet: every figure below is an aim.**\n\n{goals([])}"
    devices = dict.fromkeys(row["device"] for row in rows)
    mine = {name: [row for row in rows if row["device"] == name] for name in devices}
    return "\n\n".join(f"#### {name}\n{coarse_tables(found)}" for name, found in mine.items())


def kernels(results: Path) -> str:
    """Registers, spilled bytes and shared memory of our own kernels, in the layers compiled."""
    layers = read("lowering", results)
    rows = [(r, k) for r in layers for k in r["kernels"] if k["kernel"][0] == "_"]
    figures = "registers", "spilled_bytes", "shared_bytes"
    archs = list(dict.fromkeys(r["arch"] for r, _ in rows))
    lines = []
    for name in dict.fromkeys(k["kernel"] for _, k in rows):
        mine = [(r, k) for r, k in rows if k["kernel"] == name]
        line = [f"`{name}`", len({r["case"] for r, _ in mine})]
        for arch in archs:
            found = [k for r, k in mine if r["arch"] == arch]
            most = (max(k[x] for k in found) for x in figures) if found else ()
            line.append(" / ".join(f"{x:,}" for x in most) or "-")
        lines.append(line)
    return markdown(["kernel", "layers", *archs], lines)


def traffic(results: Path) -> str:
    """What kernels move, by formula: no results are asked."""
    return bytes_moved.table()


def lists(results: Path) -> str:
    """What the lists take, by formula."""
    return list_memory.table()
