"""Rows of the part "coarse" as tables: what the command prints and the page shows."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.gpu.list_memory import GOAL, mb
from benchmarks.gpu.tables import latest
from benchmarks.record import NONE, Row, markdown

LONG = "75k-40x128"
VSA = "vsa 87.5% x{}"
PARTS = {  # what of the whole is mask building and coarse output, by step of the whole
    "forward": [
        ("pool q, k, v", "forward"),
        ("choose TopK x{}", "forward"),
        ("lists x{}", "inference"),
        ("coarse attention", "forward"),
    ],
    "forward_backward": [
        ("pool q, k, v", "forward"),
        ("choose TopK x{}", "forward"),
        ("lists x{}", "training"),
        ("coarse attention", "forward"),
        ("coarse attention", "backward"),
    ],
}


def coarse_tables(rows: list[Row]) -> str:
    """Everything that the rows have to say of the coarse stage."""
    parts = [kernels(rows), masks(rows), wholes(rows), notes(rows), goals(rows)]
    return "\n\n".join(part for part in parts if part)


def timed(rows: list[Row]) -> list[Row]:
    return [row for row in latest(rows, "coarse") if row.get("ms")]


def kernels(rows: list[Row]) -> str:
    """A line for each kernel and step; rates are of what has to pass through memory."""
    head = ["case", "kernel", "step", "through memory, MB", "from cache, MB", "ms", "GB/s"]
    lines = [
        [
            *(row[name] for name in ("case", "method", "step")),
            mb(row["read_bytes"] + row["written_bytes"]),
            mb(row["cached_bytes"]),
            f"{row['ms']:.3f}",
            f"{row['gbps']:.0f}",
            _percent(row["copy_share"]),
        ]
        for row in timed(rows)
        if "read_bytes" in row
    ]
    return markdown([*head, "of copies"], lines)


def masks(rows: list[Row]) -> str:
    """A line for each mask: all of it, compiled."""
    head = ["case", "mask", "for", "ms", "launches", "lists, MB", "peak while built, MB"]
    lines = [
        [
            *(row[name] for name in ("case", "method", "step")),
            f"{row['ms']:.3f}",
            _or_none(row["launches"]),
            mb(row["list_bytes"]),
            mb(row["peak_bytes"]) if row["peak_bytes"] else NONE,
        ]
        for row in timed(rows)
        if "list_bytes" in row
    ]
    return markdown(head, lines)


def wholes(rows: list[Row]) -> str:
    """A line for each layer, with the share of mask building and coarse output in it."""
    head = ["case", "layer, both gates", "step", "ms", "coarse stage, ms", "share"]
    head += ["waits for the GPU"]
    lines = []
    for row in timed(rows):
        if "synchronises" in row:
            part = stage_ms(rows, row)
            waits = {True: "yes", False: "no", None: NONE}[row["synchronises"]]
            shown = [f"{part:.3f}", _percent(part / row["ms"])] if part else [NONE, NONE]
            where = [row[name] for name in ("case", "method", "step")]
            lines.append([*where, f"{row['ms']:.3f}", *shown, waits])
    return markdown(head, lines)


def stage_ms(rows: list[Row], whole: Row) -> float | None:
    """Mask building and coarse output of a whole layer's step; None where a part is not timed."""
    ms = {(r["case"], r["method"], r["step"]): r["ms"] for r in timed(rows)}
    size = whole["method"][-1]
    parts = [ms.get((whole["case"], m.format(size), step)) for m, step in PARTS[whole["step"]]]
    found = [part for part in parts if part is not None]
    return sum(found) if len(found) == len(parts) else None


def notes(rows: list[Row]) -> str:
    return "\n".join(
        f"- {row['case']}, {row['method']}: {row['error']}"
        for row in latest(rows, "coarse")
        if row.get("error")
    )


def goals(rows: list[Row]) -> str:
    """What was aimed at, and what was measured."""
    lines = [[what, aim, found or "not measured"] for what, aim, found in _goals(rows)]
    return markdown(["coarse stage", "aim", "measured"], lines)


def _goals(rows: list[Row]) -> Iterable[tuple[str, str, str]]:
    found = timed(rows)
    masks = [r for r in found if r["method"].startswith("vsa_mask") and r["step"] == "training"]
    counts = [r["launches"] for r in masks if r["launches"]]
    yield "launches from q and k to both lists", "<= 3", f"{max(counts)}" if counts else ""
    for x in (1, 2):
        what = f"mask building and coarse output, share of whole VSA, 87.5 % x{x}, forward, {LONG}"
        whole = _one(found, LONG, VSA.format(x), "forward")
        part = whole and stage_ms(rows, whole)
        yield what, "<= 5 %", _percent(part / whole["ms"]) if whole and part else ""
    pooled = _one(found, LONG, "pool q, k, v", "forward")
    share = pooled["copy_share"] if pooled else None
    yield f"pooling, share of copy bandwidth, {LONG}", ">= 85 %", _percent(share) if share else ""
    for step in ("inference", "training"):
        for x in (1, 2):
            row = _one(found, LONG, f"vsa_mask x{x}", step)
            size = f"{mb(row['list_bytes'])} MB" if row else ""
            if row and row["peak_bytes"]:
                size += f", peak {mb(row['peak_bytes'])} MB"
            what = f"lists of a layer, {step}, x{x}, {LONG}"
            yield what, f"<= {GOAL / 1e6:.0f} MB, peak while built <= twice that", size


def _one(rows: list[Row], case: str, method: str, step: str) -> Row | None:
    key = case, method, step
    return next((r for r in rows if (r["case"], r["method"], r["step"]) == key), None)


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.1f} %"


def _or_none(count: int | None) -> str:
    return NONE if count is None else str(count)
