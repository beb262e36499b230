"""What the tests of the library share: drawn shapes and tensors, and the one rule of tolerance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from unittest import mock

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from flexsparse import VideoTiling, reference
from flexsparse.selfcheck.accuracy import error_ratios

T = TypeVar("T")
seeds = st.integers(0, 2**32 - 1)


@st.composite
def tilings(draw: st.DrawFn, max_side: int = 8) -> VideoTiling:
    """Videos that are rarely cubic, with ragged edges, and tiles smaller than their rows."""
    video = tuple(draw(st.integers(1, max_side)) for _ in range(3))
    tile = tuple(draw(st.integers(1, 5)) for _ in range(3))
    tiling = VideoTiling(video, tile)
    spare = draw(st.sampled_from([0, 0, 16, 48]))
    return VideoTiling(video, tile, tiling.rows + spare)


@st.composite
def problems(
    draw: st.DrawFn, dims: tuple[int, ...] = (16, 32, 48, 128), max_rows: int = 1024
) -> dict:
    """A tiling, batch, heads, head dim, seed, top_k and query_tiles."""
    # Fewer tokens than 8 leave nothing to measure: gradients cancel to the last bit, or not.
    tiling = draw(tilings().filter(lambda t: 8 <= t.tokens and t.padded_tokens <= max_rows))
    return dict(
        tiling=tiling,
        batch=draw(st.integers(1, 2)),
        heads=draw(st.integers(1, 3)),
        dim=draw(st.sampled_from(dims)),
        seed=draw(seeds),
        top_k=draw(st.integers(1, tiling.num_tiles)),
        query_tiles=min(draw(st.sampled_from([1, 1, 2, 3])), tiling.num_tiles),
    )


def tensors(
    count: int, problem: dict, scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Raster tensors ``[B, H, tokens, D]`` that require grad; the first is scaled (logits)."""
    generator = torch.Generator().manual_seed(problem["seed"])
    shape = (problem["batch"], problem["heads"], problem["tiling"].tokens, problem["dim"])
    drawn = [torch.randn(shape, generator=generator) for _ in range(count)]
    drawn[0] *= scale
    return [x.to(dtype).requires_grad_() for x in drawn]


def poison(x: Tensor, tiling: VideoTiling) -> Tensor:
    """Tile-major ``x`` with NaN in every padding row."""
    return torch.where(tiling.valid()[:, None], x, torch.nan)


EPS = torch.finfo(torch.float32).eps


def assert_accurate(
    ours: Sequence[Tensor],
    plain: Sequence[Sequence[Tensor]],
    exact: Sequence[Tensor],
    inputs: Sequence[Tensor] = (),
) -> None:
    """The error of each of ours to fp64 is at most twice that of plain PyTorch in the same dtype,
    by the library's one rule, :func:`flexsparse.selfcheck.accuracy.error_ratios`."""
    for number, ratio in enumerate(error_ratios(ours, plain, exact, inputs)):
        assert ratio <= 1, f"result {number}: error {ratio:.3g} times the largest allowed"


def with_fused(compute: Callable[..., T], *inputs: Any) -> T:
    """``compute(*inputs)`` with the oracle's attention as PyTorch fuses it, whose backward takes p
    from the log-sum-exp and cancels as ours does."""

    def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    with mock.patch.object(reference, "attention", fused):
        return compute(*inputs)
