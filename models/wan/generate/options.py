"""What `python -m models.wan.generate` is asked for, and the checks before any long work."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.attention import BSA, VSA, Dense
from models.wan.config import WanConfig

TEXT_TOKENS = 512  # that Wan was trained on; those after the text's end are zero
STRIDE = (4, 8, 8)  # pixels to latents along (T, H, W), after the first frame
DEFAULT_SIZE = 81, 480, 832

Size = tuple[int, int, int]


@dataclass(frozen=True)
class Prompt:
    """Embeddings of one text and of what to stay away from: ``[1, 512, text_dim]``, fp32."""

    positive: Tensor
    negative: Tensor | None


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; sizes as (frames, height, width) in pixels, the slot as `slot`."""
    p = argparse.ArgumentParser(
        prog="python -m models.wan.generate", description="Videos from a Wan 2.1 checkpoint."
    )
    p.add_argument("--attention", choices=["dense", "vsa", "bsa"], default="dense")
    add_shared(p)
    p.add_argument("--out", type=Path, required=True, help=".mp4, or .safetensors for latents")
    p.add_argument(
        "--size", type=size_of, nargs="+", default=[DEFAULT_SIZE], help="FRAMESxHxW each"
    )
    p.add_argument("--draft", type=_pair, help="HxW: sample at this size first, then refine")
    p.add_argument("--refine-from", type=float, default=0.6, help="noise that refining starts at")
    p.add_argument("--fps", type=int, default=16)
    p.add_argument("--compile", action="store_true", help="each block, by torch.compile")
    return finish(p.parse_args(argv))


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
    p.add_argument("--top-k", type=int, help="tiles that a query tile attends to")
    p.add_argument("--sparsity", type=float, help="in place of --top-k; default 0.875")
    p.add_argument("--keep", type=float, default=0.5, help="bsa: share of the queries that stay")
    p.add_argument(
        "--window", type=_triple, default=(2, 2, 2), help="bsa: in which they are pruned"
    )
    p.add_argument("--tile", type=_triple, default=(4, 4, 4), help="TxHxW, or fit")
    p.add_argument("--query-tiles", type=int, default=1, help="adjacent tiles that choose together")
    p.add_argument("--dense-steps", type=int, default=0, help="first steps with dense attention")
    p.add_argument("--dense-layers", type=int, default=0, help="first layers with dense attention")
    p.add_argument("--steps", type=int, default=50)
    p.add_argument("--sampler", choices=["unipc", "euler"], default="unipc")
    p.add_argument("--shift", type=float, help="of the noise levels; default 5, below 720 lines 3")
    p.add_argument("--guidance", type=float, default=5.0, help="1 is none")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--dtype", choices=["bfloat16", "float16", "float32", "float64"])


def finish(o: argparse.Namespace) -> argparse.Namespace:
    """With the slot that was asked for, and the dtype where none was."""
    o.slot = slot_of(o)
    if o.dtype is None:
        o.dtype = "float32" if o.device == "cpu" else "bfloat16"
    return o


def slot_of(o: argparse.Namespace) -> Any:
    """The attention that was asked for."""
    given = {"--top-k": o.top_k, "--sparsity": o.sparsity}
    if o.top_k is not None and o.sparsity is not None:
        raise ValueError("give --top-k or --sparsity, not both")
    if o.attention == "dense":
        if named := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"{named[0]} is for sparse attention: give --attention vsa or bsa")
        return Dense()
    sparsity = 0.875 if o.sparsity is None else o.sparsity
    shared: Any = dict(sparsity=sparsity, tile=o.tile, query_tiles=o.query_tiles)
    if o.attention == "vsa":
        return VSA(top_k=o.top_k, adapt=True, **shared)
    return BSA(kv=o.top_k, keep=o.keep, window=o.window, **shared)


def shift_of(o: argparse.Namespace, size: Size) -> float:
    """Of the noise levels for a video of this size: what was given, or Wan's own."""
    return o.shift or (5.0 if size[1] >= 720 else 3.0)


def latent_size(size: Size) -> Size:
    """Frames, height and width of the latent of a video of this size in pixels.

    Raises:
        ValueError: frames that are not 4k + 1, sides that are no multiple of 16.
    """
    frames, height, width = size
    if frames < 1 or (frames - 1) % STRIDE[0]:
        near = 1 + STRIDE[0] * max(0, round((frames - 1) / STRIDE[0]))
        raise ValueError(f"--size {_text(size)}: {frames} frames are not 4k + 1; try {near}")
    if height % 16 or width % 16 or height < 16 or width < 16:
        h, w = (max(16, 16 * round(s / 16)) for s in (height, width))
        raise ValueError(
            f"--size {_text(size)}: height and width must be multiples of 16; try {frames}x{h}x{w}"
        )
    return 1 + (frames - 1) // STRIDE[0], height // STRIDE[1], width // STRIDE[2]


