"""Wan 2.2's pairs: one transformer for the noise above a level, another for the noise below."""

import json
from pathlib import Path
from typing import Any

PAIRS = ("transformer", "transformer_2"), ("high_noise_model", "low_noise_model")
BOUNDARY, BOUNDARY_OF_IMAGES = 0.875, 0.9  # Wan's own, for text and for a picture beside it


def pair_in(folder: Path) -> tuple[str, str] | None:
    """The names of the two models that a folder is of, for high and low noise; None for one."""
    for high, low in PAIRS:
        if (folder / low).is_dir() or (folder / high).is_dir() and _has_two(folder, high):
            return high, low
    return None


def times_of(path: str | Path) -> tuple[float, float]:
    """The noise levels, from 0 to 1, that a checkpoint is for, by the folder that it lies in.

    >>> times_of("Wan2.2-T2V-A14B/low_noise_model")
    (0.0, 0.875)
    """
    path = Path(path).absolute()
    folder = path.parent if path.is_file() else path
    for high, low in PAIRS:
        two = (folder.parent / low).is_dir() or _has_two(folder.parent, high)
        if folder.name in (high, low) and two:
            boundary = boundary_of(folder.parent, folder.name)
            return (boundary, 1.0) if folder.name == high else (0.0, boundary)
    return 0.0, 1.0


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
        said = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
