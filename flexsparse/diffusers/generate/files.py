"""Files that a command writes: they appear when they are whole, and replace none."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def check_free(out: Path) -> None:
    """ValueError if there is a file, folder or link of this name."""
    if os.path.lexists(out):
        raise ValueError(f"--out {out} exists: give another name, or move it")


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


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """A safetensors file; OSError where there is no room. Returns what :func:`write_whole` does."""

    def write(draft: Path) -> None:
        try:
            save_file({name: x.contiguous().cpu() for name, x in tensors.items()}, draft)
        except SafetensorError as e:
            raise OSError(str(e)) from e

    return write_whole(path, write)


def write_whole(path: Path, write: Callable[[Path], None]) -> Path:
    """What `write` puts into the file that it is given.

    Returns:
        Where it is: `path`, with a number where a file of that name appeared meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(draft)
        return draft.replace(_claim(path))
    finally:
        draft.unlink(missing_ok=True)


def _claim(path: Path) -> Path:
    """An empty file of this name, or where there is one with a number behind it."""
    place, number = path, 0
    while True:
        try:
            place.touch(exist_ok=False)
            return place
        except FileExistsError:
            number += 1
            place = path.with_stem(f"{path.stem}-{number}")
