"""The compute blocks of FlexAttention's kernels for masks of tiles: tables, two a direction.

A row serves GPUs of one generation (the compute capability's major number; 10 stands for later
ones as well), head dims up to its own, and mask blocks of at least its query and key rows; the
first that fits is taken. No GPU has timed a row yet: each says by what reasoning it stands, and
``docs/results/compiled.md`` lists its registers, spilled bytes and shared memory as compiled for
sm_80, sm_90 and sm_100. ``python -m benchmarks.gpu --only sweep`` times the alternatives.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import torch
from torch import dtype as Dtype


class Forward(NamedTuple):
    """Rows of a compute block along queries (m) and keys (n), pipeline stages, warps."""

    m: int
    n: int
    stages: int
    warps: int

    def shared_memory(self, head_dim: int, size: int) -> int:
        """Bytes of Q, and of every stage's K and V."""
        return (self.m + 2 * self.stages * self.n) * head_dim * size


class Backward(NamedTuple):
    """The loop over queries steps by m1 for n1 keys, the loop over keys by n2 for m2 queries."""

    m1: int
    n1: int
    m2: int
    n2: int
    stages: int
    warps: int

    def shared_memory(self, head_dim: int, size: int) -> int:
        """Bytes of K and V and every stage's Q and dO, or of Q and dO and every stage's K and V."""
        keys, queries = self.n1 + self.stages * self.m1, self.m2 + self.stages * self.n2
        return 2 * max(keys, queries) * head_dim * size


C = TypeVar("C", Forward, Backward)


class Row(NamedTuple, Generic[C]):
    """A config, for which GPUs and mask blocks it is, and why it is what it is."""

    gpus: tuple[int, ...]
    head_dim: int
    q_rows: int
    kv_rows: int
    config: C
    why: str


AMPERE, HOPPER, BLACKWELL = (8,), (9,), (10,)
ALL = AMPERE + HOPPER + BLACKWELL

# fmt: off
FORWARD: list[Row[Forward]] = [
    Row(HOPPER, 64, 128, 64, Forward(128, 64, 3, 4),
        "a warp of 32 rows issues less for each score than two of 16; two blocks to an SM"),
    Row(HOPPER, 64, 64, 64, Forward(64, 64, 3, 4),
        "wgmma wants 64 rows for a warpgroup; three blocks to an SM overlap softmax and products"),
    Row(HOPPER, 128, 128, 64, Forward(128, 64, 3, 8),
        "torch's own for D = 128: two warpgroups share each key tile"),
    Row(HOPPER, 128, 64, 64, Forward(64, 64, 3, 4),
        "tiles lie scattered: a third stage hides their latency; two blocks to an SM still fit"),
    Row(HOPPER, 256, 64, 32, Forward(64, 32, 2, 8), "torch's own, (64, 32, 3, 4), spills"),
    Row(AMPERE, 64, 128, 32, Forward(128, 32, 3, 8), "64 keys spill where tiles are ragged"),
    Row(AMPERE, 64, 64, 32, Forward(64, 32, 3, 8), "64 keys spill where tiles are ragged"),
    Row(AMPERE, 128, 128, 64, Forward(128, 64, 2, 8), "a third stage leaves room for one block"),
    Row(AMPERE, 128, 64, 64, Forward(64, 64, 2, 8), "four warps spill where tiles are ragged"),
    Row(BLACKWELL, 32, 32, 64, Forward(32, 64, 3, 8), "four warps spill"),
    Row(BLACKWELL, 64, 128, 64, Forward(128, 64, 3, 8), "as for D = 128"),
    Row(BLACKWELL, 64, 64, 64, Forward(64, 64, 3, 8), "four warps spill where tiles are ragged"),
    Row(BLACKWELL, 128, 128, 64, Forward(128, 64, 3, 8), "torch's own for D = 128"),
    Row(BLACKWELL, 128, 64, 64, Forward(64, 64, 2, 4), "a third stage spills"),
    Row(BLACKWELL, 256, 64, 32, Forward(64, 32, 2, 4), "a third stage, or eight warps, spill"),
    Row(ALL, 128, 32, 64, Forward(32, 64, 2, 4),
        "fewer rows than a warpgroup's 64: let query tiles choose together to reach them"),
    Row(AMPERE, 256, 32, 32, Forward(32, 32, 2, 4), "what shared memory holds twice"),
]
BACKWARD: list[Row[Backward]] = [
    Row(HOPPER, 64, 128, 128, Backward(64, 128, 128, 64, 3, 8),
        "a warpgroup for each 64 keys, and for each 64 queries"),
    Row(HOPPER, 64, 64, 64, Backward(64, 64, 64, 64, 3, 4),
        "a warpgroup's 64 rows everywhere: of eight warps each half would make all of the scores"),
    Row(HOPPER, 64, 32, 64, Backward(32, 64, 32, 32, 3, 4),
        "dK and dV of 64 keys keep wgmma; dQ of 32 rows cannot"),
    Row(HOPPER, 128, 64, 64, Backward(32, 64, 64, 64, 2, 4),
        "four warps, as for D = 64: with 64 queries at a time they spill; two blocks to an SM"),
    Row(HOPPER, 128, 32, 64, Backward(32, 64, 32, 32, 2, 4),
        "dK and dV of 64 keys keep wgmma; dQ of 32 rows cannot"),
    Row(AMPERE, 64, 64, 64, Backward(32, 64, 64, 32, 3, 8), "64 x 64 spills, even with 8 warps"),
    Row(AMPERE, 128, 64, 64, Backward(32, 64, 64, 32, 2, 8), "as for D = 64; two stages fit"),
    Row(BLACKWELL, 64, 128, 128, Backward(64, 64, 64, 64, 3, 4), "eight warps spill"),
    Row(BLACKWELL, 64, 64, 64, Backward(64, 64, 64, 64, 3, 8), "four warps spill"),
    Row(BLACKWELL, 128, 64, 64, Backward(64, 64, 64, 64, 2, 8),
        "eight warps halve what a thread holds of dK and dV"),
    Row(ALL, 256, 32, 32, Backward(32, 32, 32, 32, 2, 8), "dK and dV of more keys spill"),
]
FORWARD_FP32: list[Row[Forward]] = [
    Row(ALL, 64, 32, 32, Forward(32, 32, 2, 4), "exact products take no tensor core"),
    Row(ALL, 128, 32, 16, Forward(32, 16, 2, 8), "32 keys spill, with eight warps even"),
    Row(ALL, 256, 16, 16, Forward(16, 16, 1, 4), "what a thread can hold"),
]
BACKWARD_FP32: list[Row[Backward]] = [
    Row(ALL, 64, 16, 16, Backward(16, 16, 16, 16, 1, 4), "torch's own"),
    Row(ALL, 128, 16, 16, Backward(16, 16, 16, 16, 1, 8), "torch's own, but four warps spill"),
    Row(ALL, 256, 16, 16, Backward(16, 16, 16, 16, 1, 8), "the least there is; it spills"),
]
# fmt: on
TABLES = FORWARD, BACKWARD, FORWARD_FP32, BACKWARD_FP32
_SPARE = 8192  # bytes of shared memory that the kernels take beyond the tiles


