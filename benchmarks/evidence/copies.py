"""Recurring content: does attention find the copies, and what is that worth?

    python -m benchmarks.evidence.copies [--quick | --all] [--seeds 3] [--steps 240]
    python -m benchmarks.evidence.copies --data TASK ... --only NAME ...

Trains a small video DiT on clips in which content recurs far away (``train/data/copies``), once for
each attention, and places its loss between what a model can reach that sees its own tile and one
that sees everything. --quick: the tile by itself, dense, VSA and BSA on one task, one seed. --all:
the main table, arms that tell gates from the coarse stage, every attention on loop and pan. With
--scale gpu the same tasks at 60M parameters. A CPU trains a run on each of its cores. Appends rows
to ``benchmarks/results/evidence.jsonl``; what is there is not trained again.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence.runs import Run, command, parser, side_by_side
from benchmarks.evidence.scale import GPU, Scale
from benchmarks.evidence.slots import (
    FineGatedVSA,
    OwnTileVSA,
    RandomVSA,
    UngatedVSA,
    ZeroFillBSA,
)
from flexsparse import Mass, Neighbourhood, Scaled, TopK, VideoTiling
from models.attention import BSA, VSA, Dense, Slot
from train.data.copies.layouts import Copies
from train.demo.copies import copies_config, floors_of, found_by, held_out
from train.demo.opening import SMALL, TILE
from train.trainer import Trainer
from train.weights.checkpoint import Checkpointer

Grid = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class CopiesScale(Scale):
    """A scale whose clips are drawn. Cells of a "shuffle" are as large as a tile, or parts of one:
    its mean then mixes contents."""

    tile: Grid = (4, 4, 4)
    near: Grid = (3, 3, 3)
    """Tiles of a neighbourhood."""
    saves: bool = False

    def trainer(
        self, attention: Slot, data: str, *, seed: int, steps: int, folder: Path
    ) -> Trainer.Config:
        config = copies_config(
            replace(self.model, attention=attention),
            self.tasks[data],
            steps=steps,
            folder=folder,
            lr=self.lr,
            batch=self.batch,
            seed=seed,
            clips=self.validation_clips,
        )
        config.compile = self.compile
        if self.saves:
            config.checkpoint = Checkpointer.Config(interval=steps, keep_latest_k=2)
        return config

    def prepare(self, data: str) -> None:
        """Nothing: clips are drawn as they are asked for."""

    @property
    def tasks(self) -> dict[str, Copies]:
        shuffle = Copies(where="shuffle", cell=self.tile)
        t, h, w = self.tile
        half = [side // 2 for side in self.tile]
        pan = Copies(where="pan", speed=half[-1])
        return {
            "shuffle": shuffle,
            "shuffle, a little alike": replace(shuffle, alike=1.0),
            "shuffle, alike": replace(shuffle, alike=2.0),
            "shuffle, nearly equal": replace(shuffle, alike=10.0),
            "shuffle, off the grid": replace(shuffle, offset=(half[0], half[1], half[2])),
            "shuffle, half tiles": replace(shuffle, cell=(t, h, w // 2)),
            "shuffle, quarter tiles": replace(shuffle, cell=(t // 2, h, w // 2)),
            "loop": Copies(where="loop"),
            "loop, alike": Copies(where="loop", alike=2.0),
            "pan": pan,
            "pan, alike": replace(pan, alike=2.0),
            "small objects": Copies(where="objects", cell=(2, 2, 2), share=0.25),
        }

    @property
    def methods(self) -> dict[str, Any]:
        tile = self.tile
        vsa, bsa = VSA(sparsity=0.875, tile=tile), BSA(sparsity=0.875, tile=tile)
        t, h, w = tile
        return {
            "its own tile": OwnTileVSA(top_k=1, tile=tile),
            "dense": Dense(),
            "vsa": vsa,
            "bsa": bsa,
            "random tiles": RandomVSA(sparsity=0.875, tile=tile),
            "neighbourhood": VSA(top_k=Neighbourhood(self.near), tile=tile, gates=False),
            "vsa without its coarse stage": replace(vsa, gates=False),
            **{f"vsa, {k} tile{'s' * (k > 1)}": VSA(top_k=k, tile=tile) for k in (1, 2, 8)},
            "vsa, longer tiles": replace(vsa, tile=(2 * t, h, w // 2)),
            "vsa, flatter tiles": replace(vsa, tile=(t // 2, 2 * h, w)),
            "vsa, pairs": replace(vsa, query_tiles=2),
            **{f"bsa, keep {keep:g}": replace(bsa, keep=keep) for keep in (1.0, 0.75)},
            "vsa, all tiles": replace(vsa, sparsity=0.0),
            "vsa, no gates": UngatedVSA(sparsity=0.875, tile=tile),
            "vsa, its fine gate alone": FineGatedVSA(sparsity=0.875, tile=tile),
            "vsa, its coarse gate alone": replace(vsa, adapt=True),
            "vsa, all tiles, its coarse gate alone": replace(vsa, sparsity=0.0, adapt=True),
            "dense, gated": FineGatedVSA(sparsity=0.0, tile=tile),
            "bsa, zeros for the pruned": ZeroFillBSA(sparsity=0.875, tile=tile),
            "bsa, no windows": replace(bsa, window=None),
            "bsa, top-k": replace(bsa, kv=Scaled(0.875, rule=TopK)),
            "bsa, mass 0.5": replace(bsa, kv=Mass(0.5)),
        }


SCALES = {
    "cpu": CopiesScale(
        name="copies-cpu",
        model=SMALL,
        tile=TILE,
        near=(3, 1, 1),
        fps=0,
        batch=2,
        lr=4e-3,
        steps=240,
        validation_clips=8,
    ),
    "gpu": CopiesScale(
        name="copies-gpu",
        model=replace(GPU.model, mimetic=True),
        fps=0,
        batch=2,
        lr=6e-4,
        steps=2000,
        validation_clips=32,
        compile=True,
    ),
}
TASKS, METHODS = list(SCALES["cpu"].tasks), list(SCALES["cpu"].methods)
FOUR = METHODS[:4]
EVERYWHERE = *FOUR, "neighbourhood"  # tried on every task
ARMS = tuple(METHODS[METHODS.index("vsa, no gates") : METHODS.index("bsa, no windows")])
MAIN = "shuffle", "shuffle, alike"  # tasks on which all but those arms are
MIXED = "shuffle, off the grid", "shuffle, half tiles", "shuffle, quarter tiles"
POOLS = "vsa without its coarse stage", "vsa, 8 tiles", "vsa, all tiles"  # more for those
AS_WELL = "loop", "loop, alike", "pan", "pan, alike"  # tasks on which all are, with --all
MORE = "shuffle, a little alike", "shuffle, nearly equal"  # tasks of --all alone
KEEP = *(name for name in METHODS if "keep" in name), POOLS[0]  # more for the last


def in_main_table(task: str, name: str) -> bool:
    if name in EVERYWHERE:
        return task not in MORE
    return task in MAIN and name not in ARMS or task in MIXED and name in POOLS


def in_all(task: str, name: str) -> bool:
    if name in EVERYWHERE or task in MAIN + AS_WELL:
        return True
    return in_main_table(task, name) or task == MORE[-1] and name in KEEP


def told(tile: Grid, trainer: Any) -> dict[str, Any]:
    """Of a trained model: the floors at its validation's noise levels, and what it looks at.

    Floors are those of the scale's tile, whatever the model's own.
    """
    config = trainer.config
    clips = held_out(config)
    own = VideoTiling(clips.grid, tile)
    least, tiling = floors_of(config, own, (1, 3, 7)), trainer.model.tiling or own
    found = found_by(trainer.model, clips, tiling)
    return dict(
        patch_floor=round(least.patch, 5),
        tile_floor=round(least.tile, 5),
        floor=round(least.everything, 5),
        others_floor={str(k): round(x, 5) for k, x in least.others.items()},
        finds=[round(x, 4) for x in found.shares],
        looks=found.heads,
        by_chance=round(found.of_all, 4),
    )


def finds(tile: Grid, trainer: Any) -> dict[str, Any]:
    """Of a model in training: by layer, the share of the chosen tiles that hold copies."""
    tiling, clips = trainer.model.tiling, held_out(trainer.config)
    found = found_by(trainer.model, clips, tiling or VideoTiling(clips.grid, tile))
    return dict(finds=[round(x, 4) for x in found.shares])


def runs(scale: CopiesScale, which: Iterable[tuple[str, str]], seeds: int) -> list[Run]:
    """Of tasks and names of methods: all of a seed one after the other."""
    given: Any = dict(tell=partial(told, scale.tile), watch=partial(finds, scale.tile))
    return [
        Run("copies", task, name, scale.methods[name], seed, every_loss=False, **given)
        for seed in range(seeds)
        for task, name in which
    ]


def chosen(given: argparse.Namespace) -> list[tuple[str, str]]:
    """Tasks and methods: those that the command names, or the main table's."""
    if given.quick:
        return [("shuffle", name) for name in FOUR]
    pairs = product(given.data or TASKS, given.only or METHODS)
    if given.data or given.only:
        return list(pairs)
    wanted = in_all if given.all else in_main_table
    return [pair for pair in pairs if wanted(*pair)]


