"""The page's section on recurring content: losses between their floors, and whether tiles hold
copies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, mode, stdev

import numpy as np

from benchmarks.evidence.copies import (
    AS_WELL,
    EVERYWHERE,
    FOUR,
    MAIN,
    METHODS,
    MIXED,
    POOLS,
    SCALES,
    TASKS,
)
from benchmarks.evidence.pictures import NONE, named, shown
from benchmarks.record import Row, markdown, read
from flexsparse import VideoTiling
from models.attention import Dense
from train.demo.copies import held_out
from train.demo.copies_pictures import draw_looks, floor
from train.demo.pictures import COLOURS, blank_figure, save

STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}  # 95 %, two-sided, by the number of seeds
COLUMNS = 3  # of a picture
STARTS = 0.1  # of the way between the floors: learning has begun


def closed(row: Row) -> float:
    """The share of the way from the tile's floor to that of everything, at the end."""
    return _share(row, row["validation"][-1][1])


def _share(row: Row, loss: float) -> float:
    return (row["tile_floor"] - loss) / (row["tile_floor"] - row["floor"])


def begins(row: Row) -> int | None:
    """The first step at which a tenth of the way is done."""
    return next((step for step, loss in row["validation"] if _share(row, loss) > STARTS), None)


def copies(results: Path, images: Path) -> str:
    """For each scale and task a table, and a picture of losses; then what one tile looks at."""
    rows = [row for row in read("evidence", results) if row["experiment"] == "copies"]
    parts = []
    for scale in dict.fromkeys(row["scale"] for row in rows):
        of_scale = [row for row in rows if row["scale"] == scale]
        steps = mode(row["steps"] for row in of_scale)
        by_task = {
            task: [r for r in of_scale if r["data"] == task and r["steps"] == steps]
            for task in TASKS
        }
        by_task = {task: last_of(mine) for task, mine in by_task.items() if mine}
        row = min(of_scale, key=lambda row: row["parameters"])  # without gates
        parts.append(
            f"{row['parameters'] / 1e6:.1f}M parameters, {row['tokens']:,} tokens a clip, "
            f"{steps:,} steps, on {row['device']}:"
        )
        for task in [task for task in MAIN if task in by_task]:
            parts.append(f"**{task}**: {_floors(by_task[task])}\n\n{_table(by_task[task])}")
        table = _by_task(by_task, EVERYWHERE, ["vsa", "bsa"])
        parts.append(f"**Every task**, of the way to everything:\n\n{table}")
        table = _on_each(by_task, (*MAIN, *AS_WELL))
        parts.append(f"**Every attention**, likewise:\n\n{table}")
        mixed = {task: by_task[task] for task in (MAIN[0], *MIXED) if task in by_task}
        if len(mixed) > 1:
            table = _by_task(mixed, ["dense", "vsa", *POOLS], ["vsa", *POOLS[:2]], [3, 7])
            parts.append(f"**Tiles that hold parts of several contents**, likewise:\n\n{table}")
        image = images / f"evidence-{scale}.png"
        draw_losses(image, by_task)
        parts.append(f"{LOSSES_DRAWN}\n\n{shown(image)}")
        parts += _looks(images, scale, by_task)
    return "\n\n".join(parts) or NONE


def last_of(rows: list[Row]) -> list[Row]:
    """Of a run that was done more than once the last."""
    return list({(row["name"], row["seed"]): row for row in rows}.values())


def _floors(rows: list[Row]) -> str:
    row = next((row for row in rows if row["name"] == "vsa"), rows[0])
    others = ", ".join(f"{k} more {x:.3f}" for k, x in row["others_floor"].items())
    return (
        f"least losses {row['patch_floor']:.3f} (a token by itself), {row['tile_floor']:.3f} (its "
        f"tile), with the others that tell most {others}, {row['floor']:.3f} "
        f"(everything)"
    )


def _table(rows: list[Row]) -> str:
    lines = []
    for name in METHODS:
        mine = [row for row in rows if row["name"] == name]
        if not mine:
            continue
        losses, shares = [r["validation"][-1][1] for r in mine], list(map(closed, mine))
        starts = [begins(row) for row in mine]
        lines.append(
            [
                named(name),
                f"{mean(losses):.3f}",
                f"{mean(shares):.0%}{_interval(shares)}",
                _found(mine),
                f"{mean(row['by_chance'] for row in mine):.0%}",
                ", ".join("-" if x is None else f"{x:,}" for x in starts),
                f"{mean(map(_flops, mine)) / 1e9:.1f}",
            ]
        )
    head = ["attention", "loss", "of the way to everything"]
    head += ["chosen tiles with copies, by layer: untrained / halfway / at the end"]
    head += ["of all tiles", "learning begins, by seed", "GFLOP a step"]
    return markdown(head, lines)


def _found(rows: list[Row]) -> str:
    """By layer, before training, halfway and at its end: means over seeds."""
    seeds = [[seen["finds"] for _, seen in row.get("watched", [])] for row in rows]
    layers = zip(*(zip(*seed) for seed in seeds))  # of each the seeds' triples
    means = ([mean(times) for times in zip(*layer)] for layer in layers)
    return "; ".join(" / ".join(f"{x:.0%}" for x in layer) for layer in means) or "-"


