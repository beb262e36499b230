"""What cannot work is found before any weights are read."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from importlib.util import find_spec

import torch

from flexsparse.diffusers.convert import restore
from flexsparse.diffusers.generate.arguments import (
    call_arguments,
    own_fps,
    own_size,
    size_arguments,
    texts_of,
)
from flexsparse.diffusers.generate.attention import check_gates, make_sparse
from flexsparse.diffusers.generate.files import check_free, check_writable
from flexsparse.diffusers.generate.folder import Folder, open_folder
from flexsparse.diffusers.generate.lora import check_lora
from flexsparse.diffusers.generate.memory import check_memory
from flexsparse.diffusers.generate.sizes import check_size, tokens_of
from flexsparse.diffusers.generate.work import Work, clips_of, files_of
from flexsparse.slots import VSA

FPS = 16  # as Wan's


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
    _check_packages(folder)
    _check_pair(o, folder)
    o.fps = o.fps or own_fps(folder) or _some_fps(o, folder)
    sizes = [size_arguments(size, folder) for size in o.size]
    for size in o.size:
        if size is not None:
            check_size(size, folder)
    texts = texts_of(o, folder)
    check_gates(o, folder)
    _check_method(o, folder)
    check_lora(o.lora, folder)
    clips = clips_of(o, common, sizes, texts)
    for clip in clips:
        for path in files_of(clip.path, o):
            check_free(path)
    check_writable(o.out)
    known = [size for size in (x or own_size(folder) for x in o.size) if size]
    check_memory(o, folder, max((tokens_of(size, folder) for size in known), default=0))
    return Work(folder, clips)


def _check_installed(o: argparse.Namespace) -> None:
    names = ["av"] * (o.out.suffix == ".mp4" or bool(o.video)) + ["matplotlib"] * (
        o.compare is not None
    )
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


def _check_packages(folder: Folder) -> None:
    """ValueError for packages that Cosmos' pipelines miss once their weights are loaded."""
    checked = getattr(sys.modules[folder.cls.__module__], "is_cosmos_guardrail_available", None)
    off = folder.cls.load_config(folder.path).get("enable_safety_checker") is False
    missing = ["cosmos_guardrail"] if checked is not None and not off and not checked() else []
    if folder.first.config.get("concat_padding_mask") and find_spec("torchvision") is None:
        missing.append("torchvision")
    if missing:
        raise ValueError(
            f"{folder.cls.__name__} takes {' and '.join(missing)}: pip install {' '.join(missing)}"
        )


def _check_pair(o: argparse.Namespace, folder: Folder) -> None:
    whole = "transformer_2" in folder.models and folder.index.get("boundary_ratio") is not None
    if o.guidance_2 is not None and not whole:
        raise ValueError(
            f"--guidance-2 is of a pair's second transformer, and {folder.path} has no "
            f"transformer_2 with a boundary_ratio: give --guidance"
        )


def _some_fps(o: argparse.Namespace, folder: Folder) -> int:
    if o.out.suffix == ".mp4":
        print(f"{FPS} frames a second, as {folder.cls.__name__} says none: --fps gives others")
    return FPS


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