def forward_config(
    head_dim: int,
    dtype: Dtype,
    q_rows: int,
    kv_rows: int,
    major: int = 9,
    shared: int | None = None,
) -> Forward:
    """Compute blocks of the forward kernel for mask blocks of ``q_rows`` by ``kv_rows``.

    Args:
        head_dim, dtype: of the tensors.
        q_rows, kv_rows: multiples of 16.
        major: of the GPU's compute capability.
        shared: bytes of shared memory that a block may have; stages fall until they fit. None: the
            table's stages.

    >>> forward_config(128, torch.bfloat16, 128, 64)
    Forward(m=128, n=64, stages=3, warps=8)
    """
    q, kv = _block(q_rows), _block(kv_rows)
    small = Forward(min(q, 32), min(kv, 32), 2, 4)  # only that it compiles
    table = FORWARD_FP32 if dtype == torch.float32 else FORWARD
    return _fit(_first(table, head_dim, q, kv, major, small), head_dim, dtype, shared)


def backward_config(
    head_dim: int,
    dtype: Dtype,
    q_rows: int,
    kv_rows: int,
    major: int = 9,
    shared: int | None = None,
) -> Backward:
    """Compute blocks of the backward kernels, see :func:`forward_config`.

    The kernels need n1 to be a multiple of m1, and m2 of n2.
    """
    q, kv = _block(q_rows), _block(kv_rows)
    least = min(q, kv, 32)
    small = Backward(least, least, least, least, 2, 4)
    table = BACKWARD_FP32 if dtype == torch.float32 else BACKWARD
    return _fit(_first(table, head_dim, q, kv, major, small), head_dim, dtype, shared)


def _block(rows: int) -> int:
    """The largest power of two that divides ``rows``."""
    return rows & -rows


def _first(rows: list[Row[C]], head_dim: int, q: int, kv: int, major: int, fallback: C) -> C:
    gpu = min(max(major, 8), 10)
    for row in rows:
        fits = head_dim <= row.head_dim and q >= row.q_rows and kv >= row.kv_rows
        if gpu in row.gpus and fits:
            return row.config
    return fallback


def _fit(config: C, head_dim: int, dtype: Dtype, shared: int | None) -> C:
    head_dim = 1 << (head_dim - 1).bit_length()  # the kernels round it up
    while shared is not None and config.stages > 1:
        if config.shared_memory(head_dim, dtype.itemsize) + _SPARE <= shared:
            break
        config = config._replace(stages=config.stages - 1)
    return config
