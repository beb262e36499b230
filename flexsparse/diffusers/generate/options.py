"""What `python -m flexsparse.diffusers.generate` is asked for."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from flexsparse.diffusers.generate import attention
from flexsparse.diffusers.generate.attention import size_of

DENSITIES = 0.5, 0.7, 0.8, 0.9, 0.95
DTYPES = "bfloat16", "float16", "float32"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m flexsparse.diffusers.generate",
        description="Clips of any diffusers video pipeline, with dense or sparse attention. "
        "Whatever is not given is as the pipeline has it.",
    )
    p.add_argument("pipeline", type=Path, metavar="PIPELINE_DIR", help="a pipeline's folder")
    p.add_argument("--out", type=Path, required=True, help=".mp4, or .safetensors for latents")
    p.add_argument("--as", dest="as_class", metavar="CLASS", help="load it as this pipeline class")
    _add_content(p.add_argument_group("what the clips show"))
    attention.add_options(p.add_argument_group("attention"))
    _add_questions(p.add_argument_group("which density?"))
    _add_machine(p.add_argument_group("weights and machine"))
    return p


def _add_content(p: argparse._ArgumentGroup) -> None:
    texts = p.add_mutually_exclusive_group(required=True)
    texts.add_argument("--prompt", nargs="+", metavar="TEXT", help="a clip for each")
    texts.add_argument("--prompts", type=Path, metavar="FILE", help="a clip for each of its lines")
    texts.add_argument(
        "--prompt-embeds",
        type=Path,
        metavar="FILE",
        help="texts that are encoded already: safetensors, [texts, ...] each, by the names that "
        "the pipeline's call has for them",
    )
    p.add_argument("--negative-prompt", metavar="TEXT")
    p.add_argument("--image", type=Path, metavar="FILE", help="for image-to-video pipelines")
    p.add_argument(
        "--video",
        type=_file_of,
        nargs="+",
        action="extend",
        default=[],
        metavar="[NAME=]FILE",
        help="for pipelines that take videos; NAME is the call's, default video",
    )
    p.add_argument("--size", type=size_of, nargs="+", metavar="FRAMESxHxW", help="a clip for each")
    p.add_argument("--seed", type=int, nargs="+", default=[0], metavar="N", help="a clip for each")
    p.add_argument("--steps", type=int, help="of the scheduler")
    p.add_argument("--guidance", type=float, help="scale; 1 is none")
    p.add_argument("--guidance-2", type=float, help="of a pair's second transformer")
    p.add_argument("--fps", type=int, help="frames a second; default the pipeline's own, or 16")
    p.add_argument(
        "--call",
        type=_named,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="more arguments of the pipeline's call, values in JSON or text",
    )


def _add_questions(p: argparse._ArgumentGroup) -> None:
    p.add_argument(
        "--compare",
        choices=["dense"],
        help="make the clip densely as well, and a report on what differs, beside it",
    )
    p.add_argument(
        "--sweep",
        type=float,
        nargs="*",
        metavar="SPARSITY",
        help=f"make the clip at each of these and densely, and print error against time; default "
        f"{' '.join(map(str, DENSITIES))}",
    )
    p.add_argument(
        "--max-error",
        type=float,
        default=0.05,
        help="of a clip, that --sweep names the cheapest within: root mean square of the pixels' "
        "difference to dense, black to white is 1; default 0.05",
    )


def _add_machine(p: argparse._ArgumentGroup) -> None:
    p.add_argument(
        "--lora",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="LoRA's file or folder; a second one is for a pair's second transformer",
    )
    p.add_argument("--compile", action="store_true", help="each block, by torch.compile")
    p.add_argument(
        "--offload",
        choices=["model", "group"],
        help="keep weights in main memory: a model at a time on the GPU, or a few layers",
    )
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--dtype", choices=DTYPES, help="default bfloat16, on a CPU float32")
    p.add_argument("--vae-dtype", choices=DTYPES, help="default --dtype; float32 is safest")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; the slot as `method`, None for dense, sizes ``[None]`` for the pipeline's.

    Raises:
        ValueError: options that exclude each other.
    """
    o = parser().parse_args(argv)
    attention.finish(o)
    o.dtype = o.dtype or ("float32" if o.device == "cpu" else "bfloat16")
    o.vae_dtype = o.vae_dtype or o.dtype
    o.size = o.size or [None]
    o.texts = read_prompts(o)
    many = [len(o.size), len(o.seed), 1 if o.texts is None else len(o.texts)]
    for name in ("compare", "sweep"):
        if getattr(o, name) is None:
            continue
        if o.method is None:
            raise ValueError(f"--{name} is for --attention vsa or bsa, this is dense")
        if many != [1, 1, 1]:
            raise ValueError(f"--{name} is of one clip: give one prompt, one size and one seed")
    if o.compile and o.offload == "group":
        raise ValueError(
            "--offload group moves weights within blocks, which --compile closes: give "
            "--offload model, or leave out one of them"
        )
    if o.compare and o.compile:
        raise ValueError("--compare looks into blocks, which --compile closes: leave it out")
    if o.sweep is not None:
        if o.compare:
            raise ValueError("give --compare or --sweep, not both")
        if given := [n for n in ("top_k", "sparsity") if n in o]:
            raise ValueError(
                f"--sweep tries its own densities: leave out {attention.flag(given[0])}"
            )
        o.sweep = sorted({*o.sweep} or DENSITIES, reverse=True)
    if not o.max_error > 0:
        raise ValueError(f"--max-error {o.max_error} must be above 0")
    return o


def read_prompts(o: argparse.Namespace) -> list[str] | None:
    """The texts that were given; None where they are encoded already."""
    if o.prompt_embeds is not None:
        if o.negative_prompt is not None:
            raise ValueError("--negative-prompt is for --prompt: --prompt-embeds has its own")
        return None
    texts = o.prompt
    if o.prompts is not None:
        try:
            texts = o.prompts.read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise ValueError(f"--prompts {o.prompts} cannot be read: {e}") from None
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        raise ValueError(f"{o.prompts or '--prompt'} has no text")
    return texts


def _file_of(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    return (name, Path(path)) if equals and name.isidentifier() else ("video", Path(text))


def _named(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
