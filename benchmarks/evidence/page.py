"""docs/evidence.md from the rows: tables and pictures, each beside what the papers claim."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

from benchmarks.evidence import flop_tables, frontier, page_copies, page_copies_adaptation
from benchmarks.evidence.ablations import GROUPS
from benchmarks.evidence.page_recall import recall
from benchmarks.evidence.page_scaling import scaling
from benchmarks.evidence.pictures import (
    NAMES,
    NONE,
    draw_ablations,
    draw_adaptation,
    draw_parity,
    named,
    shown,
)
from benchmarks.record import Row, markdown, read


def rows_of(experiment: str, results: Path, names: Sequence[str] = ()) -> list[list[Row]]:
    """The rows of each scale and data by themselves, of the number of steps that has most of them.

    Of a run that was done more than once the last; with `names`, of seeds that have them all.
    """
    found: dict[tuple, dict[tuple, Row]] = {}
    for row in read("evidence", results):
        if row["experiment"] == experiment:
            runs = found.setdefault((row["scale"], row["data"], row["steps"]), {})
            runs[row["name"], row["seed"]] = row
    most: dict[tuple, list[Row]] = {}
    for (scale, data, _), runs in found.items():
        rows = [r for r in runs.values() if all((name, r["seed"]) in runs for name in names)]
        if len(rows) >= max(1, len(most.get((scale, data), []))):
            most[scale, data] = rows
    return list(most.values())


def parity(results: Path, images: Path) -> str:
    """A table and a picture for each scale and data."""
    parts = []
    for rows in rows_of("parity", results, list(NAMES)):
        image = images / f"evidence-parity-{rows[0]['scale']}-{rows[0]['data']}.png"
        draw_parity(image, rows, rows[0]["data"])
        seeds = len({row["seed"] for row in rows})
        what = f"{_what(rows[0])} {seeds} seed{'s' * (seeds > 1)}:"
        parts.append(f"{what}\n\n{_parity_table(rows)}\n\n{shown(image)}")
    return "\n\n".join(parts) or NONE


def _what(row: Row) -> str:
    return (
        f"**{row['data']}**, {row['parameters'] / 1e6:.1f}M parameters, {row['tokens']:,} tokens a "
        f"clip, {row['steps']:,} steps, on {row['device']},"
    )


def _parity_table(rows: list[Row]) -> str:
    of = {name: [row for row in rows if row["name"] == name] for name in NAMES}
    final = {name: [row["validation"][-1][1] for row in mine] for name, mine in of.items()}
    flops = {name: mean(map(_step_flops, mine)) for name, mine in of.items()}
    alone = {name: mean(row["attention_flops"] for row in mine) for name, mine in of.items()}
    least = min(row["steps"] * _step_flops(row) for row in rows)
    timed = rows[0]["scale"] != "cpu"  # which has other work beside an experiment of an hour
    seconds = {name: mean(row.get("step_seconds", 0) for row in x) for name, x in of.items()}
    lines = []
    for name, mine in of.items():
        losses = final[name]
        equal = [frontier.loss_at(frontier.curve_of(row), least) for row in mine]
        lines.append(
            [
                NAMES[name],
                f"{mean(x for row in mine for x in row['sparsity']):.1%}",
                f"{mean(losses):.4f} ({min(losses):.4f} to {max(losses):.4f})",
                "-" if name == "dense" else ", ".join(f"{x:+.1%}" for x in _apart(rows, name)),
                "-" if None in equal else f"{mean(x for x in equal if x):.4f}",
                f"{flops['dense'] / flops[name]:.2f}",
                f"{alone['dense'] / alone[name]:.2f}",
            ]
        )
        if timed:
            lines[-1].append(f"{seconds['dense'] / seconds[name]:.2f}")
    head = ["attention", "sparsity, measured", "validation loss: mean (range)"]
    head += [
        "against dense, seed by seed",
        f"loss after {least:.3g} FLOPs",
        "FLOPs of a step: dense / its",
        "of its attention: dense / its",
    ]
    return markdown(head + ["time of a step: dense / its"] * timed, lines)


def _apart(rows: list[Row], name: str) -> list[float]:
    """How much more the loss is at the end than dense attention's of the same seed, as a share."""
    dense = {row["seed"]: row["validation"][-1][1] for row in rows if row["name"] == "dense"}
    mine = [row for row in rows if row["name"] == name]
    return [row["validation"][-1][1] / dense[row["seed"]] - 1 for row in mine]


