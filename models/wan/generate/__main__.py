"""The command: see options.py for what it takes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import Any, cast

import torch
from torch import Tensor

from models.wan.checkpoint import compute_dtypes, read_config
from models.wan.generate.attention import load_model
from models.wan.generate.clip import load_vae, write_clip
from models.wan.generate.clock import Clock
from models.wan.generate.command import status_of
from models.wan.generate.options import check, out_paths, parse, shift_of
from models.wan.generate.prompts import Prompt, read_prompts
from models.wan.generate.sampling import (
    attention_alone,
    compile_blocks,
    draw_noise,
    sample,
)
from models.wan.generate.sizes import Size, draft_size, latent_size
from models.wan.model import WanModel


def main(argv: Sequence[str] | None = None) -> int:
    return status_of(lambda: run(parse(argv)))


def run(o: argparse.Namespace) -> Clock:
    """Make all clips; returns the seconds that each part took."""
    config = read_config(o.checkpoint)
    check(o, config)
    device, dtype = torch.device(o.device), getattr(torch, o.dtype)
    clock = Clock(device)
    with clock.part("text"):
        prompts = read_prompts(o.prompt_embeds, config.text_dim, o.guidance)
    paths = out_paths(o.out, o.size, len(prompts))
    with clock.part("loading"):
        vae = None
        if o.out.suffix == ".mp4":  # first, since it is small: a wrong one is named at once
            vae = load_vae(
                o.vae or o.checkpoint / "vae", device, torch.float32, config.out_channels
            )
        options: Any = dict(device=device, dtype=compute_dtypes(dtype), drop_gates=o.drop_gates)
        model = load_model(o, config, **options)
    if o.compile:
        compile_blocks(model)
    compiled: set[Size] = set()
    for size, row in zip(o.size, paths):
        for number, (prompt, path) in enumerate(zip(prompts, row)):
            latent = _sample(o, model, prompt, size, o.seed + number, clock, compiled)
            print(write_clip(path, latent, vae, o.fps, clock))
    print("\n".join(clock.lines()))
    return clock


def _sample(
    o: argparse.Namespace,
    model: WanModel,
    prompt: Prompt,
    size: Size,
    seed: int,
    clock: Clock,
    compiled: set[Size],
) -> Tensor:
    """The latent of a clip, by way of a draft at another size if that was asked for.

    `compiled` are the sizes that there are programs for; those that come are added.
    """
    from tqdm import tqdm

    slots = [cast(Any, block).self_attn.slot for block in model.layers.values()]
    device = next(model.parameters()).device
    text = prompt.positive.to(device)
    negative = None if prompt.negative is None else prompt.negative.to(device)
    stages = [] if o.draft is None else [draft_size(size, o.draft)]
    latent = None
    for stage in [*stages, size]:
        noise = draw_noise(model, latent_size(stage), seed)
        name = "x".join(map(str, stage))
        fresh = o.compile and stage not in compiled
        with (
            clock.part("DiT"),
            tqdm(total=o.steps, desc=name, unit="step") as bar,
            ExitStack() as apart,
        ):

            def each(
                step: int, steps: int, bar: Any = bar, apart: Any = apart, fresh: bool = fresh
            ) -> None:
                bar.total = steps
                bar.update(step - bar.n)
                apart.close()
                # the first step, and the first one after --dense-steps, compile
                if fresh and step in (0, o.dense_steps - o.steps + steps):
                    apart.enter_context(clock.part("of which first steps (compilation)"))

            attention = clock.inside("of which attention", slots)
            with nullcontext() if o.compile else attention:
                latent = sample(
                    model,
                    noise,
                    text,
                    negative,
                    steps=o.steps,
                    sampler=o.sampler,
                    shift=shift_of(o, stage),
                    guidance=o.guidance,
                    dense_steps=o.dense_steps,
                    dense_layers=o.dense_layers,
                    start=latent,
                    strength=o.refine_from,
                    each=each,
                )
            steps = int(bar.total)
            bar.update(steps - bar.n)
        if o.compile:
            compiled.add(stage)
            passes = steps * (1 if negative is None else 2)
            name = "of which attention (a layer by itself)"
            attention_alone(model, latent_size(stage), clock, name, passes * len(slots))
    assert latent is not None
    return latent


if __name__ == "__main__":
    sys.exit(main())
