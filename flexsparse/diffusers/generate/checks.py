"""What cannot work is found before any weights are read."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from flexsparse.diffusers.convert import restore
from flexsparse.diffusers.generate.arguments import (
    Size,
    call_arguments,
    own_fps,
    own_size,
    size_arguments,
    texts_of,
)
from flexsparse.diffusers.generate.attention import check_gates, make_sparse, text_of
from flexsparse.diffusers.generate.files import check_free, check_writable
from flexsparse.diffusers.generate.folder import Folder, open_folder
from flexsparse.diffusers.generate.lora import check_lora
from flexsparse.diffusers.generate.memory import check_memory
from flexsparse.slots import VSA


@dataclass(frozen=True)
class Clip:
    """One that is to be made: its number from 1, its file, and what the pipeline is given."""

    number: int
    path: Path
    arguments: dict[str, Any]
    seed: int


@dataclass(frozen=True)
class Work:
    """All that was asked for, as far as it can be known to work."""

    folder: Folder
    clips: list[Clip]


def check(o: argparse.Namespace) -> Work:
    """What to do; ValueError or OSError, in a line, for what cannot be done."""
    _check_installed(o)
    if o.out.suffix not in (".mp4", ".safetensors"):
        raise ValueError(f"--out {o.out} must end in .mp4, or in .safetensors for latents")
    folder = open_folder(o.pipeline, o.as_class, texts=o.prompt_embeds is None)
    _check_numbers(o)
    _check_device(o)
    common = call_arguments(o, folder)
    _check_cleaning(o, folder)
    o.fps = o.fps or own_fps(folder)
    sizes = [(size, size_arguments(size, folder)) for size in o.size]
    for size in o.size:
        if size is not None:
            check_size(size, folder)
    texts = texts_of(o, folder)
    check_gates(o, folder)
    _check_method(o, folder)
    check_lora(o.lora, folder)
    arguments = [common | of_size | text for _, of_size in sizes for text in texts]
    parts = [(size, number) for size in o.size for number, _ in enumerate(texts, 1)]
    clips = [
        Clip(0, _path(o, size, number if len(texts) > 1 else None, seed), given, seed)
        for (size, number), given in zip(parts, arguments)
        for seed in o.seed
    ]
    if len({clip.path for clip in clips}) < len(clips):
        raise ValueError("--size or --seed names one of them twice")
    for clip in clips:
        for path in _files_of(clip.path, o):
            check_free(path)
    check_writable(o.out)
    known = [size for size in (x or own_size(folder) for x in o.size) if size]
    tokens = max((tokens_of(size, folder) for size in known), default=0)
    check_memory(o, folder, tokens)
    return Work(folder, [replace(clip, number=i) for i, clip in enumerate(clips, 1)])


def beside(path: Path, name: str) -> Path:
    """The file of another clip of the same."""
    return path.with_stem(f"{path.stem}-{name}")


def report_of(path: Path) -> Path:
    """The folder of a clip's report."""
    return path.with_name(f"{path.stem}-report")


def name_of(sparsity: float | None) -> str:
    return "dense" if sparsity is None else f"{sparsity:g}"


def strides_of(folder: Folder) -> tuple[int, int] | None:
    """Frames and pixels of a side to one of the latent; None of a VAE that does not say."""
    vae = folder.vae
    if vae is None:
        return None
    spellings = (
        ("temporal_compression_ratio", "scale_factor_temporal"),
        (
            "spatial_compression_ratio",
            "scale_factor_spatial",
        ),
    )
    found = [
        next((x for n in names if (x := vae.config.get(n) or vars(vae).get(n))), None)
        for names in spellings
    ]
    if found[1] is None and "block_out_channels" in vae.config:  # each but the last halves
        found[1] = 2 ** (len(vae.config["block_out_channels"]) - 1)
    t, s = found
    return None if t is None or s is None else (int(t), int(s))


def patch_of(folder: Folder) -> tuple[int, int]:
    """Frames and pixels of a latent's side to a token."""
    config = folder.first.config
    patch = config.get("patch_size") or 1
    if isinstance(patch, int):
        return config.get("patch_size_t") or 1, patch
    return patch[0], patch[-1]


