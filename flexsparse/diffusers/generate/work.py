"""What is to be made: clips, and the names of their files."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexsparse.diffusers.generate.arguments import Size
from flexsparse.diffusers.generate.attention import text_of
from flexsparse.diffusers.generate.folder import Folder


@dataclass(frozen=True)
class Clip:
    """One that is to be made: its file, and what the pipeline is given."""

    path: Path
    arguments: dict[str, Any]
    seed: int


@dataclass(frozen=True)
class Work:
    """All that was asked for, as far as it can be known to work."""

    folder: Folder
    clips: list[Clip]


def clips_of(
    o: argparse.Namespace,
    common: dict[str, Any],
    sizes: list[dict[str, int]],
    texts: list[dict[str, Any]],
) -> list[Clip]:
    """A clip of each size, text and seed.

    Args:
        common: what all are given.
        sizes, texts: what those of each of the options' sizes, and of each text, are given.

    Raises:
        ValueError: two of one name.
    """
    clips = [
        Clip(_path(o, size, number, len(texts), seed), common | of_size | text, seed)
        for size, of_size in zip(o.size, sizes, strict=True)
        for number, text in enumerate(texts, 1)
        for seed in o.seed
    ]
    if len({clip.path for clip in clips}) < len(clips):
        raise ValueError("--size or --seed names one of them twice")
    return clips


def beside(path: Path, name: str) -> Path:
    """The file of another clip of the same."""
    return path.with_stem(f"{path.stem}-{name}")


def report_of(path: Path) -> Path:
    """The folder of a clip's report."""
    return path.with_name(f"{path.stem}-report")


def name_of(sparsity: float | None) -> str:
    return "dense" if sparsity is None else f"{sparsity:g}"


def files_of(path: Path, o: argparse.Namespace) -> list[Path]:
    """What a clip's file, and the answers that were asked for beside it, are called."""
    if o.sweep is not None:
        return [beside(path, name_of(sparsity)) for sparsity in (None, *o.sweep)]
    return [path, beside(path, "dense"), report_of(path)] if o.compare else [path]


def _path(o: argparse.Namespace, size: Size | None, text: int, texts: int, seed: int) -> Path:
    parts = [o.out.stem]
    parts += [text_of(size)] if size is not None and len(o.size) > 1 else []
    parts += [str(text)] if texts > 1 else []
    parts += [f"seed{seed}"] if len(o.seed) > 1 else []
    return o.out.with_name("-".join(parts) + o.out.suffix)
