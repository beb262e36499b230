"""Rows of ``gpu.jsonl`` as tables, in markdown: what the command prints and the page shows."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.record import NONE, Row, markdown


def tables(rows: list[Row]) -> str:
    """Everything that the rows have to say."""
    parts = [checks(rows), ceilings(rows), times(rows), sweeps(rows), goals(rows)]
    return "\n\n".join(part for part in parts if part)


def latest(rows: list[Row], part: str) -> list[Row]:
    """The last row of each thing measured, in the order in which they were first measured."""
    names = ("case", "method", "step", "backend", "device")
    found = {}
    for row in rows:
        if row["part"] == part:
            key = *(row.get(name) for name in names), str(row.get("options"))
            found[key] = row
    return list(found.values())


def checks(rows: list[Row]) -> str:
    """How many were right, and each that was not."""
    found = [row for part in ("selfcheck", "check", "coarse") for row in latest(rows, part)]
    found = [row for row in found if "ok" in row]
    if not found:
        return ""
    right = sum(row["ok"] is True for row in found)
    lines = [f"{right} of {sum(row['ok'] is not None for row in found)} checks right."]
    for row in found:
        if row["ok"] is False:
            name = row.get("backend") or row["method"]
            why = row.get("error") or row.get("detail") or row.get("ratios")
            lines.append(f"- WRONG: {name}, {row['case']}: {why}")
    return "\n".join(lines)


def ceilings(rows: list[Row]) -> str:
    head = ["device", "torch", "Triton", "bf16 products, TFLOP/s", "copies, GB/s"]
    names = ("device", "torch", "triton", "matmul_tflops", "copy_gbps")
    found = latest(rows, "machine")
    return markdown(head, [[row[name] for name in names] for row in found])


def best_dense(rows: list[Row], case: str, step: str) -> Row | None:
    """The fastest dense attention of a case."""
    found = [r for r in timed(rows) if (r["case"], r["step"]) == (case, step)]
    return min((r for r in found if is_dense(r)), key=lambda r: r["ms"], default=None)


def timed(rows: list[Row]) -> list[Row]:
    return [row for row in latest(rows, "time") if row.get("ms")]


def is_dense(row: Row) -> bool:
    return row["method"].startswith("dense")


def times(rows: list[Row]) -> str:
    """A line for each case and method, beside the fastest dense attention on the same GPU."""
    head = ["case", "tokens", "method", "sparsity"]
    for step in ("forward", "forward and backward"):
        head += [f"{step}, ms", "TFLOP/s", "x dense"]
    head.append("peak memory, x dense")
    by_step = {(r["case"], r["method"], r["step"]): r for r in timed(rows)}
    lines = []
    for case, method in dict.fromkeys(key[:2] for key in by_step):
        found = [by_step.get((case, method, s)) for s in ("forward", "forward_backward")]
        some = next(row for row in found if row)
        line = [case, f"{some['shape'][2]:,}", method, f"{some['sparsity']:.1%}"]
        for row in found:
            ratio = times_dense(rows, row)
            line += [f"{row['ms']:.2f}", f"{row['tflops']:.0f}", ratio] if row else [NONE] * 3
        lines.append([*line, _memory(rows, found[1])])
    notes = [
        f"- {row['case']}, {row['method']}: {row.get('error') or row['left_out']}"
        for row in latest(rows, "time")
        if row.get("error") or row.get("left_out")
    ]
    return "\n\n".join(filter(None, [markdown(head, lines), "\n".join(notes)]))


def times_dense(rows: list[Row], row: Row | None) -> str:
    dense = row and best_dense(rows, row["case"], row["step"])
    return f"{dense['ms'] / row['ms']:.2f}" if row and dense else NONE


def _memory(rows: list[Row], row: Row | None) -> str:
    dense = row and best_dense(rows, row["case"], row["step"])
    if not (row and dense and row["peak_bytes"] and dense["peak_bytes"]):
        return NONE
    return f"{row['peak_bytes'] / dense['peak_bytes']:.2f}"


def sweeps(rows: list[Row], most: int = 4) -> str:
    """Of each target and step, today's options (none) and the fastest ones."""
    found = [row for row in latest(rows, "sweep") if row.get("ms")]
    groups: dict[tuple, list[Row]] = {}
    for row in found:
        groups.setdefault((row["case"], row["method"], row["step"]), []).append(row)
    lines = []
    for key, group in groups.items():
        today = next((row for row in group if not row["options"]), None)
        fastest = sorted(group, key=lambda row: row["ms"])[:most]
        shown = [today, *(row for row in fastest if row is not today)] if today else fastest
        for row in shown:
            options = ", ".join(f"{k}={v}" for k, v in row["options"].items()) or "the tables'"
            gain = f"{today['ms'] / row['ms']:.2f}" if today else NONE
            lines.append([*key, options, f"{row['ms']:.3f}", f"{row['tflops']:.0f}", gain])
    return markdown(["case", "method", "step", "options", "ms", "TFLOP/s", "x the tables'"], lines)