def check_size(size: Size, folder: Folder) -> None:
    """ValueError, with the nearest that fits, for a video that the VAE or the patches cannot have.

    Some pipelines round such a size, with a warning, others fail at the first step.
    """
    if (strides := strides_of(folder)) is None:
        return
    frames, *sides = size
    stride, side = strides[0], strides[1] * patch_of(folder)[1]
    fits = (
        1 + stride * max(0, round((frames - 1) / stride)),
        *(side * max(1, round(x / side)) for x in sides),
    )
    if fits != size:
        raise ValueError(
            f"--size {text_of(size)}: this VAE and transformer take {stride}k + 1 frames and "
            f"sides that are multiples of {side}; try {text_of(fits)}"
        )


def tokens_of(size: Size, folder: Folder) -> int:
    """About how many a video of this size has; 0 where its VAE does not say."""
    if (strides := strides_of(folder)) is None:
        return 0
    of_time, of_side = patch_of(folder)
    frames = -(-(1 + (size[0] - 1) // strides[0]) // of_time)
    return frames * math.prod(x // strides[1] // of_side for x in size[1:])


def _check_installed(o: argparse.Namespace) -> None:
    names = ["av"] * (o.out.suffix == ".mp4") + ["matplotlib"] * (o.compare is not None)
    names += ["peft"] * bool(o.lora)
    if missing := [name for name in names if find_spec(name) is None]:
        raise ValueError(f"this takes {' and '.join(missing)}: pip install {' '.join(missing)}")


def _check_cleaning(o: argparse.Namespace, folder: Folder) -> None:
    """ValueError where cleaning a prompt takes a package that is not there: some of diffusers'
    pipelines say so only once their weights are loaded."""
    clean = getattr(sys.modules[folder.cls.__module__], "prompt_clean", None)
    try:
        if clean is not None and o.texts:
            clean(o.texts[0])
    except NameError as e:
        raise ValueError(f"{folder.cls.__name__} takes {e.name}: pip install {e.name}") from None


def _check_device(o: argparse.Namespace) -> None:
    try:
        device = torch.empty(0, device=o.device).device
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"--device {o.device}: {str(e).splitlines()[0]}") from None
    if device.type == "meta":
        raise ValueError("--device meta computes nothing: give cpu or cuda")
    if o.offload and device.type == "cpu":
        raise ValueError(f"--offload {o.offload} keeps weights off a GPU, and --device is cpu")


def _check_numbers(o: argparse.Namespace) -> None:
    for seed in o.seed:
        if not -(2**63) <= seed < 2**63:
            raise ValueError(f"--seed {seed} takes more than 64 bits: give a smaller one")
    for name in ("guidance", "guidance_2"):
        if (value := getattr(o, name)) is not None and not math.isfinite(value):
            raise ValueError(f"--{name.replace('_', '-')} {value} must be a finite number")
    for name in ("steps", "fps"):
        if (value := getattr(o, name)) is not None and value < 1:
            raise ValueError(f"--{name} {value} must be at least 1")


def _check_method(o: argparse.Namespace, folder: Folder) -> None:
    """ValueError for what `sparsify` will refuse: layers, windows, sparsities."""
    if o.method is None:
        return
    for sparsity in o.sweep or [None]:
        method = o.method if sparsity is None else replace(o.method, sparsity=sparsity)
        for model in folder.models.values():
            bare = replace(method, gates=False) if isinstance(method, VSA) else method
            make_sparse(model, o, bare)
            restore(model)


def _files_of(path: Path, o: argparse.Namespace) -> list[Path]:
    """What a clip's file, and the answers that were asked for beside it, are called."""
    if o.sweep is not None:
        return [beside(path, name_of(sparsity)) for sparsity in (None, *o.sweep)]
    return [path, beside(path, "dense"), report_of(path)] if o.compare else [path]


def _path(o: argparse.Namespace, size: Size | None, text: int | None, seed: int) -> Path:
    parts = [o.out.stem]
    parts += [text_of(size)] if size is not None and len(o.size) > 1 else []
    parts += [str(text)] if text is not None else []
    parts += [f"seed{seed}"] if len(o.seed) > 1 else []
    return o.out.with_name("-".join(parts) + o.out.suffix)
