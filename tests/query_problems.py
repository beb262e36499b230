"""What the tests of pruning and restoring share: drawn windows, queries, and which tokens stay."""

import torch
from hypothesis import strategies as st

from flexsparse import VideoTiling, prune_queries
from flexsparse.stages.windows import Windows


@st.composite
def problems(draw):
    sides = st.sampled_from([1, 2, 3])
    window = tuple(draw(st.sampled_from([1, 2])) for _ in range(3))
    tile = tuple(w * draw(sides) for w in window)
    video = tuple(draw(st.integers(t, 2 * t + 1)) for t in tile)
    tiling = VideoTiling(video, tile)
    keep = draw(st.sampled_from([0.1, 0.3, 0.5, 0.75, 0.99, 1.0]))
    return Windows(tiling, keep, draw(st.sampled_from([window, tile])))


def draw_queries(windows, seed, dim=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, windows.tiling.tokens, dim)
    return torch.randn(shape, generator=generator).to(dtype)


def prune(q, windows):
    return prune_queries(q, windows.tiling, keep=windows.keep, window=windows.window)


def kept_tokens(kept):
    """Bool [B, H, tokens], in raster order."""
    tiling = kept.windows.tiling
    rows = torch.where(kept.index < 0, tiling.rows, kept.index).long()
    flags = torch.zeros(*rows.shape[:-1], tiling.rows + 1, dtype=torch.bool)
    flags.scatter_(-1, rows, True)
    return tiling.from_tiles(flags[..., :-1].flatten(-2).unsqueeze(-1)).squeeze(-1).bool()
