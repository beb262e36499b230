"""What a component's files hold, from their headers alone."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

DTYPES = dict(bfloat16="BF16", float16="F16", float32="F32")
Shapes = dict[str, tuple[int, ...]]


def shapes_in(folder: Path) -> Shapes:
    """Names and shapes of the weights that ``from_pretrained`` reads; none where they are pickles.

    Raises:
        ValueError: an index of shards that names missing files, or a file that is not whole.
    """
    return {name: shape for file in files_in(folder) for name, shape in _header(file).items()}


def dtypes_in(folder: Path) -> dict[str, str]:
    """The names that safetensors have for the weights' dtypes, where :func:`shapes_in` is whole."""
    found = {}
    for file in files_in(folder):
        with safe_open(file, "pt") as tensors:
            found |= {key: tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
    return found


def files_in(folder: Path) -> list[Path]:
    """A component's safetensors, those of no variant."""
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            names = json.loads(index.read_text())["weight_map"].values()
            shards = {folder / name for name in names}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{index} is no index of shards: download it again") from None
        if missing := sorted(shard.name for shard in shards if not shard.is_file()):
            raise ValueError(f"{index} names {len(missing)} missing files, {missing[0]} first")
        return sorted(shards)
    return sorted(file for file in folder.glob("*.safetensors") if "." not in file.stem)


def _header(file: Path) -> Shapes:
    try:
        with safe_open(file, "pt") as tensors:
            return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as e:
        pointer = file.open("rb").read(12) == b"version http"
        fix = "fetch it, git lfs pull" if pointer else "download it again"
        raise ValueError(f"{file} is no whole safetensors file ({e}): {fix}") from None