def _on_each(by_task: dict[str, list[Row]], tasks: Sequence[str]) -> str:
    """A line for each method, a column for each task: how much of the way it goes."""
    lines = []
    for name in METHODS:
        shares = [[closed(r) for r in by_task.get(task, []) if r["name"] == name] for task in tasks]
        if all(shares):
            cells = [f"{mean(share):.0%}{_interval(share)}" for share in shares]
            lines.append([named(name), *cells])
    return markdown(["attention", *tasks], lines) if lines else NONE


def _by_task(
    by_task: dict[str, list[Row]],
    methods: Sequence[str],
    chosen: Sequence[str],
    more: Sequence[int] = (),
) -> str:
    """A line for each task, of `methods` that all have, and which tiles those `chosen` look at;
    `more` are numbers of other tiles, whose least loss is known."""
    lines = []
    for task, rows in by_task.items():
        line = [task, f"{rows[0]['tile_floor']:.3f}", f"{rows[0]['floor']:.3f}"]
        line += [f"{_share(rows[0], rows[0]['others_floor'][str(k)]):.0%}" for k in more]
        for name in methods:
            mine = [row for row in rows if row["name"] == name]
            shares = list(map(closed, mine))
            line.append(f"{mean(shares):.0%}{_interval(shares)}" if mine else "-")
        for name in chosen:
            right = zip(*(row["finds"] for row in rows if row["name"] == name))
            line.append(", ".join(f"{mean(layer):.0%}" for layer in right) or "-")
        of_all = mean(row["by_chance"] for row in rows if row["name"] in FOUR)
        lines.append([*line, f"{of_all:.0%}"])
    head = ["task", "least loss of a tile by itself", "of everything"]
    head += [f"the {k} others that tell most" for k in more]
    head += map(named, methods)
    first, *others = map(named, chosen)
    head += [f"tiles of {first} with copies, by layer"]
    head += [f"of {name}" for name in (*others, "all tiles")]
    return markdown(head, lines)


def _interval(shares: Sequence[float]) -> str:
    """Half of the interval that holds the mean in 19 cases of 20, by Student's t."""
    if len(shares) not in STUDENT:
        return ""
    return f" ± {STUDENT[len(shares)] * stdev(shares) / len(shares) ** 0.5:.0%}"


def _flops(row: Row) -> int:
    return row["attention_flops"] + row["other_flops"]


def draw_losses(path: Path, by_task: dict[str, list[Row]]) -> None:
    """Validation loss against training FLOPs for each task, between its floors."""
    rows = -(-len(by_task) // COLUMNS)
    figure = blank_figure(5 * COLUMNS, 3.8 * rows)
    every = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in every[len(by_task) :]:
        axes.set_visible(False)
    colours = dict(zip(FOUR, ["grey", *COLOURS]))
    for axes, (task, rows) in zip(every, by_task.items()):
        for name, colour in colours.items():
            for row in (row for row in rows if row["name"] == name):
                steps, losses = zip(*row["validation"])
                label = named(name) if row["seed"] == 0 else None
                axes.plot(np.array(steps) * _flops(row), losses, color=colour, label=label)
        floor(axes, rows[0]["tile_floor"], "its own\ntile\nat best")
        floor(axes, rows[0]["floor"], "the whole\nclip\nat best")
        axes.set(xlabel="training FLOPs", ylabel="validation loss")
        axes.set_title(task, loc="left")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = every[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(FOUR), frameon=False)
    save(figure, path)


def _looks(images: Path, scale: str, by_task: dict[str, list[Row]]) -> list[str]:
    """A picture for each of the MAIN tasks, of the first layer: copies are found there."""
    kind = next((s for s in SCALES.values() if s.name == scale), None)
    parts = []
    for task in [task for task in MAIN if task in by_task and kind is not None]:
        rows = [row for row in by_task[task] if row["name"] == "vsa" and row["looks"]]
        if not rows or kind is None:
            continue
        clips = held_out(kind.trainer(Dense(), task, seed=0, steps=1, folder=Path()))
        image = images / f"evidence-{scale}-looks-{task.replace(', ', '-')}.png"
        draw_looks(image, clips, VideoTiling(clips.grid, kind.tile), rows[0]["looks"][0])
        parts.append(f"`{task}`: {LOOKS}\n\n{shown(image)}")
    return parts


LOSSES_DRAWN = (
    "Losses by what training has cost, a curve for each seed. No model that sees only its own tile "
    "gets below the upper dashed line, none at all below the lower one. Where neighbours are "
    "alike, and in a pan, the grey curves have not come down to the upper line when training ends:"
)
LOOKS = (
    "what one tile, yellow, of a held-out clip looks at in the first layer of VSA. Tiles that "
    "follow one another in time stand side by side, each by its first frame; beneath, the tile and "
    "those that it looks at, enlarged. The clip is shown clean, but the model chose under noise of "
    "0.3; the yellow tile need not be among those that it looks at."
)
