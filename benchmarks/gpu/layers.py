"""What every method is made of: tensors of a video's kind, a rule, a layer that can be timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.cases import Method, Setting
from benchmarks.video_like import video_like
from flexsparse import Threshold, TopK
from flexsparse.choice.rules import Rule
from flexsparse.flops import attention_flops

KEEP = 0.5
WINDOWS = {(4, 4, 4): (2, 2, 2), (3, 5, 4): (3, 5, 2)}


class Unavailable(Exception):
    """A method that cannot run here, and why."""


class Layer(NamedTuple):
    """One attention layer.

    Attributes:
        attend: of its inputs.
        inputs: leaves that require grad, the first three q, k and v; tile-major but for dense
            attention, which has them in raster order, without padding.
        flops: of the forward, as counted by ``flexsparse.flops``, scores included.
        sparsity: 1 - the share of all pairs of tokens that it computes.
    """

    attend: Callable[..., Tensor]
    inputs: list[Tensor]
    flops: int
    sparsity: float


def draw(setting: Setting, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Tile-major q, k, v and two gates, of a video's kind rather than white noise."""
    q, k, v = video_like(setting.tiling, setting.heads, setting.dim, device=device, dtype=dtype)
    generator = torch.Generator(device).manual_seed(1)
    gates = [
        setting.tiling.zero_padding(
            torch.randn(q.shape, device=device, dtype=dtype, generator=generator)
        )
        for _ in range(2)
    ]
    return [q, k, v, *gates]


def rule_of(method: Method, setting: Setting) -> Rule:
    """Which key tiles are admitted, so that the layer has the sparsity asked for."""
    n = setting.tiling.num_tiles
    share = 1 - method.sparsity
    if method.kind.startswith("bsa"):
        k = max(1, round(n * share / KEEP))
        return TopK(k) if method.kind == "bsa_top" else Threshold(k)
    return TopK(max(1, round(n * share)))


def window_of(setting: Setting) -> tuple[int, int, int] | None:
    return WINDOWS.get(setting.tile)


def leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [x.detach().requires_grad_() for x in tensors]


def compiled(function: Callable[..., Tensor], like: Tensor) -> Callable[..., Tensor]:
    """As a model is compiled; a rehearsal traces, and leaves out what takes a C++ compiler long."""
    backend = "inductor" if like.is_cuda else "eager"
    return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)


def tiled(
    attend: Callable[..., Tensor],
    tensors: list[Tensor],
    setting: Setting,
    share: float,
    *,
    q_rows: int | None = None,
    scores: bool = True,
) -> Layer:
    """A layer on tile-major tensors that computes ``share`` of all pairs of tiles; ``scores`` says
    whether it also makes those between tiles."""
    tiling = setting.tiling
    top_k = share * tiling.num_tiles
    sizes = tiling.tokens, setting.heads, setting.dim
    flops = attention_flops(*sizes, tiling=tiling, top_k=top_k, q_rows=q_rows)
    if not scores:
        per_pair = 4 if q_rows is None else 2
        flops -= per_pair * tiling.num_tiles**2 * setting.heads * setting.dim
    sparsity = 1 - share * (1 if q_rows is None else q_rows / tiling.rows)
    return Layer(attend, leaves(tensors), flops, sparsity)
