"""The page's section on selection: what the chosen tiles hold, and how they look."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from benchmarks.evidence.pictures import NAMES, NONE, shown
from benchmarks.record import markdown, read

CHOICES = (
    "What one tile of a clip looks at, that in which most moves. The slices of tiles in time stand "
    "side by side, each by its middle frame."
)


def recall(results: Path, images: Path) -> str:
    """What the chosen tiles hold of dense attention, by model, layer and noise level."""
    rows = read("recall", results)
    if not rows:
        return NONE
    of = ("data", "scale", "steps")
    mine = {
        (row["name"], row["layer"], row["t"]): row
        for row in rows
        if all(row[key] == rows[-1][key] for key in of)
    }
    times = sorted({t for _, _, t in mine})
    lines = []
    for name in NAMES:
        for layer in sorted({layer for n, layer, _ in mine if n == name}):
            at = [mine[name, layer, t] for t in times]
            shares = f"{mean(x for row in at for x in row['share']):.1%}"
            cells = [f"{_heads(row['held'])}; {_heads(row['best'])}" for row in at]
            lines.append([NAMES[name], layer + 1, shares, *cells])
    head = ["model", "layer", "tiles chosen", *(f"noise {t:g}: held; best" for t in times)]
    pictures = {name: images / f"evidence-choices-{name}.png" for name in ("vsa", "bsa")}
    drawn = "\n\n".join([CHOICES, *(f"{NAMES[x]}:\n\n{shown(y)}" for x, y in pictures.items())])
    last = rows[-1]
    what = (
        f"**{last['data']}**, {last['steps']:,} steps, {last['clips']} clips, each head by itself:"
    )
    return f"{what}\n\n{markdown(head, lines)}\n\n{drawn}"


def _heads(values: list[float]) -> str:
    """Of two heads both, of more the range."""
    ends = sorted(values)[:: max(1, len(values) - 1)]
    joined = (", " if len(values) < 3 else " to ").join(f"{x:.0%}" for x in ends)
    return joined
