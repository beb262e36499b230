"""Ablations in the form of VSA's paper, and BSA's parts one by one: one training each.

    python -m benchmarks.evidence.ablations [--steps 192] [--data doom] [--only NAME ...]

Everything but the one thing and the number of steps is as in `benchmarks.evidence.parity`; the rows
to compare with are the first three, dense, vsa and bsa of as many steps. Appends rows to
``benchmarks/results/evidence.jsonl``.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from benchmarks.evidence.runs import Run, all_of, command, parser
from benchmarks.evidence.scale import METHODS, SCALES, here
from benchmarks.evidence.slots import MaxPooledVSA, OwnTileVSA, UngatedVSA, ZeroFillBSA
from flexsparse import Mass, Scaled, TopK
from models.attention import BSA, VSA, Slot

BASE = BSA(sparsity=0.86, keep=0.5)
GROUPS: dict[str, dict[str, Any]] = {
    "reference": {**METHODS, "its own tile alone": OwnTileVSA(top_k=1)},
    "pooling": {"vsa mean": VSA(sparsity=0.875), "vsa max": MaxPooledVSA(sparsity=0.875)},
    "tile": {
        f"vsa {'x'.join(map(str, tile))}": VSA(sparsity=0.875, tile=tile)
        for tile in ((4, 4, 4), (3, 5, 4), (4, 4, 8))
    },
    "top-k": {
        "vsa top-k 4": VSA(top_k=4),
        "vsa an eighth of the tiles": VSA(sparsity=0.875),
        "vsa top-k 12": VSA(top_k=12),
        "vsa top-k 24": VSA(top_k=24),
        "vsa all tiles": VSA(sparsity=0.0),
    },
    "gates": {
        "vsa both gates": VSA(sparsity=0.875),
        "vsa coarse + fine, no gates": UngatedVSA(sparsity=0.875),
        "vsa fine stage alone": VSA(sparsity=0.875, gates=False),
    },
    "keep": {f"bsa keep {keep:g}": replace(BASE, keep=keep) for keep in (1.0, 0.75, 0.5)},
    "window": {
        "bsa windows of 2x2x2": BASE,
        "bsa no windows": replace(BASE, window=None),
    },
    "rule": {
        "bsa threshold": BASE,
        "bsa top-k": replace(BASE, kv=Scaled(0.86, rule=TopK)),
        "bsa mass 0.5": replace(BASE, kv=Mass(0.5)),
    },
    "fill": {
        "bsa fill nearest": BASE,
        "bsa fill center": replace(BASE, fill="center"),
        "bsa fill zero": ZeroFillBSA(sparsity=0.86, keep=0.5),
    },
}


def runs(data: str, groups: list[str]) -> list[Run]:
    """Of each distinct attention one, under the first name that it has."""
    seen: dict[Slot, Run] = {}
    for group in groups:
        for name, attention in GROUPS[group].items():
            seen.setdefault(attention, Run("ablations", data, name, attention, 0))
    return list(seen.values())


def main(argv: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, help="of each run; 192 on a CPU, 1000 on a GPU")
    options.add_argument("--only", nargs="+", choices=sorted(GROUPS), default=list(GROUPS))
    given = options.parse_args(argv)
    scale = SCALES.get(given.scale) or here()
    steps = given.steps or scale.steps
    all_of(runs(given.data, given.only), scale, steps, given.out, given.results)
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
