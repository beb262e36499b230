"""The files of a folder that hold weights, told apart as diffusers' ``from_pretrained`` does."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

_STEM = "diffusion_pytorch_model"
_WEIGHTS = re.compile(
    rf"{_STEM}(?:\.([^.]+?))?(?P<shard>-\d{{5}}-of-\d{{5}})?\.(safetensors|bin)",
)
_INDEX = re.compile(rf"{_STEM}\.(safetensors|bin)(?:\.([^.]+))?\.index(?:\.([^.]+))?\.json")
_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Stored:
    """One set of weights, which one ``from_pretrained`` would read.

    Attributes:
        path: the file, or the index of its shards.
        variant: as in ``from_pretrained(variant=...)``.
    """

    path: Path
    variant: str | None = None

    def tensors(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
        """Those whose key is wanted, one after the other, on the CPU.

        Raises:
            ValueError: a file that cannot be read, by its name.
        """
        for file in self._files():
            yield from _read(file, wanted)

    def _files(self) -> list[Path]:
        if self.path.suffix != ".json":
            return [self.path]
        try:
            shards = json.loads(self.path.read_text())["weight_map"].values()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise ValueError(f"{self.path} {_why(self.path, e)}") from None
        return [self.path.parent / name for name in sorted(set(shards))]


def stored_in(folder: Path) -> list[Stored]:
    """The sets of weights in a folder, the one first that is read where nothing else is said.

    Of shards an index tells, as it does diffusers: those that no index names are of no set.
    """
    found: dict[tuple[str, str], Stored] = {}
    for path in sorted(folder.glob(f"{_STEM}*")) if folder.is_dir() else []:
        if (name := _WEIGHTS.fullmatch(path.name)) and not name["shard"]:
            found.setdefault((name[3], name[1] or ""), Stored(path, name[1]))
        elif name := _INDEX.fullmatch(path.name):
            variant = name[2] or name[3]
            found[name[1], variant or ""] = Stored(path, variant)
    return [found[key] for key in sorted(found, key=lambda key: (key[1], key[0] == "bin"))]


def _read(file: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
    try:
        if file.suffix != ".bin":
            with safe_open(file, "pt") as tensors:
                for key in filter(wanted, tensors.keys()):
                    yield key, tensors.get_tensor(key)
            return
        weights = torch.load(file, "cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        yield from ((key, x) for key, x in weights.items() if wanted(key))
    except Exception as e:  # of other bytes the unpickler says what it likes
        raise ValueError(f"{file} {_why(file, e)}") from None


def _why(file: Path, e: Exception) -> str:
    if not file.is_file():
        return "is no file: some of these weights are missing, save or download them again"
    with file.open("rb") as opened:
        if opened.read(len(_POINTER)) == _POINTER:
            return "is a pointer of Git LFS in place of the weights: fetch them, git lfs pull"
    return f"cannot be read ({(str(e) or type(e).__name__).splitlines()[0]}): is it whole?"
