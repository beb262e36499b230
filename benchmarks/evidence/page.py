"""docs/evidence.md from the rows: tables and pictures, each beside what the papers claim."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean

from benchmarks.evidence import frontier
from benchmarks.evidence.ablations import GROUPS
from benchmarks.evidence.pictures import NAMES, draw_curves, draw_parity, draw_scaling
from benchmarks.gpu.tables import markdown
from benchmarks.record import Row, read

NONE = "Not run yet."


def rows_of(experiment: str, results: Path) -> list[Row]:
    """Those of the latest number of steps of each scale and data, in order."""
    rows = [row for row in read("evidence", results) if row["experiment"] == experiment]
    latest = {(row["scale"], row["data"]): row["steps"] for row in rows}
    return [row for row in rows if latest[row["scale"], row["data"]] == row["steps"]]


def parity(results: Path, images: Path) -> str:
    """A table and a picture for each scale and data."""
    parts = []
    rows = rows_of("parity", results)
    for scale, data in dict.fromkeys((row["scale"], row["data"]) for row in rows):
        mine = [row for row in rows if (row["scale"], row["data"]) == (scale, data)]
        if {row["name"] for row in mine} != set(NAMES):
            continue
        image = images / f"evidence-parity-{scale}-{data}.png"
        draw_parity(image, mine, data)
        parts.append(f"{_what(mine[0])}\n\n{_parity_table(mine)}\n\n{_shown(image)}")
    return "\n\n".join(parts) or NONE


def _what(row: Row) -> str:
    return (
        f"**{row['data']}**, {row['parameters'] / 1e6:.1f}M parameters, {row['tokens']:,} tokens a "
        f"clip, {row['steps']:,} steps, on {row['device']}:"
    )


def _parity_table(rows: list[Row]) -> str:
    of = {name: [row for row in rows if row["name"] == name] for name in NAMES}
    final = {name: [row["validation"][-1][1] for row in mine] for name, mine in of.items()}
    base = {row["seed"]: row["validation"][-1][1] for row in of["dense"]}
    flops = {name: _step_flops(mine[0]) for name, mine in of.items()}
    timed = rows[0]["scale"] == "gpu"  # a CPU has other work beside an experiment of an hour
    lines = []
    for name, mine in of.items():
        losses = final[name]
        apart = [row["validation"][-1][1] / base[row["seed"]] - 1 for row in mine]
        least = min(x["steps"] * _step_flops(x) for y in of.values() for x in y)
        equal = [frontier.loss_at(frontier.curve_of(row), least) for row in mine]
        lines.append(
            [
                NAMES[name],
                f"{mean(x for row in mine for x in row['sparsity']):.1%}",
                f"{mean(losses):.4f} ({min(losses):.4f} to {max(losses):.4f})",
                "-" if name == "dense" else ", ".join(f"{x:+.1%}" for x in apart),
                f"{mean(x for x in equal if x):.4f}",
                f"{flops['dense'] / flops[name]:.2f}",
                f"{of['dense'][0]['attention_flops'] / mine[0]['attention_flops']:.2f}",
            ]
        )
        if timed:
            lines[-1].append(f"{_seconds(of['dense']) / _seconds(mine):.2f}")
    head = ["attention", "sparsity, measured", "validation loss: mean (range)"]
    head += [
        "against dense, seed by seed",
        "loss at equal FLOPs",
        "dense FLOPs / its",
        "of attention",
    ]
    return markdown(head + ["dense time / its"] * timed, lines)


def _seconds(rows: list[Row]) -> float:
    return mean(row["seconds"] for row in rows)


def _step_flops(row: Row) -> int:
    return row["attention_flops"] + row["other_flops"]


def scaling(results: Path, images: Path) -> str:
    """For each number of tokens: the fits, and how many FLOPs are saved for the same loss."""
    rows = [row for row in read("evidence", results) if row["experiment"] == "scaling"]
    parts = []
    for tokens in sorted({row["tokens"] for row in rows}):
        of_tokens = [row for row in rows if row["tokens"] == tokens]
        curves = {
            name: [frontier.curve_of(row) for row in of_tokens if row["name"] == name]
            for name in NAMES
        }
        if not all(curves.values()):
            continue
        every = [flops for mine in curves.values() for curve in mine for flops, _ in curve]
        low, high = min(every), max(every)
        budgets = [low * (high / low) ** (i / 40) for i in range(41)]
        best = {name: frontier.frontier(mine, budgets) for name, mine in curves.items()}
        fits = {name: frontier.power_law(points) for name, points in best.items()}
        image = images / f"evidence-scaling-{tokens}.png"
        points = {name: [p for curve in mine for p in curve] for name, mine in curves.items()}
        draw_scaling(image, points, fits, f"{tokens:,} tokens")
        lines = []
        for name in NAMES:
            a, b = fits[name]
            least, middle, most = frontier.saving(best["dense"], best[name])
            saved = (
                "-"
                if name == "dense" or math.isnan(middle)
                else f"{middle:.2f} ({least:.2f} to {most:.2f})"
            )
            lines.append([NAMES[name], f"{math.exp(a):.3g} * FLOPs^{b:.4f}", saved])
        head = ["attention", "loss", "times fewer FLOPs than dense for the same loss"]
        parts.append(f"**{tokens:,} tokens**\n\n{markdown(head, lines)}\n\n{_shown(image)}")
    return "\n\n".join(parts) or NONE


def ablations(results: Path, images: Path) -> str:
    """One table for each thing that was varied."""
    rows = rows_of("ablations", results)
    found = {row["name"]: row for row in rows}
    if not found:
        return NONE
    parts = [_what(rows[0])]
    for group, variants in GROUPS.items():
        lines = []
        for name, attention in variants.items():
            same = [n for g in GROUPS.values() for n, slot in g.items() if slot == attention]
            row = next((found[n] for n in same if n in found), None)
            if row is not None:
                share = mean(row["sparsity"])
                flops = f"{row['attention_flops'] / 1e9:.1f}"
                lines.append([name, f"{row['validation'][-1][1]:.4f}", f"{share:.1%}", flops])
        head = [group, "validation loss", "sparsity, measured", "attention, GFLOP a step"]
        parts.append(markdown(head, lines))
    return "\n\n".join(part for part in parts if part)


def adaptation(results: Path, images: Path) -> str:
    """Losses before, at the switch and after, and all curves."""
    rows = rows_of("adaptation", results)
    found = {row["name"]: row["validation"] for row in rows}
    if "dense on" not in found:
        return NONE
    base = rows[0]["steps"]
    lines = []
    for name, curve in found.items():
        if name == "dense before":
            continue
        half = min(curve, key=lambda point: abs(point[0] - base / 2))
        lines.append([name, *(f"{x:.4f}" for x in (curve[0][1], half[1], curve[-1][1]))])
    curves = {"dense before": found["dense before"]} | {
        name: [(base + step, loss) for step, loss in curve]
        for name, curve in found.items()
        if name != "dense before"
    }
    image = images / "evidence-adaptation.png"
    draw_curves(image, curves, "training steps")
    head = ["from the same dense weights", "before", "halfway, at the target", "after"]
    return f"{_what(rows[0])}\n\n{markdown(head, lines)}\n\n{_shown(image)}"


def recall(results: Path, images: Path) -> str:
    """What the chosen tiles hold of dense attention, by model, layer and noise level."""
    rows = read("recall", results)
    if not rows:
        return NONE
    latest = [row for row in rows if row["commit"] == rows[-1]["commit"]]
    times = sorted({row["t"] for row in latest})
    lines = []
    for name in NAMES:
        mine = [row for row in latest if row["name"] == name]
        for layer in sorted({row["layer"] for row in mine}):
            cells = []
            for t in times:
                row = next(r for r in mine if (r["layer"], r["t"]) == (layer, t))
                cells.append(" / ".join(f"{mean(row[key]):.0%}" for key in ("held", "best")))
                share = f"{mean(row['share']):.0%}"
            lines.append([NAMES[name], layer + 1, share, *cells])
    head = ["model", "layer", "tiles chosen", *(f"noise {t:g}: held / best" for t in times)]
    pictures = [images / f"evidence-choices-{name}.png" for name in ("vsa", "bsa")]
    shown = "\n".join(_shown(path) for path in pictures if path.exists())
    return f"{markdown(head, lines)}\n\n{shown}"


def _shown(image: Path) -> str:
    return f"![{image.stem.replace('-', ' ')}](images/{image.name})"


SECTIONS: dict[str, Callable[[Path, Path], str]] = {
    "parity": parity,
    "scaling": scaling,
    "ablations": ablations,
    "adaptation": adaptation,
    "recall": recall,
}
