"""What `python -m models.wan.generate` is asked for, and the checks before any long work."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from models.wan.adapter import lora_file
from models.wan.config import WanConfig
from models.wan.experts import times_of
from models.wan.generate import attention
from models.wan.generate.files import check_writable
from models.wan.generate.sizes import (
    CHANNELS,
    DEFAULT_SIZE,
    Size,
    draft_size,
    latent_size,
    pair_of,
    size_of,
    text_of,
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; sizes as (frames, height, width) in pixels, the slot as `slot`."""
    p = argparse.ArgumentParser(
        prog="python -m models.wan.generate", description="Videos from a Wan 2.1 checkpoint."
    )
    p.add_argument("--attention", choices=attention.METHODS, default="dense")
    add_shared(p)
    p.add_argument("--out", type=Path, required=True, help=".mp4, or .safetensors for latents")
    p.add_argument(
        "--size", type=size_of, nargs="+", default=[DEFAULT_SIZE], help="FRAMESxHxW each"
    )
    p.add_argument("--draft", type=pair_of, help="HxW: sample at this size first, then refine")
    p.add_argument("--refine-from", type=float, help="noise that this starts at; default 0.6")
    p.add_argument("--fps", type=int, default=16)
    p.add_argument("--compile", action="store_true", help="each block, by torch.compile")
    o = finish(p.parse_args(argv))
    if o.refine_from is None:
        o.refine_from = 0.6
    elif o.draft is None:
        raise ValueError("--refine-from is for --draft HxW, and there is none")
    return o


def add_shared(p: argparse.ArgumentParser) -> None:
    """The options of every command that samples."""
    p.add_argument(
        "--checkpoint", type=Path, required=True, help="Wan's, diffusers' or FastVideo's"
    )
    p.add_argument(
        "--prompt-embeds",
        type=Path,
        required=True,
        help="safetensors: prompt_embeds [N, width] or [prompts, N, width], for guidance "
        "negative_prompt_embeds as well",
    )
    p.add_argument("--vae", type=Path, help="AutoencoderKLWan; default CHECKPOINT/vae")
    attention.add_options(p)
    p.add_argument("--steps", type=int, default=50)
    p.add_argument("--sampler", choices=["unipc", "euler"], default="unipc")
    p.add_argument("--shift", type=float, help="of the noise levels; default 5, below 720 lines 3")
    p.add_argument("--guidance", type=float, default=5.0, help="1 is none")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--dtype", choices=["bfloat16", "float16", "float32", "float64"])


def finish(o: argparse.Namespace) -> argparse.Namespace:
    """With the slot that was asked for, and the dtype where none was."""
    attention.finish(o)
    if o.dtype is None:
        o.dtype = "float32" if o.device == "cpu" else "bfloat16"
    return o


def shift_of(o: argparse.Namespace, size: Size) -> float:
    """Of the noise levels for a video of this size: what was given, or Wan's own."""
    return o.shift or (5.0 if size[1] >= 720 else 3.0)


def check(o: argparse.Namespace, config: WanConfig) -> None:
    """ValueError, in a line, for what cannot work with this model."""
    check_installed(["diffusers", "tqdm"] + ["av"] * (o.out.suffix == ".mp4"))
    if config.image_dim is not None or config.in_channels != config.out_channels:
        raise ValueError(
            f"{o.checkpoint} is an image-to-video model; this command has text alone for it"
        )
    if config.out_channels != CHANNELS:
        raise ValueError(
            f"{o.checkpoint} has latents of {config.out_channels} channels, not the {CHANNELS} of "
            f"Wan 2.1's VAE, by whose strides (4, 8, 8) sizes are computed here: sample it by "
            f"diffusers, with flexsparse.diffusers.sparsify"
        )
    if (times := times_of(o.checkpoint)) != (0, 1):
        raise ValueError(
            f"{o.checkpoint} is one of two models, for noise from {times[0]:g} to {times[1]:g}, "
            f"and this command samples with one: sample by diffusers, with both made sparse"
        )
    try:
        device = torch.empty(0, device=o.device).device
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"--device {o.device}: {str(e).splitlines()[0]}") from None
    if device.type == "meta":
        raise ValueError("--device meta computes nothing: give cpu or cuda")
    if not -(2**63) <= o.seed < 2**63:
        raise ValueError(f"--seed {o.seed} takes more than 64 bits: give a smaller one")
    if not all(map(math.isfinite, (o.guidance, o.shift or 1.0))):
        raise ValueError(f"--guidance {o.guidance}, --shift {o.shift} must be finite numbers")
    latents = [latent_size(size) for size in o.size]
    if o.draft:
        latents += [latent_size(draft_size(size, o.draft)) for size in o.size]
    for latent in latents:
        tiling = o.slot.tiling(config.grid_of(latent))
        if tiling is not None:
            o.slot.q_rows_for(tiling)
    attention.check_top_k(o, config)
    attention.check_gates(o)
    if o.adapter and not lora_file(o.adapter).is_file():
        raise FileNotFoundError(f"--adapter {o.adapter}: there is no {lora_file(o.adapter)}")
    if not 0 <= o.dense_layers <= config.layers:
        raise ValueError(f"--dense-layers {o.dense_layers}: the model has {config.layers}")
    if o.steps < 1 or not 0 <= o.dense_steps <= o.steps:
        raise ValueError(f"--steps {o.steps}, --dense-steps {o.dense_steps}: give 0 to all of 1 up")
    if not 0 < o.refine_from < 1:
        raise ValueError(f"--refine-from {o.refine_from} must be between 0 and 1, a level of noise")
    if o.shift is not None and o.shift <= 0:
        raise ValueError(f"--shift {o.shift} must be above 0")
    if o.fps < 1:
        raise ValueError(f"--fps {o.fps} must be at least 1")


def check_installed(names: Sequence[str]) -> None:
    """ValueError unless these packages are there, which flexsparse itself does without."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise ValueError(
            f"this command takes {' and '.join(missing)}: pip install {' '.join(missing)}"
        )


def out_paths(out: Path, sizes: Sequence[Size], prompts: int) -> list[list[Path]]:
    """Where the clip of each size and prompt goes; none of these files exists.

    Raises:
        ValueError: another kind of file, one that exists, a folder that cannot be written.
    """
    if out.suffix not in (".mp4", ".safetensors"):
        raise ValueError(f"--out {out} must end in .mp4, or in .safetensors for latents")

    def name(size: Size, prompt: int) -> Path:
        parts = [out.stem]
        parts += [text_of(size)] if len(sizes) > 1 else []
        parts += [str(prompt)] if prompts > 1 else []
        return out.with_name("-".join(parts) + out.suffix)

    paths = [[name(size, i) for i in range(prompts)] for size in sizes]
    flat = [path for row in paths for path in row]
    if len({*flat}) < len(flat):
        raise ValueError(f"--size names {len(sizes)} sizes, some of them twice")
    for path in flat:
        if os.path.lexists(path):
            raise ValueError(f"--out {path} exists: give another name, or move it")
    check_writable(out)
    return paths
