"""Wan 2.2's pairs: one transformer for the noise above a level, another for the noise below."""

import json
import re
from pathlib import Path
from typing import Any

from models.wan.pointers import check_content

PAIRS = ("transformer", "transformer_2"), ("high_noise_model", "low_noise_model")
BOUNDARY, BOUNDARY_OF_IMAGES = 0.875, 0.9  # Wan's own, for text and for a picture beside it
TIMES = "_flexsparse_times"  # of config.json; with an underscore diffusers carries it along
_SIDE = re.compile("(high|low)[-_]?noise", re.IGNORECASE)  # in names of ComfyUI's files


def pair_in(folder: Path) -> tuple[str, str] | None:
    """The names of the two models that a folder is of, for high and low noise; None for one."""
    for high, low in PAIRS:
        if (folder / low).is_dir() or (folder / high).is_dir() and _has_two(folder, high):
            return high, low
    return None


def times_of(path: str | Path) -> tuple[float, float]:
    """The noise levels, from 0 to 1, that a checkpoint is for: as its `config.json` says if we
    saved it, else by the folder that it lies in, or a link leads to, or by its name.
    CheckpointError where `config.json` or `model_index.json` is a pointer of Git LFS.

    >>> times_of("Wan2.2-T2V-A14B/low_noise_model")
    (0.0, 0.875)
    >>> times_of("wan2.2_t2v_high_noise_14B_fp16.safetensors")
    (0.875, 1.0)
    """
    given = Path(path).absolute()
    paths = given, given.resolve()
    folders = [p.parent if p.is_file() else p for p in paths]
    folders = [f / "transformer" if (f / "transformer").is_dir() else f for f in folders]
    for folder in folders:
        if said := _read(folder / "config.json").get(TIMES):
            return said[0], said[1]
        for high, low in PAIRS:
            two = (folder.parent / low).is_dir() or _has_two(folder.parent, high)
            if folder.name in (high, low) and two:
                return _side(folder, folder.name == high)
    for place in (*paths, *folders):
        if len(sides := {side.lower() for side in _SIDE.findall(place.name)}) == 1:
            return _side(folders[0], sides == {"high"})
    return 0.0, 1.0


def _side(folder: Path, high: bool) -> tuple[float, float]:
    boundary = boundary_of(folder.parent, folder.name)
    return (boundary, 1.0) if high else (0.0, boundary)


def boundary_of(pipeline: Path, name: str) -> float:
    """The noise level between the two models of a folder, one of which is called so."""
    said = _read(pipeline / "model_index.json").get("boundary_ratio")
    if isinstance(said, int | float):
        return float(said)
    sizes = _read(pipeline / name / "config.json")
    into, out = (sizes.get(f"{way}_dim", sizes.get(f"{way}_channels")) for way in ("in", "out"))
    return BOUNDARY if into == out else BOUNDARY_OF_IMAGES


def _has_two(pipeline: Path, high: str) -> bool:
    said = _read(pipeline / "model_index.json").get("boundary_ratio")
    return high != PAIRS[0][0] or said is not None


def _read(file: Path) -> dict[str, Any]:
    try:
        check_content(file)
    except OSError:
        return {}
    try:
        said = json.loads(file.read_text())
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
