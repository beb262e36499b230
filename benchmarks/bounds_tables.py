"""The tables of docs/results/bounds.md."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from benchmarks.gpu.cases import settings
from benchmarks.known_bounds import latest, runs_of, searches
from benchmarks.record import NONE, RESULTS, Row, markdown, read

DENSE = "dense_flex"
MAIN = DENSE, "vsa 87.5% x2", "vsa 87.5% x1", "bsa 95.0% x4"  # whose kernels the page shows


def ratios(results: Path = RESULTS, graphs: tuple[str, ...] = ("forward", "backward")) -> str:
    """A line for each setting: the bound of dense attention, and how many times that of each layer
    it is."""
    rows = latest(results)
    methods = _methods(rows)
    lines = []
    for setting in settings():
        bounds = [_sum(rows, setting.key, method, graphs) for method in methods]
        if any(bounds):
            dense, *ours = bounds
            each = [f"{dense / ms:.1f}" if dense and ms else NONE for ms in ours]
            size = f"{setting.tiling.tokens:,}"
            lines.append([setting.key, size, f"{dense:.1f}" if dense else NONE, *each])
    return markdown(["setting", "tokens", "dense, ms at least", *methods[1:]], lines)


def _methods(rows: Iterable[Row]) -> list[str]:
    """Dense attention, VSA, BSA, each with its largest blocks first."""
    return [DENSE, *sorted({row["method"] for row in rows} - {DENSE}, reverse=True)]


def layers(results: Path = RESULTS, case: str = "153k-12x128") -> str:
    """A line for each layer of a case: the bounds of its forward and backward, and dense
    attention's by them."""
    head = ["method"]
    for step in ("forward", "forward and backward"):
        head += [f"{step}, ms at least", "of it FlexAttention", "dense / this"]
    rows = [row for row in latest(results) if row["case"] == case]
    lines = []
    for method in _methods(rows) if rows else ():
        line = [method]
        for graphs in (("forward",), ("forward", "backward")):
            mine = _sum(rows, case, method, graphs)
            flex = _sum(rows, case, method, graphs, "flex_attention")
            dense = _sum(rows, case, DENSE, graphs)
            line += [f"{mine:.2f}", f"{flex:.2f}", f"{dense / mine:.2f}" if dense else NONE]
        lines.append(line)
    return markdown(head, lines)


def _sum(rows: Iterable[Row], case: str, method: str, graphs: tuple[str, ...], name: str = ""):
    mine = [r for r in rows if (r["case"], r["method"]) == (case, method) and r["graph"] in graphs]
    return sum(row["bound_ms"] for row in mine if name in row["kernel"])


def kernels(results: Path = RESULTS, case: str = "153k-12x128") -> str:
    """A line for each kernel of a case's ``MAIN`` layers that takes a hundredth of its layer."""
    head = ["method", "kernel", "blocks x warps", "registers", "ms at least", "binds", "apart"]
    head += ["tensor cores", "issue", "half-rate", "exp2", "shared memory", "L2", "memory"]
    names = "tensor cores", "issue", "half-rate units", "exp2", "shared memory", "L2", "memory"
    lines = []
    mine = [x for x in latest(results) if x["case"] == case and x["method"] in MAIN]
    for row in mine:
        whole = _sum(mine, case, row["method"], (row["graph"],))
        if row["bound_ms"] < whole / 100:
            continue
        cycles = [f"{row['cycles'][name] / 1e3:,.0f}" for name in names]
        figures = [f"{row['bound_ms']:.2f}", row["binds"], f"{row['apart_ms']:.2f}"]
        fits = f"{row['blocks']} x {row['warps']}"
        lines.append(
            [row["method"], short(row["kernel"]), fits, row["registers"], *figures, *cycles]
        )
    return markdown(head, lines)


