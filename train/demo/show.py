"""What the demo shows: its results turned into the pictures of the report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from train.data.batch import Sample
from train.demo.attention_pictures import draw_kept_queries, draw_tiles_per_query
from train.demo.clips import side_by_side, to_pixels, write_gif
from train.demo.measure import SlotCall
from train.demo.pictures import Curve, busiest_tile, draw_chosen_tiles, draw_losses, tile_of_pixel
from train.demo.settings import NAMES, TITLES
from train.sparsity.attention_stats import LayerStats
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
    out: Path,
    calls: Mapping[str, list[SlotCall]],
    stats: Mapping[str, list[LayerStats]],
    example: Sample,
) -> None:
    """tiles.png and queries.png, of a clip and the first head of the last layer, and how many tiles
    are looked at in all heads of each layer: tiles_per_query.png."""
    tiling = calls["vsa"][-1].inputs[-1]
    clip = example["video"].permute(1, 2, 3, 0).numpy()
    t, y, x = (p // v * s for p, v, s in zip(clip.shape, tiling.video, tiling.tile, strict=False))
    query = busiest_tile(clip, tile_of_pixel(clip.shape[:3], tiling.grid, (t, y, x)))
    chosen = {}
    for run in SPARSE:
        slot, (_, q, k, _, _) = cast(Any, calls[run][-1].slot), calls[run][-1].inputs
        chosen[NAMES[run]] = slot.choose(q, k, tiling).tile_map[0, 0, query].cpu().numpy()
    draw_chosen_tiles(out / "tiles.png", clip, tiling.grid, (t, y, x), query, chosen)

    kept = [layer.kept[0, 0] for layer in stats["bsa"] if layer.kept is not None]
    draw_kept_queries(out / "queries.png", clip, kept)
    spread = {
        NAMES[run]: [layer.admitted for layer in stats[run] if layer.admitted is not None]
        for run in SPARSE
    }
    draw_tiles_per_query(out / "tiles_per_query.png", spread, tiling.num_tiles)


def write_clips(out: Path, shown: list[Sample], made: Mapping[str, Tensor], fps: float) -> None:
    """samples.gif, side by side with real clips, and each model's own GIF."""
    captions = [clip["caption"] or "(no caption)" for clip in shown]
    real = [clip["video"].permute(1, 2, 3, 0).numpy() for clip in shown]
    columns = {name: [to_pixels(clip) for clip in clips] for name, clips in made.items()}
    for name, clips in columns.items():
        rows = [[clip] for clip in clips]
        write_gif(out / f"{name}.gif", side_by_side(rows, [TITLES[name]], captions), fps)
    rows = list(zip(real, *columns.values(), strict=True))
    names = ["real clip", *(TITLES[name] for name in columns)]
    write_gif(out / "samples.gif", side_by_side(rows, names, captions), fps)