def goals(rows: list[Row]) -> str:
    """What was aimed at, and what was measured."""
    head = ["D = 128, 12 heads, bf16", "aim", "measured"]
    return markdown(
        head, [[what, aim, found or "not measured"] for what, aim, found in _goals(rows)]
    )


def _goals(rows: list[Row]) -> Iterable[tuple[str, str, str]]:
    long = ("61k-12x128", "153k-12x128")
    for case in long:
        what = f"fine stage, forward, 87.5 %, {case}"
        row = _fastest(rows, case, "fine 87.5%", "forward")
        dense = best_dense(rows, case, "forward")
        found = ""
        if row and dense:
            found = f"{row['tflops']:.0f} TFLOP/s, {_share(row['tflops'], dense['tflops'])}"
        yield what, ">= 400 TFLOP/s, >= 85 % of the best dense rate", found
    for case in long:
        ours, dense = (_backward_rate(rows, case, kind) for kind in ("fine 87.5%", "dense"))
        found = _share(ours, dense) if ours and dense else ""
        yield f"fine stage, backward, 87.5 %, {case}", ">= 75 % of the best dense rate", found
    for case in long:
        for step in ("forward", "forward_backward"):
            found = _ratio(rows, case, "vsa 87.5%", step)
            yield f"whole VSA, 87.5 %, {step.replace('_', ' and ')}, {case}", ">= 6x", found
    found = _ratio(rows, long[1], "bsa 95.0%", "forward_backward")
    yield f"whole BSA, 95 %, forward and backward, {long[1]}", ">= 15x", found
    for case in long:
        found = _memory(rows, _fastest(rows, case, "vsa_ungated", "forward_backward"))
        what = f"peak memory without gates, forward and backward, {case}"
        yield what, "<= 1.1x dense", found.replace(NONE, "")


def _fastest(rows: list[Row], case: str, kind: str, step: str) -> Row | None:
    found = [r for r in timed(rows) if (r["case"], r["step"]) == (case, step)]
    mine = [r for r in found if r["method"].startswith(kind)]
    return min(mine, key=lambda r: r["ms"], default=None)


def _ratio(rows: list[Row], case: str, kind: str, step: str) -> str:
    found = times_dense(rows, _fastest(rows, case, kind, step))
    return "" if found == NONE else f"{found}x"


def _share(ours: float, dense: float) -> str:
    return f"{ours / dense:.0%} of dense"


def _backward_rate(rows: list[Row], case: str, kind: str) -> float | None:
    """The best TFLOP/s of a backward alone, which does 2.5 times the forward's FLOPs."""
    mine = [r for r in timed(rows) if r["case"] == case and r["method"].startswith(kind)]
    ms = {(r["method"], r["step"]): r["ms"] for r in mine}
    rates = []
    for row in mine:
        both = ms.get((row["method"], "forward_backward"))
        if row["step"] == "forward" and both and both > row["ms"]:
            rates.append(2.5 * row["flops"] / (both - row["ms"]) / 1e9)
    return max(rates, default=None)
