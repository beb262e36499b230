"""Recurring content: does attention find the copies, and what is that worth?

    python -m benchmarks.evidence.copies [--quick] [--only NAME ...] [--seeds 3] [--steps 600]

Trains a small video DiT on clips in which content recurs far away (``train/data/copies``), once for
each attention, and places its loss between what a model can reach that sees its own tile and one
that sees everything. --quick: the tile by itself, dense, VSA and BSA on one task, one seed. With
--scale gpu the same tasks at 60M parameters. Appends rows to ``benchmarks/results/evidence.jsonl``;
what is there is not trained again.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.evidence.runs import Run, all_of, command, parser
from benchmarks.evidence.scale import CPU, GPU, Scale
from benchmarks.evidence.slots import OwnTileVSA, RandomVSA
from flexsparse import Mass, Neighbourhood, Scaled, TopK, VideoTiling
from models.attention import BSA, VSA, Dense, Slot
from train.data import VideoDataLoader
from train.data.copies.clips import RecurringClips
from train.data.copies.floors import Floors, copies_in, floors
from train.data.copies.layouts import Copies
from train.data.sources.open import open_clips
from train.flow import FlowConfig, keyed_generator, shifted
from train.sparsity.attention_stats import choice_of, watched_slots
from train.titan import LRSchedulersContainer, default_adamw
from train.trainer import Trainer

LEAST, MOST = 0.25, 0.97  # at less noise a token needs no copies, at more they tell nothing
TASKS: dict[str, Copies] = {
    "loop": Copies(where="loop"),
    "loop, alike": Copies(where="loop", alike=2.0),
    "pan": Copies(where="pan"),
    "pan, alike": Copies(where="pan", alike=2.0),
    "shuffle": Copies(where="shuffle"),
    "shuffle, alike": Copies(where="shuffle", alike=2.0),
    "shuffle, off the grid": Copies(where="shuffle", offset=(2, 2, 2)),
    "small objects": Copies(where="objects", cell=(2, 2, 2), share=0.25),
}
BSA_ = BSA(sparsity=0.875)
METHODS: dict[str, Any] = {
    "its own tile": OwnTileVSA(top_k=1),
    "dense": Dense(),
    "vsa": VSA(sparsity=0.875),
    "bsa": BSA_,
}
MORE: dict[str, Any] = {
    "random tiles": RandomVSA(sparsity=0.875),
    "neighbourhood": VSA(top_k=Neighbourhood((3, 3, 3)), gates=False),
    "vsa without its coarse stage": VSA(sparsity=0.875, gates=False),
    **{f"vsa, {k} tile{'s' * (k > 1)}": VSA(top_k=k) for k in (1, 2, 4, 8)},
    **{
        f"vsa, {'x'.join(map(str, t))}": VSA(sparsity=0.875, tile=t) for t in ((2, 8, 4), (8, 2, 4))
    },
    "vsa, pairs": VSA(sparsity=0.875, query_tiles=2),
    **{f"bsa, keep {keep:g}": replace(BSA_, keep=keep) for keep in (1.0, 0.75)},
    "bsa, no windows": replace(BSA_, window=None),
    "bsa, top-k": replace(BSA_, kv=Scaled(0.875, rule=TopK)),
    "bsa, mass 0.5": replace(BSA_, kv=Mass(0.5)),
}
MAIN = "loop", "shuffle"  # tasks on which MORE is tried


@dataclass(frozen=True, kw_only=True)
class CopiesScale(Scale):
    """A scale whose clips are drawn; the rate falls to nothing, and losses are those of the end."""

    def trainer(
        self, attention: Slot, data: str, *, seed: int, steps: int, folder: Path
    ) -> Trainer.Config:
        config = super().trainer(attention, data, seed=seed, steps=steps, folder=folder)
        config.model = replace(self.model, attention=attention)
        config.flow = FlowConfig(least=LEAST, most=MOST)
        config.optimizer = default_adamw(lr=self.lr, weight_decay=0.0, betas=(0.9, 0.99))
        config.lr_scheduler = LRSchedulersContainer.Config(
            warmup_steps=min(50, steps // 4), decay_ratio=0.5, min_lr_factor=0.02
        )
        config.ema = replace(config.ema, enable=False)
        config.validation = replace(config.validation, interval=max(1, steps // 12))
        return config

    def prepare(self, data: str) -> None:
        """Nothing: clips are drawn as they are asked for."""

    def loader(self, data: str, seed: int) -> VideoDataLoader.Config:
        frames, height, width = self.model.video
        return VideoDataLoader.Config(
            source="copies",
            copies=replace(TASKS[data], patch=self.model.patch),
            num_frames=frames,
            height=height,
            width=width,
            seed=seed,
            context_tokens=1,
            context_dim=self.model.context_dim,
        )


SCALES = {
    "cpu": CopiesScale(
        name="copies-cpu",
        model=replace(CPU.model, video=(16, 32, 48), layers=2, ffn=256, mimetic=True),
        fps=0,
        batch=2,
        lr=2e-3,
        steps=600,
        validation_clips=16,
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


def told(task: str, trainer: Any) -> dict[str, Any]:
    """Of a trained model: the floors at its validation's noise levels, and what it looks at."""
    copies, config = TASKS[task], trainer.config
    clips = open_clips(config.dataloader, "validation")
    assert isinstance(clips, RecurringClips)
    count = trainer.validator.clips
    even = (torch.arange(count) + 0.5) / count
    times = shifted(even, 1.0, LEAST, MOST).tolist()
    tiling = trainer.model.tiling or VideoTiling(clips.grid)
    found = floors_of(copies, clips, tiling, times)
    shares, looks = finds(trainer.model, clips, tiling)
    return dict(
        patch_floor=round(found.patch, 5),
        tile_floor=round(found.tile, 5),
        floor=round(found.everything, 5),
        others_floor={str(k): round(x, 5) for k, x in found.others.items()},
        finds=[round(x, 4) for x in shares],
        looks=looks,
        by_chance=round(float((copies_in(clips.layout(0), tiling) > 0).mean()), 4),
    )


