"""The GPUs that are pretended."""

from __future__ import annotations

from typing import NamedTuple


class Chip(NamedTuple):
    """What Inductor and Triton ask of a GPU."""

    name: str
    major: int
    minor: int
    processors: int  # streaming multiprocessors
    shared: int  # bytes of shared memory that a block may have
    cache: int  # bytes of L2


CHIPS = {
    80: Chip("NVIDIA A100", 8, 0, 108, 166912, 40 << 20),
    90: Chip("NVIDIA H200", 9, 0, 132, 232448, 60 << 20),
    100: Chip("NVIDIA B200", 10, 0, 148, 232448, 126 << 20),
}
