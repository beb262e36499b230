"""A run on latents; and what test_latents_ranks.py trains of it in two processes:
python trained_ranks.py FOLDER."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from fastvideo_records import TEXT, config, record, write
from layout_ranks import SHARED, VALIDATED, divided, measured
from trainer_runs import tiny

from train.records.metrics import Metrics
from train.trainer import Trainer
from train.weights.checkpoint import Checkpointer

SHAPE = (3, 2, 6, 5)
STATS = {"mean": (0.5, -0.25, 0.0), "std": (2.0, 0.3, 1.0)}
LAYOUTS: dict[str, dict[str, Any]] = {"fsdp": {}, "ulysses": dict(parallel=SHARED)}
CLIPS, HELD_OUT, DAMAGED = 14, 3, 5
"""How many there are, how many at their end are held out, and which cannot be read."""


def write_damaged(folder: Path) -> None:
    """Files for both ranks to open; what is damaged is listed as the others are."""
    for first in range(0, CLIPS, 5):
        rows = [record(i, SHAPE) for i in range(first, min(CLIPS, first + 5))]
        for row in rows:
            if row["id"] == f"clip{DAMAGED}":
                row["vae_latent_bytes"] = row["vae_latent_bytes"][:-4]
        write(folder / f"{first:03d}.parquet", rows, row_group_size=2)


def on_latents(folder: Path) -> dict[str, Any]:
    """Fields of a config: 60 tokens a clip in ragged tiles, and more steps than an epoch has."""
    c, t, h, w = SHAPE
    size = dict(channels=c, video=(t, h, w), patch=(1, 1, 1), context_dim=TEXT["text_dim"])
    model = replace(tiny("unused").model, **size)
    stats = {f"latents_{name}": numbers for name, numbers in STATS.items()}
    latents = dict(channels=c, num_frames=t, height=h, width=w, holdout=HELD_OUT / CLIPS, **stats)
    return dict(model=model, dataloader=config(folder / "latents", seed=3, **latents))


def latent_run(folder: Path, name: str) -> Trainer.Config:
    """For one process; it keeps its curves, and no checkpoint."""
    kept = dict(checkpoint=Checkpointer.Config(enable=False), metrics=Metrics.Config(log_freq=1))
    return tiny(folder / name, validation=VALIDATED, **on_latents(folder), **kept)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name, changes in LAYOUTS.items():
        found = measured(divided(latent_run(folder, name), **changes))
        torch.save(found, folder / f"{name}.{os.environ['RANK']}.pt")
    dist.destroy_process_group()