def main(argv: list[str] | None = None) -> int:
    options = parser(__doc__, TASKS, SCALES, nargs="+")
    size = options.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="one task, one seed, four methods")
    size.add_argument("--all", action="store_true", help="more arms, and all on loop and pan")
    options.add_argument("--only", nargs="+", choices=METHODS, metavar="NAME")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--steps", type=int, help="of each run; 240 on a CPU, 2000 on a GPU")
    given = options.parse_args(argv)
    gpu = torch.accelerator.is_available()
    scale = SCALES[given.scale or ("gpu" if gpu else "cpu")]
    seeds = 1 if given.quick else given.seeds
    steps, cores = given.steps or scale.steps, 1 if gpu else os.cpu_count() or 1
    todo = runs(scale, chosen(given), seeds)
    for row in side_by_side(todo, scale, steps, given.out, given.results, cores):
        loss, top = row["validation"][-1][1], row["tile_floor"]
        closed = (top - loss) / (top - row["floor"])
        right = ", ".join(f"{x:.0%}" for x in row["finds"]) or "-"
        print(
            f"{row['data']:22} {row['name']:30} seed {row['seed']}  loss {loss:.3f} "
            f"({top:.3f} alone, {row['floor']:.3f} all)  closed {closed:4.0%}  copies among chosen "
            f"tiles {right} (by chance {row['by_chance']:.0%})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
