"""What trained models choose: how much of dense attention it holds, and how it looks.

    python -m benchmarks.evidence.selection [--steps N] [--data doom]

Takes the models of seed 0 that `benchmarks.evidence.parity` trained with N steps (default: those of
the page), shows them held-out clips at several noise levels, and measures for each
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

from benchmarks.evidence.choices import draw_choices
from benchmarks.evidence.page import rows_of
from benchmarks.evidence.recall import best, held, tile_mass
from benchmarks.evidence.runs import Run, command, config_of, parser
from benchmarks.evidence.scale import METHODS, SCALES, Scale, here
from benchmarks.record import write_row
from flexsparse import VideoTiling
from flexsparse.vsa import vsa_tile_map
from train.data.batch import Batch, Sample
from train.demo.measure import SlotCall, plain_copy, slot_calls
from train.demo.model import PixelDiT
from train.demo.run import one_a_caption
from train.flow import keyed_generator

TIMES, CLIPS = (0.25, 0.5, 0.75, 0.95), 4
IMAGES = Path(__file__).parents[2] / "docs" / "images"


def model_and_clips(
    run: Run, scale: Scale, steps: int, out: Path
) -> tuple[PixelDiT, list[tuple[Sample, Batch]]]:
    """A trained model with its averaged weights, and held-out clips of different captions: as they
    were filmed, and as the model takes them."""
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
        loader = config.dataloader.build(split="validation")
        clips = one_a_caption(loader.clips, CLIPS)
        return model, [(clip, loader.collate([clip])) for clip in clips]
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


def noisy(batch: Batch, model: PixelDiT, t: float) -> tuple[Tensor, Tensor, Tensor]:
    """A clip with some noise, as the model meets it: x_t, t and the context."""
    weight = model.dit.patch_in.weight
    x0, context = (batch[name].to(weight.device) for name in ("video", "context"))
    noise = torch.randn(x0.shape, generator=keyed_generator(x0.device, "selection")).to(x0)
    return (1 - t) * x0 + t * noise, torch.full((1,), t, device=x0.device), context


@torch.no_grad()
def measure(
    name: str, model: PixelDiT, clips: list[Batch], of: dict[str, Any], results: Path
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


def draw(models: dict[str, PixelDiT], clip: Sample, batch: Batch, path: Path) -> None:
    """Heads by noise levels: what one tile of a clip attends to, in each sparse model."""
    for name, model in models.items():
        maps = []
        for t in TIMES:
            calls = slot_calls(model, *noisy(batch, model, t))
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
    scale = SCALES.get(given.scale) or here()
    shown = {
        (rows[0]["scale"], rows[0]["data"]): rows[0]["steps"]
        for rows in rows_of("parity", given.results, list(METHODS))
    }
    steps = given.steps or shown.get((scale.name, given.data), 0)
    models: dict[str, PixelDiT] = {}
    clips: list[tuple[Sample, Batch]] = []
    for name, attention in METHODS.items():
        run = Run("parity", given.data, name, attention)
        models[name], clips = model_and_clips(run, scale, steps, given.out)
    of = dict(data=given.data, scale=scale.name, steps=steps)
    for name, model in models.items():
        measure(name, model, [batch for _, batch in clips], of, given.results)
    draw({name: models[name] for name in ("vsa", "bsa")}, *clips[0], given.images)
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
