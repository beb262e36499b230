"""The page's section on recurring content: losses between their floors, and whether tiles hold
copies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from matplotlib.patches import Rectangle

from benchmarks.evidence.copies import METHODS, MORE, SCALES, TASKS, middle_of
from benchmarks.evidence.pictures import NONE, named, shown
from benchmarks.record import Row, markdown, read
from flexsparse import VideoTiling
from train.data.copies.clips import RecurringClips
from train.data.copies.floors import copies_in
from train.data.sources.open import open_clips
from train.demo.pictures import COLOURS, blank_figure, save

STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}  # 95 %, two-sided, by the number of seeds
STARTS = 0.1  # of the way between the floors: learning has begun
OWN, RIGHT, WRONG, MISSED = "#ffd21e", "#2ca02c", "#d62728", "#ffffff"


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
        steps = of_scale[-1]["steps"]
        by_task = {
            task: [r for r in of_scale if r["data"] == task and r["steps"] == steps]
            for task in TASKS
        }
        by_task = {task: _last(mine) for task, mine in by_task.items() if mine}
        row = of_scale[-1]
        parts.append(
            f"{row['parameters'] / 1e6:.1f}M parameters, {row['tokens']:,} tokens a clip, "
            f"{steps:,} steps, on {row['device']}:"
        )
        for task, mine in by_task.items():
            parts.append(f"**{task}**: {_floors(mine)}\n\n{_table(mine)}")
        image = images / f"evidence-{scale}.png"
        draw_losses(image, by_task)
        parts.append(shown(image))
        parts += _looks(images, scale, by_task)
    return "\n\n".join(parts) or NONE


def _last(rows: list[Row]) -> list[Row]:
    """Of a run that was done more than once the last."""
    return list({(row["name"], row["seed"]): row for row in rows}.values())


def _floors(rows: list[Row]) -> str:
    row = next((row for row in rows if row["name"] == "vsa"), rows[0])
    others = ", ".join(f"{k} more {x:.3f}" for k, x in row["others_floor"].items())
    return (
        f"least losses {row['patch_floor']:.3f} (a token by itself), {row['tile_floor']:.3f} (its "
        f"tile), with the tiles that hold most of its copies {others}, {row['floor']:.3f} "
        f"(everything)"
    )


def _table(rows: list[Row]) -> str:
    lines = []
    for name in METHODS | MORE:
        mine = [row for row in rows if row["name"] == name]
        if not mine:
            continue
        losses, shares = [r["validation"][-1][1] for r in mine], list(map(closed, mine))
        starts = [begins(row) for row in mine]
        right = [mean(layer) for layer in zip(*(row["finds"] for row in mine))]
        lines.append(
            [
                named(name),
                f"{mean(losses):.3f}",
                f"{mean(shares):.0%}{_interval(shares)}",
                ", ".join(f"{x:.0%}" for x in right) or "-",
                f"{mean(row['by_chance'] for row in mine):.0%}",
                ", ".join("-" if x is None else f"{x:,}" for x in starts),
                f"{mean(map(_flops, mine)) / 1e9:.1f}",
            ]
        )
    head = ["attention", "loss", "of the way to everything", "chosen tiles with copies, by layer"]
    head += ["of all tiles", "learning begins, by seed", "GFLOP a step"]
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
    figure = blank_figure(5.4 * len(by_task), 4.2)
    every = np.atleast_1d(figure.subplots(1, len(by_task)))
    colours = dict(zip(METHODS, ["grey", *COLOURS]))
    for axes, (task, rows) in zip(every, by_task.items()):
        for name, colour in colours.items():
            for row in (row for row in rows if row["name"] == name):
                steps, losses = zip(*row["validation"])
                label = named(name) if row["seed"] == 0 else None
                axes.plot(np.array(steps) * _flops(row), losses, color=colour, label=label)
        for floor, what in (("tile_floor", "its own tile at best"), ("floor", "everything")):
            axes.axhline(rows[0][floor], color="black", linewidth=0.8, linestyle="--")
            axes.text(1, rows[0][floor], f"{what} ", transform=axes.get_yaxis_transform(), **_LABEL)
        axes.set(xlabel="training FLOPs", ylabel="validation loss")
        axes.set_title(task, loc="left")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    every[0].legend(frameon=False)
    save(figure, path)


_LABEL: dict = dict(ha="right", va="bottom", fontsize=8)


def _looks(images: Path, scale: str, by_task: dict[str, list[Row]]) -> list[str]:
    """A picture for the first task in which places are drawn by lot, or else the first."""
    task = next((t for t in by_task if TASKS[t].where == "shuffle"), next(iter(by_task)))
    rows = [row for row in by_task[task] if row["name"] == "vsa" and row["looks"]]
    kind = next((s for s in SCALES.values() if s.name == scale), None)
    if not rows or kind is None:
        return []
    clips = open_clips(kind.loader(task, 0), "validation")
    assert isinstance(clips, RecurringClips)
    image = images / f"evidence-{scale}-looks.png"
    draw_looks(image, clips, VideoTiling(clips.grid), rows[0]["looks"][-1])
    return [LOOKS, shown(image)]


LOOKS = (
    "What one tile, yellow, of a held-out clip looks at in the last layer of VSA: green tiles hold "
    "copies of it, red ones do not, white ones hold copies and are not looked at. Tiles that "
    "follow one another in time stand side by side, each by its first frame."
)


def draw_looks(
    path: Path, clips: RecurringClips, tiling: VideoTiling, heads: Sequence[int]
) -> None:
    """The first clip, tile by tile in time, with boxes: how many heads look at each tile."""
    video = clips[0]["video"].permute(1, 2, 3, 0).numpy()
    video = np.clip(0.5 + video / 5, 0, 1)
    own, truth = middle_of(tiling), copies_in(clips.layout(0), tiling)[middle_of(tiling)] > 0
    t, h, w = tiling.grid
    sides = [side * patch for side, patch in zip(tiling.tile, clips.copies.patch)]
    figure = blank_figure(3.2 * t, 3.2 * h * sides[1] / (w * sides[2]) + 0.3)
    for i, axes in enumerate(np.atleast_1d(figure.subplots(1, t))):
        axes.imshow(video[i * sides[0]], interpolation="nearest")
        axes.set_axis_off()
        for j in range(h * w):
            tile = i * h * w + j
            if tile == own:
                colour = OWN
            elif heads[tile]:
                colour = RIGHT if truth[tile] else WRONG
            elif truth[tile]:
                colour = MISSED
            else:
                continue
            y, x = divmod(j, w)
            corner = x * sides[2] - 0.5 + 1, y * sides[1] - 0.5 + 1
            size = sides[2] - 2, sides[1] - 2
            axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=2.5))
    save(figure, path)