def check(o: argparse.Namespace, config: WanConfig) -> None:
    """ValueError, in a line, for what cannot work with this model."""
    if config.image_dim is not None or config.in_channels != config.out_channels:
        raise ValueError(
            f"{o.checkpoint} is an image-to-video model; this command has text alone for it"
        )
    if (o.checkpoint / "transformer_2").exists():
        raise ValueError(
            f"{o.checkpoint} has two transformers, for high and for low noise, as Wan 2.2 has; "
            "this command samples with one: it is for Wan 2.1"
        )
    try:
        torch.empty(0, device=o.device)
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"--device {o.device}: {str(e).splitlines()[0]}") from None
    if not all(map(math.isfinite, (o.guidance, o.shift or 1.0))):
        raise ValueError(f"--guidance {o.guidance}, --shift {o.shift} must be finite numbers")
    sizes = [*o.size] + ([(o.size[0][0], *o.draft)] if o.draft else [])
    for size in sizes:
        tiling = o.slot.tiling(config.grid_of(latent_size(size)))
        if tiling is not None:
            o.slot.q_rows_for(tiling)
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


def read_prompts(path: Path, text_dim: int, guidance: float) -> list[Prompt]:
    """The embeddings in a file, padded with zeros to 512 tokens.

    Raises:
        FileNotFoundError, ValueError: no file, none of safetensors, names or widths that are not
            due.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--prompt-embeds {path}: there is no such file")
    try:
        with safe_open(path, "pt") as tensors:
            found = {name: tensors.get_tensor(name).float() for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as e:
        raise ValueError(f"--prompt-embeds {path} is no safetensors file: {e}") from None
    if "prompt_embeds" not in found:
        raise ValueError(
            f"--prompt-embeds {path} has {', '.join(found) or 'nothing'}; prompt_embeds is due"
        )
    padded = {}
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        if name not in found:
            continue
        x = found[name]
        x = x[None] if x.ndim == 2 else x
        if not x.isfinite().all():
            raise ValueError(f"--prompt-embeds {path}: {name} has numbers that are not finite")
        sizes = x.ndim == 3 and 0 < x.shape[1] <= TEXT_TOKENS and len(x) > 0
        if not sizes or x.shape[-1] != text_dim:
            raise ValueError(
                f"--prompt-embeds {path}: {name} is {list(found[name].shape)}, but this model "
                f"takes [1 to {TEXT_TOKENS} tokens, {text_dim}]"
            )
        padded[name] = torch.nn.functional.pad(x, (0, 0, 0, TEXT_TOKENS - x.shape[1]))
    positive, negative = padded["prompt_embeds"], padded.get("negative_prompt_embeds")
    if guidance == 1:
        return [Prompt(x, None) for x in positive.split(1)]
    if negative is None:
        raise ValueError(
            f"--guidance {guidance:g} needs negative_prompt_embeds, which {path} does not have: "
            "add them (of the empty text, say), or give --guidance 1"
        )
    if len(negative) not in (1, len(positive)):
        raise ValueError(
            f"--prompt-embeds {path} has {len(positive)} prompts and {len(negative)} negative "
            "ones: give one for all, or one for each"
        )
    negatives = negative.expand(len(positive), -1, -1).split(1)
    return [Prompt(a, b) for a, b in zip(positive.split(1), negatives)]


def out_paths(out: Path, sizes: Sequence[Size], prompts: int) -> list[list[Path]]:
    """Where the clip of each size and prompt goes; none of these files exists.

    Raises:
        ValueError: another kind of file, one that exists, a folder that cannot be written.
    """
    if out.suffix not in (".mp4", ".safetensors"):
        raise ValueError(f"--out {out} must end in .mp4, or in .safetensors for latents")

    def name(size: Size, prompt: int) -> Path:
        parts = [out.stem]
        parts += [_text(size)] if len(sizes) > 1 else []
        parts += [str(prompt)] if prompts > 1 else []
        return out.with_name("-".join(parts) + out.suffix)

    paths = [[name(size, i) for i in range(prompts)] for size in sizes]
    flat = [path for row in paths for path in row]
    if len({*flat}) < len(flat):
        raise ValueError(f"--size names {len(sizes)} sizes, some of them twice")
    for path in flat:
        if path.exists():
            raise ValueError(f"--out {path} exists: give another name, or move it")
    check_writable(out)
    return paths


def check_writable(out: Path) -> None:
    """ValueError unless a file or folder of this name could be made, by making one."""
    folder = out.absolute().parent
    while not folder.exists():
        folder = folder.parent
    draft = folder / f".{out.name}.{os.getpid()}"
    try:
        draft.touch(exist_ok=False)
        draft.unlink()
    except OSError as e:
        raise ValueError(f"--out {out}: {folder} cannot be written to ({e.strerror})") from None


def size_of(text: str) -> Size:
    t, h, w = _numbers(text, 3)
    return t, h, w


def _triple(text: str) -> Size | None:
    return None if text == "fit" else size_of(text)


def _pair(text: str) -> tuple[int, int]:
    h, w = _numbers(text, 2)
    return h, w


def _numbers(text: str, due: int) -> list[int]:
    parts = text.lower().split("x")
    if len(parts) != due or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} must be {due} numbers with x between them")
    return [int(part) for part in parts]


def _text(size: Size) -> str:
    return "x".join(map(str, size))
