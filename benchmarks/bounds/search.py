"""Which compute blocks of FlexAttention's kernels have the lowest bound for masks of tiles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.bounds.launches import launches
from benchmarks.bounds.layers import figures, layer_of
from benchmarks.compiled import capture, machine_code
from benchmarks.compiled.layers import fine_case
from benchmarks.compiled.rows import versions
from benchmarks.gpu.cases import Method, Setting
from benchmarks.record import Row

# M, N, stages, warps, TMA; query tiles say which rows a block may have.
FORWARD = [
    (1, (64, 64, 3, 4, False)),
    (1, (64, 64, 2, 4, False)),
    (1, (64, 64, 4, 4, False)),
    (1, (64, 32, 4, 4, False)),
    (1, (64, 64, 3, 4, True)),
    (1, (64, 64, 2, 4, True)),
    (2, (128, 64, 3, 8, False)),
    (2, (128, 64, 2, 8, False)),
    (2, (128, 32, 3, 8, False)),
    (2, (128, 64, 3, 4, False)),
    (2, (128, 32, 3, 4, False)),
    (2, (64, 64, 3, 4, False)),
    (2, (128, 64, 3, 8, True)),
    (2, (128, 64, 2, 8, True)),
    (2, (128, 64, 3, 4, True)),
    (4, (256, 64, 2, 8, False)),
]
# M1, N1, M2, N2, stages, warps
BACKWARD = [
    (1, (64, 64, 64, 64, 2, 8)),
    (1, (64, 64, 64, 64, 2, 4)),
    (1, (64, 64, 64, 64, 3, 4)),
    (1, (32, 64, 64, 64, 1, 4)),
    (1, (32, 64, 64, 64, 2, 4)),
    (1, (32, 64, 64, 64, 3, 4)),
    (1, (32, 64, 64, 32, 2, 4)),
    (2, (64, 64, 128, 64, 2, 8)),
    (2, (64, 64, 64, 64, 2, 8)),
    (2, (32, 64, 128, 32, 2, 8)),
    (2, (64, 64, 64, 64, 2, 4)),
    (2, (64, 64, 128, 32, 2, 4)),
    (2, (32, 64, 128, 32, 2, 4)),
    (2, (32, 64, 64, 64, 2, 4)),
]


def search(setting: Setting, only: str = "") -> Iterator[Row]:
    """A row for each config that compiles, of the setting's fine stage at 87.5 %."""
    for direction, tried in (("forward", FORWARD), ("backward", BACKWARD)):
        for query_tiles, config in tried if only in direction else ():
            key: Row = dict(case=setting.key, search=direction, query_tiles=query_tiles)
            key |= dict(config=list(config), **versions())
            try:
                yield key | _row(setting, direction, query_tiles, config)
            except Exception as error:
                yield key | dict(error=f"{type(error).__name__}: {error}"[:300])


def _row(setting: Setting, direction: str, query_tiles: int, config: tuple[int, ...]) -> Row:
    sides = ("M", "N") if direction == "forward" else ("M1", "N1", "M2", "N2")
    names = [*(f"BLOCK_{x}" for x in sides), "num_stages", "num_warps", "USE_TMA"]
    prefix = "fwd" if direction == "forward" else "bwd"
    options: Any = {f"{prefix}_{name}": value for name, value in zip(names, config)}
    torch.compiler.reset()  # all options are one function to the compiler
    block = query_tiles, None
    case = fine_case("full64", setting.dim, block, kernel_options=options, folded=True)
    sources, error = capture.graphs(case)  # in training: inference may have q scaled otherwise
    if error is not None:
        raise error
    layer = layer_of(setting, Method("vsa", 0.875, query_tiles))
    source = sources[0 if direction == "forward" else 1]
    found = launches(source, layer, machine_code.assembly, only="triton_tem")
    ((_, made, launch),) = found
    return figures(made, launch)