def changes(results: Path = RESULTS, case: str = "153k-12x128") -> str:
    """A line for each kernel of a case's ``MAIN`` layers that issues otherwise than in the first
    run of its layer; of others than FlexAttention's those with other registers, since what is
    counted of them has changed."""
    head = ["method", "kernel", "issued for 64 x 64 scores", "registers"]
    head += ["issue", "half-rate", "shared memory", "ms at least", "apart"]
    lines = []
    runs = [x for x in runs_of(results) if len(x) > 1 and x[0][0]["case"] == case]
    for first, *_, last in runs:
        if first[0]["method"] not in MAIN:
            continue
        before = {short(row["kernel"]): row for row in first}
        for row in last:
            name = short(row["kernel"])
            old = before.get(name, row)
            ratio = row["cycles"]["issue"] / max(1, old["cycles"]["issue"])
            same = old["registers"] == row["registers"] and not name.startswith("FlexAttention")
            if name.startswith("pointwise") or same or 0.98 < ratio < 1.02:
                continue
            pairs = [[_issued(x), x["registers"], *_thousands(x), *_ms(x)] for x in (old, row)]
            lines.append(
                [row["method"], name, *(f"{a} to {b}" if a != b else a for a, b in zip(*pairs))]
            )
    return markdown(head, lines)


def _issued(row: Row) -> str:
    """By FlexAttention's backward for dQ, and for dK and dV."""
    return " + ".join(map(str, row.get("issued", []))) or NONE


def _thousands(row: Row) -> list[str]:
    names = "issue", "half-rate units", "shared memory"
    return [f"{row['cycles'][name] / 1e3:,.0f}" for name in names]


def _ms(row: Row) -> list[str]:
    return [f"{row[name]:.2f}" for name in ("bound_ms", "apart_ms")]


def passes(results: Path = RESULTS) -> str:
    """A line for each attention of ``benchmarks.bounds.passes``, a cell for each direction and kind
    of launches: as they were first, and as they are."""
    kinds = {"torch": "by torch", "ours": "ours", "attention": "FlexAttention"}
    runs: dict[tuple[str, str], list[Row]] = {}
    for row in read("passes", results):
        runs.setdefault((row["attention"], row["graph"]), []).append(row)
    lines = []
    for name in dict.fromkeys(name for name, _ in runs):
        line = [name]
        for graph in ("forward", "backward"):
            for kind in kinds:
                each = [
                    f"{row[f'{kind}_bytes'] / 1e9:.2f} ({row[f'{kind}_launches']})"
                    for row in runs[name, graph]
                    if f"{kind}_bytes" in row
                ]
                line.append(" to ".join(dict.fromkeys([*each[:1], *each[-1:]])) or NONE)
        lines.append(line)
    head = [f"{graph}, {kind}" for graph in ("forward", "backward") for kind in kinds.values()]
    return markdown(["GB (launches) of a block", *head], lines)


def short(kernel: str) -> str:
    """FlexAttention's kernels have long names."""
    if kernel.startswith("triton_tem"):
        return "FlexAttention, " + ("backward" if "backward" in kernel else "forward")
    if kernel.startswith("triton_per"):
        return "sum of dO x O"
    return f"`{kernel}`" if kernel.startswith("_") else "pointwise, by torch"


def configs(results: Path = RESULTS) -> str:
    """A line for each config that was searched and compiled without spilling."""
    head = [
        "case",
        "direction",
        "query tiles",
        "blocks; stages, warps",
        "blocks on a multiprocessor",
    ]
    head += ["registers", "spilled", "ms at least", "binds", "apart"]
    lines = []
    for row in searches(results):
        if "error" in row:
            continue
        sizes = row["config"][:2] if row["search"] == "forward" else row["config"][:4]
        rest = row["config"][len(sizes) :]
        tma = ", TMA" if rest[2:] == [True] else ""
        blocks = ", ".join(f"{a} x {b}" for a, b in zip(sizes[::2], sizes[1::2]))
        lines.append(
            [row["case"], row["search"], row["query_tiles"], f"{blocks}; {rest[0]}, {rest[1]}{tma}"]
            + [row["blocks"], row["registers"], row["spilled_bytes"]]
            + [f"{row['bound_ms']:.1f}", row["binds"], f"{row['apart_ms']:.1f}"]
        )
    return markdown(head, lines)