def floors_of(
    copies: Copies, clips: RecurringClips, tiling: VideoTiling, times: list[float]
) -> Floors:
    """Of a task's first clip: all lose the least alike, whatever the places."""
    coarse = times if not copies.alike else times[:: max(1, len(times) // 8)]
    return floors(copies, clips.layout(0), tiling, coarse, others=(1, 3, 7))


@torch.no_grad()
def finds(
    model: Any, clips: RecurringClips, tiling: VideoTiling, time: float = 0.5, count: int = 4
) -> tuple[list[float], list[list[int]]]:
    """Of the other tiles that each layer chooses, the share that hold copies, [] where none are
    chosen; and how many heads choose each tile for the one in the middle of the first clip."""
    shares: dict[int, list[float]] = {}
    looks: list[list[int]] = []
    device, number = next(model.parameters()).device, 0

    def see(slot: Any, given: tuple[Any, ...]) -> None:
        _, q, k, _, seen = given[:5]
        if seen is None or not hasattr(slot, "choose"):
            return
        choice = choice_of(slot, q, k, seen, None)
        if choice is not None and number == 0:
            looks.append(choice.tile_map[0, :, middle_of(seen)].sum(0).tolist())
        if choice is not None and choice.tile_map.sum() > choice.tile_map.shape[1] * len(truth):
            shares.setdefault(id(slot), []).append(right_share(choice.tile_map[0], truth))

    with watched_slots(model, see):
        for number in range(count):
            truth = torch.from_numpy(copies_in(clips.layout(number), tiling)).to(device) > 0
            x0 = clips[number]["video"][None].to(device)
            noise = torch.randn(
                x0.shape, generator=keyed_generator(device, "copies", number), device=device
            )
            context = torch.zeros(1, 1, model.config.context_dim, device=device)
            model((1 - time) * x0 + time * noise, torch.full((1,), time, device=device), context)
    return [sum(found) / len(found) for found in shares.values()], looks


def middle_of(tiling: VideoTiling) -> int:
    """The number of the tile in the middle of the video."""
    t, h, w = (size // 2 for size in tiling.grid)
    return (t * tiling.grid[1] + h) * tiling.grid[2] + w


def right_share(tile_map: Tensor, truth: Tensor) -> float:
    """Of the chosen tiles [H, n, n] but their own, the share that ``truth`` [n, n] has."""
    other = tile_map & ~torch.eye(len(truth), dtype=torch.bool, device=truth.device)
    return ((other & truth).sum() / other.sum()).item()


def runs(tasks: list[str], methods: dict[str, Any], seeds: int) -> list[Run]:
    """All methods of a seed and a task one after the other."""
    return [
        Run("copies", task, name, attention, seed, tell=partial(told, task))
        for seed in range(seeds)
        for task in tasks
        for name, attention in methods.items()
        if name in METHODS or task in MAIN
    ]


def main(argv: list[str] | None = None) -> int:
    options = parser(__doc__, TASKS, SCALES, nargs="+", default=list(TASKS))
    options.add_argument("--quick", action="store_true", help="one task, one seed, four methods")
    options.add_argument("--only", nargs="+", choices=[*METHODS, *MORE], metavar="NAME")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--steps", type=int, help="of each run; 600 on a CPU, 2000 on a GPU")
    given = options.parse_args(argv)
    kind = given.scale or ("gpu" if torch.accelerator.is_available() else "cpu")
    scale, every = SCALES[kind], METHODS | MORE
    methods = METHODS if given.quick else {n: every[n] for n in given.only or every}
    tasks, seeds = (["loop"], 1) if given.quick else (given.data, given.seeds)
    steps = given.steps or scale.steps
    for row in all_of(runs(tasks, methods, seeds), scale, steps, given.out, given.results):
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