def _step_flops(row: Row) -> int:
    return row["attention_flops"] + row["other_flops"]


def ablations(results: Path, images: Path) -> str:
    """One table for each thing that was varied, and a picture of all."""
    parts = []
    for rows in rows_of("ablations", results):
        found = {row["name"]: row for row in rows}
        groups: dict[str, dict[str, float]] = {}
        parts.append(f"{_what(rows[0])} one seed:")
        for group, variants in GROUPS.items():
            lines = []
            for name, attention in variants.items():
                same = [n for g in GROUPS.values() for n, slot in g.items() if slot == attention]
                row = next((found[n] for n in same if n in found), None)
                if row is not None:
                    groups.setdefault(group, {})[name] = row["validation"][-1][1]
                    flops = row["attention_flops"], _step_flops(row)
                    cost = [f"{mean(row['sparsity']):.1%}", *(f"{x / 1e9:.1f}" for x in flops)]
                    lines.append([named(name), f"{row['validation'][-1][1]:.4f}", *cost])
            head = [group, "validation loss", "sparsity, measured"]
            head += ["attention, GFLOP a step", "all, GFLOP a step"]
            parts.append(markdown(head, lines))
        if "dense" in found:
            parts.append(_ablations_picture(images, rows[0], groups, results))
    return "\n\n".join(part for part in parts if part) or NONE


def _ablations_picture(
    images: Path, row: Row, groups: dict[str, dict[str, float]], results: Path
) -> str:
    image = images / f"evidence-ablations-{row['scale']}-{row['data']}.png"
    dense, chance = groups["reference"]["dense"], 0.0
    for rows in rows_of("parity", results, list(NAMES)):
        if (rows[0]["scale"], rows[0]["data"]) == (row["scale"], row["data"]):
            chance = max(abs(x) for name in NAMES for x in _apart(rows, name))
    apart = {
        group: {name: 100 * (loss / dense - 1) for name, loss in losses.items()}
        for group, losses in groups.items()
    }
    draw_ablations(image, apart, 100 * chance, row["data"])
    return shown(image)


def adaptation(results: Path, images: Path) -> str:
    """Losses before, on the way, at the target and after, and all curves."""
    parts = []
    for rows in rows_of("adaptation", results):
        found = {row["name"]: row["validation"] for row in rows}
        if "dense on" not in found:
            continue
        base = rows[0]["steps"]
        dense = found.pop("dense before")
        lines = []
        for name, curve in found.items():
            half = min(curve, key=lambda point: abs(point[0] - base / 2))
            worst = max(loss for _, loss in curve[1:])
            losses = curve[0][1], worst, half[1], curve[-1][1]
            lines.append([named(name), *(f"{x:.4f}" for x in losses)])
        image = images / f"evidence-adaptation-{rows[0]['scale']}-{rows[0]['data']}.png"
        draw_adaptation(image, dense, found, base, rows[0]["data"])
        head = ["from the same dense weights", "before", "highest after", "halfway, at the target"]
        what = f"{_what(rows[0])} then as many again, one seed:"
        parts.append(f"{what}\n\n{markdown([*head, 'at the end'], lines)}\n\n{shown(image)}")
    return "\n\n".join(parts) or NONE


SECTIONS: dict[str, Callable[[Path, Path], str]] = {
    "copies": page_copies.copies,
    "parity": parity,
    "scaling": scaling,
    "ablations": ablations,
    "adaptation": adaptation,
    "copies_adaptation": page_copies_adaptation.adaptation,
    "flops": lambda results, images: flop_tables.section(images),
    "recall": recall,
}
