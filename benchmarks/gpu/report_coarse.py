"""Sections of docs/results/ on the coarse stage: what GPUs measured, what follows from shapes."""

from __future__ import annotations

from pathlib import Path

from benchmarks.gpu import list_memory
from benchmarks.gpu import traffic as bytes_moved
from benchmarks.gpu.coarse_tables import coarse_tables, goals
from benchmarks.record import read


def coarse(results: Path) -> str:
    """What GPUs measured, or that none has; a rehearsal's rows are no GPU's."""
    rows = [row for row in read("gpu", results) if row.get("cuda") and row["part"] == "coarse"]
    if not rows:
        return f"**No GPU has run this yet: every figure below is an aim.**\n\n{goals([])}"
    devices = dict.fromkeys(row["device"] for row in rows)
    mine = {name: [row for row in rows if row["device"] == name] for name in devices}
    return "\n\n".join(f"#### {name}\n{coarse_tables(found)}" for name, found in mine.items())


def traffic(results: Path) -> str:
    """What kernels move, by formula: no results are asked."""
    return bytes_moved.table()


def lists(results: Path) -> str:
    """What the lists take, by formula."""
    return list_memory.table()
