"""The command: see options.py for what it takes, report.py for what it writes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch

from flexsparse.stages.windows import fit_window
from models.wan.checkpoint import compute_dtypes, read_config
from models.wan.generate.attention import load_model
from models.wan.generate.clip import decode, load_vae
from models.wan.generate.command import status_of
from models.wan.generate.options import shift_of
from models.wan.generate.quality.measure import Quality, compare
from models.wan.generate.quality.options import check, parse, read_prompt
from models.wan.generate.quality.results import Clips
from models.wan.generate.sampling import draw_noise
from models.wan.generate.sizes import latent_size


def main(argv: Sequence[str] | None = None) -> int:
    return status_of(lambda: run(parse(argv)))


def run(o: argparse.Namespace) -> Quality:
    """Write the report; returns what it is made of. The clips are those that
    `models.wan.generate` makes with the same options."""
    config = read_config(o.checkpoint)
    check(o, config)
    from tqdm import tqdm

    from models.wan.generate.quality.report import write_report  # with matplotlib, as it now is

    device = torch.device(o.device)
    size, shift = latent_size(o.size[0]), shift_of(o, o.size[0])
    attention = describe(o, config.grid_of(size))
    prompt = read_prompt(o, config.text_dim)
    vae, folder = None, o.vae or o.checkpoint / "vae"
    if o.vae or folder.is_dir():
        vae = load_vae(folder, device, torch.float32, config.out_channels)
    dtype: Any = compute_dtypes(getattr(torch, o.dtype))
    options: Any = dict(device=device, dtype=dtype, drop_gates=o.drop_gates)
    model = load_model(o, config, **options)
    with tqdm(total=o.steps, unit="step") as bar:
        quality = compare(
            model,
            draw_noise(model, size, o.seed + o.prompt),
            prompt.positive.to(device),
            None if prompt.negative is None else prompt.negative.to(device),
            steps=o.steps,
            sampler=o.sampler,
            shift=shift,
            guidance=o.guidance,
            dense_steps=o.dense_steps,
            dense_layers=o.dense_layers,
            each=lambda step: bar.update(),
        )
    latents = quality.dense, quality.sparse
    if vae is None:
        clips = Clips(*(latent[0].transpose(0, 1).cpu() for latent in latents))
    else:
        clips = Clips(*(decode(vae, latent)[0] for latent in latents))
    write_report(o, attention, shift, quality, clips)
    print(o.out / "report.md")
    return quality


def describe(o: argparse.Namespace, grid: tuple[int, int, int]) -> str:
    """The attention in words, with its numbers on a grid of tokens."""
    tiling: Any = o.slot.tiling(grid)
    tile = "x".join(map(str, tiling.tile))
    about = "" if o.attention == "vsa" or o.slot.kv else "about "
    words = [f"{about}{o.slot.top_k_for(tiling)} of {tiling.num_tiles} tiles of {tile} tokens"]
    if o.attention == "bsa":
        window = "x".join(map(str, fit_window(o.slot.window, tiling) or tiling.tile))
        words.append(f"{o.slot.keep:.3g} of the queries in each window of {window}")
    if o.slot.query_tiles > 1:
        words.append(f"{o.slot.query_tiles} query tiles choose together")
    return f"{o.attention.upper()}: " + ", ".join(words)


if __name__ == "__main__":
    sys.exit(main())
