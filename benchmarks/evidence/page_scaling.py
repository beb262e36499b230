"""The page's section on scaling: how many FLOPs each method takes to a loss."""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks.evidence import frontier
from benchmarks.evidence.pictures import NAMES, NONE, draw_scaling, shown
from benchmarks.record import Row, markdown, read


def scaling(results: Path, images: Path) -> str:
    """For each number of tokens: the fits, and how many FLOPs are saved for the same loss."""
    found: dict[tuple, dict[tuple, Row]] = {}
    for row in read("evidence", results):
        if row["experiment"] == "scaling":
            key = row["scale"].split("-")[0], row["data"], row["tokens"]
            found.setdefault(key, {})[row["scale"], row["name"]] = row
    parts = []
    for (machine, data, tokens), runs in sorted(found.items()):
        sizes = {scale for scale, _ in runs}
        whole = [size for size in sizes if all((size, name) in runs for name in NAMES)]
        whole.sort(key=lambda size: runs[size, "dense"]["parameters"])  # noqa: B023
        if not whole:
            continue
        curves = {name: [frontier.curve_of(runs[size, name]) for size in whole] for name in NAMES}
        every = [flops for mine in curves.values() for curve in mine for flops, _ in curve]
        low, high = min(every), max(every)
        budgets = [low * (high / low) ** (i / 40) for i in range(41)]
        best = {name: frontier.frontier(mine, budgets) for name, mine in curves.items()}
        least = {name: frontier.envelope(mine) for name, mine in curves.items()}
        fits = {name: frontier.power_law(points) for name, points in least.items()}
        image = images / f"evidence-scaling-{machine}-{data}-{tokens}.png"
        draw_scaling(image, curves, least, fits, f"{data}, {tokens:,} tokens")
        lines = []
        for name in NAMES:
            (a, b), mine = fits[name], [runs[size, name] for size in whole]
            low, middle, high = frontier.saving(best["dense"], best[name])
            nothing = name == "dense" or math.isnan(middle)
            saved = "-" if nothing else f"{middle:.2f} ({low:.2f} to {high:.2f})"
            law = "-" if math.isnan(b) else f"{math.exp(a):.3g} * FLOPs^{b:.4f}"
            losses = ", ".join(f"{row['validation'][-1][1]:.4f} ({row['steps']:,})" for row in mine)
            on_it = ", ".join(str(len(set(least[name]) & set(curve))) for curve in curves[name])
            lines.append([NAMES[name], losses, law, on_it, saved])
        million = ", ".join(f"{runs[size, 'dense']['parameters'] / 1e6:.2g}M" for size in whole)
        head = ["attention", f"loss at the end (steps): {million}", "least loss, fitted"]
        head += ["its points, by size", "times fewer FLOPs than dense for the same loss"]
        what = f"**{data}, {tokens:,} tokens**, one seed"
        parts.append(f"{what}\n\n{markdown(head, lines)}\n\n{shown(image)}")
    return "\n\n".join(parts) or NONE
