"""Bounds in ``benchmarks/results/bounds.jsonl``, for who measures; ``bounds_tables`` shows them."""

from __future__ import annotations

from pathlib import Path

from benchmarks.record import RESULTS, Row, read

_OF_STAGES = {  # kernels of the coarse stage, by the name of what benchmarks.gpu measures
    "pool q, k": ("_pool", "vsa_ungated 87.5% x2", "forward"),
    "pool q, k, v": ("_pool", "vsa 87.5% x2", "forward"),
    "choose TopK x1": ("_select", "vsa 87.5% x1", "forward"),
    "choose TopK x2": ("_select", "vsa 87.5% x2", "forward"),
    "choose Threshold x1": ("_select", "bsa 95.0% x1", "forward"),
    "lists x1": ("_lists", "vsa 87.5% x1", "training"),
    "lists x2": ("_lists", "vsa 87.5% x2", "training"),
    "coarse attention": ("_coarse_", "vsa 87.5% x2", ""),
    "combine": ("_combine_", "vsa 87.5% x2", ""),
    "prune": ("_prune_", "bsa 95.0% x4", ""),
    "restore": ("_restore_", "bsa 95.0% x4", ""),
}


def latest(results: Path = RESULTS) -> list[Row]:
    """Of each layer the rows of its last run."""
    return [row for runs in runs_of(results) for row in runs[-1]]


def runs_of(results: Path = RESULTS) -> list[list[list[Row]]]:
    """Of each layer all runs, first ones first."""
    layers: dict[tuple[str, str], list[list[Row]]] = {}
    for row in read("bounds", results):
        if "method" not in row:
            continue
        runs = layers.setdefault((row["case"], row["method"]), [[]])
        if row["graph"] == "forward" and runs[-1] and runs[-1][-1]["graph"] == "backward":
            runs.append([])
        runs[-1].append(row)
    return list(layers.values())


def searches(results: Path = RESULTS) -> list[Row]:
    """The last row of each config, by the commit that has last searched its case and direction."""
    found: dict[tuple[str, str], dict[tuple, Row]] = {}
    for row in read("bounds", results):
        if "search" in row:
            mine = found.setdefault((row["case"], row["search"]), {})
            if any(x["commit"] != row["commit"] for x in mine.values()):
                mine.clear()
            mine[row["query_tiles"], tuple(row["config"])] = row
    return [row for rows in found.values() for row in rows.values()]


def least_ms(case: str, method: str, step: str, results: Path = RESULTS) -> float | None:
    """The bound of what ``benchmarks.gpu`` measures; None where no row knows it.

    ``fine`` is the FlexAttention kernels of ``vsa``; a kernel of the coarse stage has its own.
    """
    kernel, of, due = _OF_STAGES.get(method, ("", method.replace("fine", "vsa"), ""))
    if kernel and due not in ("", step):
        return None
    graphs = ("forward", "backward") if step == "forward_backward" else (step,)
    if due == "training":
        graphs = ("forward",)
    rows = [x for x in latest(results) if (x["case"], x["method"]) == (case, of)]
    rows = [x for x in rows if x["graph"] in graphs]
    if kernel:  # the backward of a layer also has what it computes again
        rows = [x for x in rows if x["kernel"].startswith(kernel + x["graph"] * (not due))]
    if method.startswith("fine"):
        rows = [x for x in rows if "flex_attention" in x["kernel"]]
    return sum(x["bound_ms"] for x in rows) or None


def shown(case: str, method: str, step: str, ms: float, results: Path = RESULTS) -> str:
    """Beside a measurement: the bound, and how many times as long it took. The bound of a forward
    is that of training's, which makes the lists of its backward, too."""
    least = least_ms(case, method, step, results)
    of = "training's bound" if step == "forward" else "bound"
    return f"  {of} {least:.3f} ms, x{ms / least:.2f}" if least else ""
