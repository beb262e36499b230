"""What `python -m models.wan.generate.quality` is asked for: what generating is, and a folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from models.wan.config import WanConfig
from models.wan.generate import options
from models.wan.generate.files import check_writable
from models.wan.generate.prompts import Prompt, read_prompts
from models.wan.generate.sizes import DEFAULT_SIZE, size_of


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, as `models.wan.generate.options.parse` has it."""
    p = argparse.ArgumentParser(
        prog="python -m models.wan.generate.quality",
        description="What sparse attention changes in the clips of a Wan 2.1 checkpoint, step by "
        "step, layer by layer and frame by frame.",
    )
    p.add_argument("--attention", choices=["vsa", "bsa"], required=True)
    options.add_shared(p)
    p.add_argument("--out", type=Path, required=True, help="the report's folder, new or empty")
    p.add_argument("--size", type=size_of, nargs=1, default=[DEFAULT_SIZE], help="FRAMESxHxW")
    p.add_argument("--prompt", type=int, default=0, help="its number in the file, from 0")
    p.set_defaults(draft=None, refine_from=0.5, fps=1)  # of generating alone
    return options.finish(p.parse_args(argv))


def check(o: argparse.Namespace, config: WanConfig) -> None:
    """ValueError, in a line, for what cannot work with this model, or would say nothing."""
    options.check_installed(["diffusers", "tqdm", "matplotlib"])
    options.check(o, config)
    if o.dense_steps == o.steps or o.dense_layers == config.layers:
        raise ValueError(
            f"--dense-steps {o.dense_steps} of {o.steps}, --dense-layers {o.dense_layers} of "
            f"{config.layers}: nothing is sparse then; give less of one"
        )
    if o.out.exists() and (not o.out.is_dir() or any(o.out.iterdir())):
        raise ValueError(f"--out {o.out} exists and is not an empty folder: give a new one")
    check_writable(o.out)


def read_prompt(o: argparse.Namespace, text_dim: int) -> Prompt:
    """The prompt that `--prompt` names; ValueError if there is none of that number."""
    prompts = read_prompts(o.prompt_embeds, text_dim, o.guidance)
    if not 0 <= o.prompt < len(prompts):
        raise ValueError(
            f"--prompt {o.prompt}: {o.prompt_embeds} has {len(prompts)}, numbered from 0"
        )
    return prompts[o.prompt]
