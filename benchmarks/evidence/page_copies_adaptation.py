"""The page's section on a dense model that finds copies and is made sparse."""

from __future__ import annotations

from pathlib import Path
from statistics import mode

from benchmarks.evidence.copies_adaptation import LOSSES
from benchmarks.evidence.page_copies import last_of
from benchmarks.evidence.pictures import NONE, named
from benchmarks.record import markdown, read


def adaptation(results: Path, images: Path) -> str:
    """Of the last task that was tried: losses and what tiles hold before, halfway and at the
    end."""
    rows = [row for row in read("evidence", results) if row["experiment"] == "copies adaptation"]
    if not any(row["name"] == "dense on" for row in rows):
        return NONE
    task, steps = mode((row["data"], row["steps"]) for row in rows)
    mine = last_of([row for row in rows if (row["data"], row["steps"]) == (task, steps)])
    mine.sort(key=lambda row: list(LOSSES).index("".join(row["name"].partition(",")[1:])))
    lines = []
    for row in [row for row in mine if row["name"] != "dense before"]:
        curve = row["validation"]
        half = min(curve, key=lambda point: abs(point[0] - steps / 2))
        losses = " / ".join(f"{loss:.3f}" for _, loss in (curve[0], half, curve[-1]))
        line = [named(row["name"]), losses]
        for key in ("held", "finds"):
            layers = zip(*(seen[key] for _, seen in row.get("watched", [])))
            shares = [" / ".join(f"{x:.0%}" for x in layer) for layer in layers]
            line.append("; ".join(shares) or "-")
        lines.append(line)
    head = ["from the same dense weights", "loss: before / halfway / at the end"]
    head += [
        "of dense attention's weight in the chosen tiles, by layer",
        "chosen tiles with copies",
    ]
    what = f"**{task}**, {steps} steps, then as many again, on {rows[-1]['device']}, one seed:"
    return f"{what}\n\n{markdown(head, lines)}"
