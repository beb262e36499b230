"""Whether there is memory for the weights, and for the call of a transformer, by estimate."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

import torch

from flexsparse.diffusers.families import family_of
from flexsparse.diffusers.generate.folder import Folder
from flexsparse.diffusers.generate.weights import DTYPES, dtypes_in, shapes_in

# Rows of a block that are alive at once: its input, normed, queries, keys, values, tile-major
# copies of them and the output. More is true of all; less would refuse what may work.
_ROWS = 8
CONTAINER = Path("/sys/fs/cgroup")


def check_memory(o: argparse.Namespace, folder: Folder, tokens: int) -> None:
    """ValueError where weights and one layer's tokens take more memory than is free.

    It is a lower bound: the VAE's decoding, for one, is not in it.
    """
    weights = {
        name: size
        for name in folder.parts
        if (size := bytes_of(folder.path / name, o.vae_dtype if name == "vae" else o.dtype))
    }
    layer = next(attn for _, attn in family_of(folder.first).layers(folder.first))
    width = max(weight.shape[-1] for weight in layer.parameters() if weight.ndim == 2)
    call = _ROWS * tokens * width * getattr(torch, o.dtype).itemsize
    everything = sum(weights.values())
    on_device = {None: everything, "model": max(weights.values()), "group": 0}[o.offload] + call
    gigabytes = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in weights.items())
    of_main = (
        everything
        if o.offload
        else sum(
            copied_bytes(folder.path / name, o.vae_dtype if name == "vae" else o.dtype)
            for name in weights
        )
    )
    needs = [(o.device, on_device), ("cpu", of_main)]
    for device, needed in needs:
        free = free_bytes(torch.device(device))
        if free is not None and needed > free:
            raise ValueError(
                f"this takes at least {needed / 1e9:.2f} GB of memory on {device} ({gigabytes}, "
                f"{tokens:,} tokens {call / 1e9:.2f}), and {free / 1e9:.2f} are free: "
                f"{_advice(o, device)}"
            )


def bytes_of(folder: Path, dtype: str) -> int:
    """Of a component's weights in memory; pickles as they are stored."""
    if shapes := shapes_in(folder):
        return sum(math.prod(shape) for shape in shapes.values()) * getattr(torch, dtype).itemsize
    return sum(file.stat().st_size for file in folder.glob("*.bin"))


def copied_bytes(folder: Path, dtype: str) -> int:
    """Of a component's weights in main memory as it is loaded: those of another dtype than their
    file, and pickles. The others are that file's pages, which it takes no memory to hold."""
    if not (shapes := shapes_in(folder)):
        return bytes_of(folder, dtype)
    stored = dtypes_in(folder)
    size = getattr(torch, dtype).itemsize
    return sum(
        math.prod(shape) * size
        for name, shape in shapes.items()
        if stored[name] in DTYPES.values() and stored[name] != DTYPES[dtype]
    )


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free; None where nothing tells. Of main memory a container has its share."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    known = [size for size in (_free_of_machine(), _free_of_container()) if size is not None]
    return min(known, default=None)


def _free_of_machine() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _free_of_container() -> int | None:
    """What is left to its processes, whose cached files make room; None where there is no limit."""
    try:
        most = int((CONTAINER / "memory.max").read_text())
        used = int((CONTAINER / "memory.current").read_text())
        stat = dict(line.split() for line in (CONTAINER / "memory.stat").read_text().splitlines())
        return most - used + int(stat["inactive_file"]) + int(stat["active_file"])
    except (OSError, ValueError, KeyError):  # "max", or no such files
        return None


def _advice(o: argparse.Namespace, device: str) -> str:
    better = dict(model="--offload group")
    if device == "cpu":
        return "a --dtype of fewer bits, --prompt-embeds or a smaller --size take less"
    return f"{better.get(o.offload, '--offload model')} or a smaller --size take less"
