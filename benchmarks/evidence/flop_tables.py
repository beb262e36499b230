"""The papers' counts of FLOPs beside `flexsparse.flops`, from the formulas alone.

python -m benchmarks.evidence.flop_tables
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.evidence.flops import step_flops
from benchmarks.evidence.pictures import draw_flops, shown
from benchmarks.evidence.scale import GPU_120M, METHODS
from benchmarks.record import markdown
from flexsparse import VideoTiling
from flexsparse.flops import attention_flops

Grid = tuple[int, int, int]
HEADS, HEAD_DIM = 12, 128  # Wan 2.1 1.3B
GRIDS = (8, 28, 52), (16, 28, 52), (20, 44, 80), (40, 48, 80)  # whole tiles; the last: BSA's
PAPER = {  # BSA's: share of key tiles admitted, FLOPs of dense attention and of BSA, their ratio
    (16, 28, 52): (0.14, "1.51e12", "1.05e11", 14.4),
    (40, 48, 80): (0.10, "6.99e13", "3.49e12", 20.0),
}


def section(images: Path) -> str:
    """Both tables, and the picture."""
    image = images / "evidence-flops.png"
    counts = {
        "dense": [(math.prod(grid), of_layer(grid)) for grid in GRIDS],
        "vsa": [(math.prod(grid), of_layer(grid, share=1 / 8)) for grid in GRIDS],
        "bsa": [(math.prod(grid), of_layer(grid, share=0.14, pruned=True)) for grid in GRIDS],
    }
    paper = [(math.prod(grid), float(x)) for grid, row in PAPER.items() for x in row[1:3]]
    draw_flops(image, counts, paper)
    return f"{tables()}\n\n{shown(image)}"


def tables() -> str:
    """BSA's table, and VSA's claims, which its paper gives as ratios alone."""
    return f"{bsa()}\n\n{vsa()}"


def of_layer(grid: Grid, share: float = 1.0, *, pruned: bool = False) -> int:
    """FLOPs of one layer's attention, forward: with a share of the key tiles, half of the queries
    where they are pruned; dense where all tiles are admitted."""
    tiling = VideoTiling(grid)
    sparse: Any = {}
    if share < 1:
        sparse = dict(tiling=tiling, top_k=share * tiling.num_tiles)
    if pruned:
        sparse["q_rows"] = tiling.rows // 2
    return attention_flops(tiling.tokens, HEADS, HEAD_DIM, **sparse)


def bsa() -> str:
    """Attention of one layer; half of the queries, and the share of key tiles that it admits."""
    lines = []
    for grid, (share, *paper) in PAPER.items():
        dense, sparse = of_layer(grid), of_layer(grid, share, pruned=True)
        ours = f"{dense:.2e}", f"{sparse:.2e}", f"{dense / sparse:.1f}"
        lines.append([f"{math.prod(grid):,}", f"{1 - share / 2:.2f}", *paper, *ours])
    head = ["BSA: tokens", "sparsity", "paper: dense", "BSA", "ratio"]
    return markdown([*head, "flexsparse.flops: dense", "BSA", "ratio"], lines)


def vsa() -> str:
    """A training step of its ablation model, and attention of the Wan that it is put into."""
    video = GPU_120M.model.grid
    tiling = VideoTiling(video)
    found = {}
    for name in ("dense", "vsa"):
        run = GPU_120M.trainer(METHODS[name], "doom", seed=0, steps=16, folder=Path())
        c = replace(GPU_120M.model, attention=METHODS[name])
        chosen: Any = dict(tiling=tiling, top_k=tiling.num_tiles // 8) if name == "vsa" else {}
        of_one = attention_flops(tiling.tokens, c.heads, c.head_dim, **chosen, backward=True)
        found[name] = c.layers * of_one, step_flops(run).other
    attention = found["dense"][0] / found["vsa"][0]
    step = sum(found["dense"]) / sum(found["vsa"])
    of_wan = of_layer((16, 28, 52)) / of_layer((16, 28, 52), share=1 / 8)
    lines = [
        ["120M, 16,384 tokens, a training step", "2.53, for the same loss", f"{step:.2f}"],
        ["the same, attention alone", "-", f"{attention:.2f}"],
        ["Wan 2.1 1.3B, 23,296 tokens, attention", "6, in time", f"{of_wan:.2f}"],
    ]
    return markdown(["VSA at 87.5 %: dense / VSA", "paper", "flexsparse.flops"], lines)


if __name__ == "__main__":
    print(tables())
