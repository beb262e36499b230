"""docs/performance.md's table of a denoising step of Wan is the stated formula."""

from pathlib import Path

import pytest

from benchmarks.wan.models import forward_flops
from models.attention import BSA, VSA, Dense
from models.wan import wan_1_3b

PAGE = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()


@pytest.mark.parametrize("grid", [(16, 28, 52), (21, 30, 52), (21, 45, 80)])
def test_the_table_is_the_formula(grid):
    config, tokens = wan_1_3b(), grid[0] * grid[1] * grid[2]
    dense, attention = forward_flops(config, grid, Dense())
    rest = dense - attention
    cells = [f"{tokens:,}", f"{attention / dense:.1%}".replace("%", " %"), f"{dense / rest:.2f}x"]
    gated = []
    for slot in (
        VSA(sparsity=0.875, tile=None, adapt=True),
        VSA(sparsity=0.9, tile=None, adapt=True),
        BSA(sparsity=0.875, tile=None, window=None),
    ):
        whole, own = forward_flops(config, grid, slot)
        cells.append(f"{dense / whole:.2f}x")
        rows = slot.tiling(grid).padded_tokens
        gated.append(f"{attention / (own + 2 * rows * config.dim**2 * config.layers):.2f}x")
    cells += [" / ".join(gated[:2]), f"{attention / (dense / 1.7 - rest):.2f}x"]
    assert f"| {' | '.join(cells)} |" in PAGE
