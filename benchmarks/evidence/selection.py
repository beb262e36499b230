"""What trained models choose: how much of dense attention it holds, and how it looks.

    python -m benchmarks.evidence.selection [--steps N] [--data doom]

Takes the models of seed 0 that `benchmarks.evidence.parity` trained with N steps (default: the most
that it has a row of), shows them held-out clips at several noise levels, and measures for each
layer and head which share of the dense attention mass the chosen tiles hold, beside that of the
best possible choice of as many tiles; tiles drawn at random would hold their share of all tiles. Of
the dense model VSA's choice is measured, made from its q and k. Appends rows to
``benchmarks/results/recall.jsonl`` and draws pictures into ``docs/images``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.evidence.pictures import draw_choices
from benchmarks.evidence.recall import best, held, tile_mass
from benchmarks.evidence.runs import Run, config_of, leave, parser
from benchmarks.evidence.scale import METHODS, Scale, here
from benchmarks.record import read, write_row
from flexsparse import VideoTiling
from flexsparse.vsa import vsa_tile_map
from train.data.batch import Sample
from train.demo.measure import SlotCall, plain_copy, slot_calls
from train.demo.model import PixelDiT
from train.demo.run import noisy, one_a_caption

TIMES, CLIPS = (0.25, 0.5, 0.75, 0.95), 4
IMAGES = Path(__file__).parents[2] / "docs" / "images"


def model_and_clips(run: Run, scale: Scale, steps: int, out: Path) -> tuple[PixelDiT, list[Sample]]:
    """A trained model with its averaged weights, and held-out clips of different captions."""
    config = config_of(run, scale, steps, out)
    found = Path(config.dump_folder, "checkpoint", f"step-{steps}")
    if not found.exists():
        raise FileNotFoundError(
            f"there is no {found}: run python -m benchmarks.evidence.parity --steps {steps} first"
        )
    trainer = config.build()
    try:
        with trainer.averaged():
            model = plain_copy(trainer)
        assert trainer.validator is not None
        clips = config.dataloader.build(split="validation").clips
        return model, one_a_caption(clips, CLIPS)
    finally:
        trainer.close()


def choice_of(
    call: SlotCall, grid: tuple[int, int, int]
) -> tuple[VideoTiling, Tensor, Tensor, Tensor]:
    """The tiling, tile-major q and k, and who attends to whom: bool [B, H, n, n]."""
    slot: Any = call.slot
    _, q, k, _, tiling = call.inputs[:5]
    if tiling is not None:
        return tiling, q, k, slot.choose(q, k, tiling).tile_map
    vsa: Any = METHODS["vsa"]
    tiling = vsa.tiling(grid)
    q, k = tiling.to_tiles(q), tiling.to_tiles(k)
    return tiling, q, k, vsa_tile_map(q, k, tiling, top_k=vsa.top_k_for(tiling))


@torch.no_grad()
def measure(
    name: str, model: PixelDiT, clips: list[Sample], of: dict[str, Any], results: Path
) -> None:
    """A row for each layer and noise level: per head, means over clips."""
    for t in TIMES:
        calls = [slot_calls(model, *noisy(clip, model, t)) for clip in clips]
        for layer, of_clips in enumerate(zip(*calls, strict=True)):
            shares = []
            for call in of_clips:
                tiling, q, k, chosen = choice_of(call, model.config.grid)
                mass = tile_mass(q, k, tiling)
                share = chosen.float().mean((-1, -2))
                shares.append(torch.stack([held(mass, chosen), best(mass, chosen), share])[:, 0])
            found = torch.stack(shares).mean(0).tolist()
            kinds = dict(zip(("held", "best", "share"), found, strict=True))
            row = {key: [round(x, 4) for x in heads] for key, heads in kinds.items()}
            device = next(model.parameters()).device.type
            told = dict(name=name, layer=layer, t=t, clips=len(clips), **of, **row)
            write_row("recall", device, results=results, **told)
            print(f"{name} layer {layer} t {t}: {row}", flush=True)


def draw(models: dict[str, PixelDiT], clip: Sample, path: Path) -> None:
    """Layers by noise levels: what one tile of a clip attends to, of each sparse model."""
    for name, model in models.items():
        maps = []
        for t in TIMES:
            calls = slot_calls(model, *noisy(clip, model, t))
            chosen = [choice_of(call, model.config.grid) for call in calls]
            maps.append([tile_map[0].cpu() for *_, tile_map in chosen])
        tiling = chosen[0][0]
        pixels = clip["video"].permute(1, 2, 3, 0).numpy()
        file = path / f"evidence-choices-{name}.png"
        draw_choices(file, pixels, tiling, dict(zip(TIMES, maps, strict=True)))
        print(f"drew {file}")


def main(argv: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--steps", type=int)
    options.add_argument("--images", type=Path, default=IMAGES)
    given = options.parse_args(argv)
    scale = here()
    rows = [
        r
        for r in read("evidence", given.results)
        if (r["experiment"], r["scale"]) == ("parity", scale.name)
    ]
    steps = given.steps or max((r["steps"] for r in rows if r["data"] == given.data), default=0)
    models: dict[str, PixelDiT] = {}
    clips: list[Sample] = []
    try:
        for name, attention in METHODS.items():
            run = Run("parity", given.data, name, attention)
            models[name], clips = model_and_clips(run, scale, steps, given.out)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        leave()
    of = dict(data=given.data, scale=scale.name, steps=steps)
    for name, model in models.items():
        measure(name, model, clips, of, given.results)
    draw({name: models[name] for name in ("vsa", "bsa")}, clips[0], given.images)
    return 0


if __name__ == "__main__":
    sys.exit(main())
