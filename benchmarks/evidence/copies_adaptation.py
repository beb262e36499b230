"""A dense model that has learned to find copies is made sparse: what it loses, and wins back.

    python -m benchmarks.evidence.copies_adaptation [--steps 240] [--data shuffle]

Trains a dense model on recurring content for `steps`, then goes on from its weights for as many:
dense, and with the targets of VSA and BSA, each at once and by its schedule (the target is reached
after half of the steps), with flow matching's loss, with distillation from its own dense velocity,
and with half of each. Measures, of the target's choice before the first step, at half of the steps
and at the end, which share of dense attention's weight the chosen tiles hold, and how many of them
hold copies. "Before" of "at once" is sparse attention without any training. Appends rows to
``benchmarks/results/evidence.jsonl``; what is there is not trained again.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.evidence.adaptation import falling, rising
from benchmarks.evidence.copies import SCALES, TASKS
from benchmarks.evidence.recall import held, tile_mass
from benchmarks.evidence.runs import Run, all_of, command, folder_of, parser, side_by_side
from models.attention import BSA, VSA, Dense
from train.data.copies.floors import copies_in
from train.demo.copies import held_out, noisy, right_share
from train.demo.measure import slot_calls
from train.losses import VelocityDistillation
from train.sparsity.schedules import Constant

EXPERIMENT, TIME, CLIPS = "copies adaptation", 0.3, 4
LOSSES = {
    "": None,
    ", half distilled": VelocityDistillation(weight=0.5),
    ", distilled": VelocityDistillation(weight=1.0),
}


@torch.no_grad()
def looks(target: Any, trainer: Any) -> dict[str, Any]:
    """By layer, over held-out clips: the share of dense attention's weight that the target's tiles
    hold, and, of those that are not the query's own, the share that hold copies."""
    model, clips = trainer.model, held_out(trainer.config)
    choosing = target.build(model.config.dim, model.config.heads, model.tiling)
    found: list[list[tuple[float, float]]] = []
    for number in range(CLIPS):
        truth = torch.from_numpy(copies_in(clips.layout(number), model.tiling)) > 0
        layers = []
        for call in slot_calls(model, *noisy(model, clips, number, TIME)):
            _, q, k, _, tiling = call.inputs[:5]
            chosen = choosing.choose(q, k, tiling).tile_map
            share = held(tile_mass(q, k, tiling), chosen).mean().item()
            layers.append((share, right_share(chosen[0].cpu(), truth)))
        found.append(layers)
    shares = torch.tensor(found, dtype=torch.float64).mean(0).T.tolist()
    return {key: [round(x, 4) for x in of] for key, of in zip(("held", "finds"), shares)}


def main(argv: list[str] | None = None) -> int:
    options = parser(__doc__, TASKS, SCALES, default="shuffle")
    options.add_argument("--steps", type=int, help="of each run; 240 on a CPU, 2000 on a GPU")
    given = options.parse_args(argv)
    gpu = torch.accelerator.is_available()
    scale = replace(SCALES[given.scale or ("gpu" if gpu else "cpu")], saves=True)
    steps, task, tile = given.steps or scale.steps, given.data, scale.tile
    common: Any = dict(experiment=EXPERIMENT, data=task, every_loss=False)
    base = Run(name="dense before", attention=Dense(), **common)
    start = folder_of(base, scale, steps, given.out) / "checkpoint" / f"step-{steps}"
    targets: dict[str, Any] = {
        "vsa": VSA(sparsity=0.875, tile=tile, adapt=True),
        "bsa": BSA(sparsity=0.875, tile=tile),
    }
    schedules = dict(vsa=falling(scale, steps, targets["vsa"]), bsa=rising(steps, targets["bsa"]))
    after = [Run(name="dense on", attention=Dense(), initial=start, **common)]
    for name, target in targets.items():
        for how, schedule in {"at once": Constant(), "by schedule": schedules[name]}.items():
            for taught, loss in LOSSES.items():
                run = Run(
                    name=f"{name} {how}{taught}",
                    attention=target,
                    schedule=schedule,
                    initial=start,
                    watch=partial(looks, target),
                    **common,
                )
                after.append(replace(run, loss=loss) if loss else run)
    cores = 1 if gpu else os.cpu_count() or 1
    all_of([base], scale, steps, given.out, given.results)
    side_by_side(after, scale, steps, given.out, given.results, cores)
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
