"""The files of a checkpoint: one or many, safetensors or pickles, read tensor by tensor.

`Weights.open` reads headers alone; `Weights.stream` then gives one tensor after the other, each in
memory of its own: safetensors' `pread` backend maps no file, so that nothing is in memory twice.
"""

import json
import pickle
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.wan.experts import boundary_of, pair_in
from models.wan.pointers import CheckpointError, check_content

STEM = "diffusion_pytorch_model"
PREFIXES = "model.diffusion_model.", "diffusion_model."
GATES = "gates.safetensors"  # beside the weights, as flexsparse.diffusers.save_gates writes them
_GATES = {"coarse": ".to_gate_compress.", "fine": ".to_gate_fine."}
_SLOT = re.compile(r"\.attn1\.slot\.gate_(coarse|fine)\.(?:base_layer\.)?")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class Entry(NamedTuple):
    """What a header says of a tensor."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint by key, not read yet.

    Attributes:
        path: the file, or the folder that the files are in.
        entries: key to file, shape and dtype.
        prefix: what stands before each key in files of ComfyUI.
        stored: each key as the file has it.
        others: tensors of other models in those files, which have no such prefix.
        json: the `config.json` that stands beside the files; empty if there is none.
    """

    path: Path
    entries: dict[str, Entry]
    json: dict[str, Any]
    stored: dict[str, str]
    prefix: str = ""
    others: int = 0

    @classmethod
    def open(cls, path: str | Path) -> "Weights":
        """Find the files and read their headers.

        Args:
            path: a .safetensors file or a pickle; a folder with one or more
                `diffusion_pytorch_model*.safetensors`, an index beside them or not, or else `.bin`,
                and maybe gates in a `gates.safetensors`; or the folder of a pipeline, whose
                `transformer` folder is taken.

        Raises:
            FileNotFoundError: nothing there.
            CheckpointError: a file cut short, missing from the index's list or no checkpoint at
                all; a key in two files; weights that are not floating point; a folder of two
                models, as Wan 2.2's are.
        """
        path = Path(path)
        if pair := pair_in(path):
            boundary = boundary_of(path, pair[0])
            raise CheckpointError(
                f"{path} has two models, {pair[0]} for noise above {boundary:g} and {pair[1]} for "
                f"noise below: give the folder of one of them"
            )
        if (path / "transformer").is_dir():
            path /= "transformer"
        entries: dict[str, Entry] = {}
        for file in _find_files(path):
            for key, entry in _read_header(file).items():
                if key in entries:
                    names = f"{entries[key].file.name} and {file.name}"
                    raise CheckpointError(f"{path}: {key} is in both {names}: remove one of them")
                entries[key] = entry
        settings = (path if path.is_dir() else path.parent) / "config.json"
        said = _read_json(settings) if settings.exists() else {}
        prefix = next((p for p in PREFIXES if any(key.startswith(p) for key in entries)), "")
        stored = {_named(k.removeprefix(prefix)): k for k in entries if k.startswith(prefix)}
        own = {key: entries[name] for key, name in stored.items()}
        return cls(path, own, said, stored, prefix, others=len(entries) - len(own))

    def stream(self, keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """These keys' tensors on the CPU, file by file, each in memory of its own."""
        by_file: dict[Path, dict[str, str]] = {}
        for key in keys:
            by_file.setdefault(self.entries[key].file, {})[self.stored[key]] = key
        for file, wanted in by_file.items():
            if file.suffix != ".safetensors":
                for name, tensor in _load_pickle(file).items():
                    if name in wanted:
                        yield wanted[name], tensor.clone(memory_format=torch.contiguous_format)
                continue
            with safe_open(file, "pt", backend="pread") as tensors:
                for name in tensors.offset_keys():
                    if name in wanted:
                        yield wanted[name], tensors.get_tensor(name)


def _named(key: str) -> str:
    """A key, of a gate that a sparse model of diffusers saved in the words of FastVideo."""
    return _SLOT.sub(lambda found: _GATES[found[1]], key)


def _find_files(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_file():
        return [path]
    gates = [file for file in [path / GATES] if file.is_file()]
    for suffix in ("safetensors", "bin"):
        index = path / f"{STEM}.{suffix}.index.json"
        if index.exists():
            shards = _read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise CheckpointError(f"{index} has no weight_map: it is no index of shards")
            if odd := [x for x in shards.values() if not isinstance(x, str) or not x.strip("./")]:
                raise CheckpointError(
                    f"{index} names {json.dumps(odd[0])} as a shard, which is no file's name: "
                    f"download it again"
                )
            files = [path / name for name in sorted(set(shards.values()))]
            lost = [file.name for file in files if not file.exists()]
            if lost:
                raise CheckpointError(
                    f"{index} names {len(files)} shards, of which {len(lost)} are missing: "
                    f"{shorten(lost)}; download them again"
                )
            return files + gates
        if files := sorted(path.glob(f"{STEM}*.{suffix}")):
            return files + gates
    raise FileNotFoundError(
        f"{path} holds no {STEM}*.safetensors: give the transformer's folder, or its file"
    )


def _read_header(file: Path) -> dict[str, Entry]:
    if not file.is_file():
        raise CheckpointError(f"{file} is no file: put the weights of that name there")
    check_content(file)
    if file.suffix != ".safetensors":
        return {
            key: Entry(file, tuple(x.shape), _floating(file, key, x.dtype))
            for key, x in _load_pickle(file).items()
        }
    try:
        with safe_open(file, "pt", backend="pread") as tensors:
            slices = {key: tensors.get_slice(key) for key in tensors.keys()}
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} is no whole safetensors file ({error}), all {file.stat().st_size:,} bytes of "
            f"it: download or save it again"
        ) from None
    return {
        key: Entry(
            file,
            tuple(x.get_shape()),
            _floating(file, key, DTYPES.get(x.get_dtype(), x.get_dtype())),
        )
        for key, x in slices.items()
    }


def _floating(file: Path, key: str, dtype: Any) -> torch.dtype:
    if dtype in DTYPES.values():
        return dtype
    raise CheckpointError(
        f"{file}: {key} is stored as {dtype}: give weights in fp32, bf16 or fp16, not quantised"
    )


def _load_pickle(file: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        unsafe = isinstance(error, pickle.UnpicklingError)
        why = "it holds more than tensors" if unsafe else str(error).splitlines()[0].strip(". ")
        raise CheckpointError(
            f"{file} is no pickle that torch.load(weights_only=True, mmap=True) takes ({why}): "
            f"give the weights as safetensors"
        ) from None
    if not isinstance(loaded, dict) or not all(isinstance(x, Tensor) for x in loaded.values()):
        raise CheckpointError(f"{file} holds something else than a dict of tensors by name")
    return loaded


def _read_json(file: Path) -> dict[str, Any]:
    check_content(file)
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not an object")
    return content


def shorten(items: list[str], most: int = 4) -> str:
    """The first few, and how many there are besides."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
