"""What the demo shows: its results turned into the pictures of the report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from train.data.batch import Sample
from train.demo.clips import side_by_side, to_pixels, write_gif
from train.demo.measure import SlotCall
from train.demo.pictures import Curve, busiest_tile, draw_chosen_tiles, draw_losses, tile_of_pixel
from train.demo.settings import NAMES, TITLES
from train.trainer import Trainer

SPARSE = [run for run in NAMES if run != "dense"]


def draw_losses_of(trainers: Mapping[str, Trainer], path: Path) -> None:
    """losses.png: what every step and every second of each run brought."""
    curves = {}
    for run, trainer in trainers.items():
        steps, held_out = trainer.history.steps, trainer.history.validation
        losses, seconds = [step.loss for step in steps], [step.seconds for step in steps]
        curves[TITLES[run]] = Curve(losses, seconds, held_out)
    draw_losses(path, curves)


def draw_what_attention_chose(
    path: Path, calls: Mapping[str, list[SlotCall]], example: Sample
) -> None:
    """Of a clip and the first head of the last layer."""
    tiling = calls["vsa"][-1].inputs[-1]
    clip = example["video"].permute(1, 2, 3, 0).numpy()
    t, y, x = (p // v * s for p, v, s in zip(clip.shape, tiling.video, tiling.tile, strict=False))
    query = busiest_tile(clip, tile_of_pixel(clip.shape[:3], tiling.grid, (t, y, x)))
    chosen = {}
    for run in SPARSE:
        slot, (_, q, k, _, _) = cast(Any, calls[run][-1].slot), calls[run][-1].inputs
        chosen[NAMES[run]] = slot.choose(q, k, tiling).tile_map[0, 0, query].cpu().numpy()
    draw_chosen_tiles(path, clip, tiling.grid, (t, y, x), query, chosen)


def write_clips(out: Path, shown: list[Sample], made: Mapping[str, Tensor], fps: float) -> None:
    """samples.gif: a row for each caption, the real clip and what each model made."""
    captions = [clip["caption"] or "(no caption)" for clip in shown]
    real = [clip["video"].permute(1, 2, 3, 0).numpy() for clip in shown]
    columns = {name: [to_pixels(clip) for clip in clips] for name, clips in made.items()}
    rows = list(zip(real, *columns.values(), strict=True))
    names = ["real clip", *(TITLES[name] for name in columns)]
    write_gif(out / "samples.gif", side_by_side(rows, names, captions), fps)
