"""The page's section on what precision the choice of tiles needs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from pathlib import Path

from benchmarks.record import NONE, Row, markdown, read


def score_precision(results: Path) -> str:
    """What scores in lower precision choose otherwise: means over layers, and largest regrets."""
    inputs: dict[str, dict[str, list[Row]]] = {}
    for row in read("score_precision", results):
        if row["source"].endswith("q x 64"):  # chooses as q itself does
            continue
        kind = "trained" if row["source"].startswith("trained") else row["source"]
        rules = inputs.setdefault(f"{kind}, {row['tiles']} tiles", {})
        rules.setdefault(row["rule"], []).append(row)
    gaps, lines = [], []
    for name, rules in inputs.items():
        top = rules["TopK"]
        mean = _mean(row["offset"] for row in top)
        gap = [_short(_mean(row["gap"][x] for row in top)) for x in ("median", "p1")]
        count = sum(row["heads"] * row["tiles"] for row in top)
        gaps.append([name, f"{count:,}", f"{mean:.1f}", *gap])
        for precision in top[0]["precisions"]:
            by_top, by_line = (
                [row["precisions"][precision] for row in rules[r]] for r in ("TopK", "Threshold")
            )
            mass = _mean(x["mass"] for x in by_top), max(x["worst_mass"] for x in by_top)
            lines.append(
                [
                    name,
                    precision,
                    _short(_mean(x["error"] for x in by_top)),
                    *_differences(by_top),
                    ", ".join(map(_short, mass)),
                    _percent(_mean(x["ties"] for x in by_top)),
                    _shift(by_top),
                    *_differences(by_line),
                ]
            )
    head = ["queries and keys", "rows", "mean of scores, of either sign", "gap, median", "1 %"]
    found = ["queries and keys", "scores in", "error", "TopK: rows", "tiles", "regret"]
    found += ["mass lost: mean, worst row", "ties", "shift", "Threshold: rows", "tiles", "regret"]
    return f"{markdown(head, gaps)}\n\n{markdown(found, lines)}"


def _differences(found: list[Row]) -> list[str]:
    rows, tiles = (_percent(_mean(x[name] for x in found)) for name in ("rows", "tiles"))
    return [rows, tiles, _short(max(x["regret"] for x in found))]


def _shift(found: list[Row]) -> str:
    """Mean and standard error over layers; - where chance alone could make it large."""
    known = [x for x in found if x["shift"] is not None]
    error = math.hypot(*(x["shift_error"] for x in known)) / max(1, len(known))
    if not known or error > 0.05:
        return NONE
    return f"{_mean(x['shift'] for x in known):.3f} ± {error:.3f}"


def _mean(figures: Iterable[float]) -> float:
    return statistics.fmean(figures)


def _percent(share: float) -> str:
    return f"{_short(100 * share)} %" if share else "0"


def _short(figure: float) -> str:
    """Two digits: 0.0015, 2.1e-7."""
    return f"{figure:.2g}".replace("e-0", "e-") if figure else "0"
