"""Attention that only ablations want, made of flexsparse's parts: what a slot of your own takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import flexsparse.nn
from flexsparse import VideoTiling, flex_attention, prune_queries
from flexsparse.block_mask import tile_block_mask
from flexsparse.coarse import coarse_attention
from flexsparse.gates import combine
from flexsparse.nn import Choice
from flexsparse.selection import coarse_scores
from flexsparse.vsa import vsa_attention
from flexsparse.windows import fit_window
from models.attention import BSA, VSA


@dataclass(frozen=True)
class MaxPooledVSA(VSA):
    """VSA whose tiles are known by the largest value of each channel in place of the mean."""

    def build(self, dim: int, num_heads: int, tiling: VideoTiling | None) -> nn.Module:
        assert tiling is not None, "an ablation has one grid"
        return _MaxPooled(dim, num_heads, self.top_k_for(tiling), adapt=self.adapt)


@dataclass(frozen=True)
class UngatedVSA(VSA):
    """VSA whose coarse and fine output are added as they are."""

    def build(self, dim: int, num_heads: int, tiling: VideoTiling | None) -> nn.Module:
        assert tiling is not None, "an ablation has one grid"
        return _Ungated(dim, num_heads, self.top_k_for(tiling), gates=False)


@dataclass(frozen=True)
class ZeroFillBSA(BSA):
    """BSA in which the output of a pruned query is zero: its token keeps what it was."""

    def build(self, dim: int, num_heads: int, tiling: VideoTiling | None) -> nn.Module:
        assert tiling is not None, "an ablation has one grid"
        return _ZeroFill(self.rule_for(tiling), keep=self.keep, window=self.window)


class _MaxPooled(flexsparse.nn.VSA):
    def forward(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, tiling: VideoTiling, *_: Any
    ) -> Tensor:
        x, q, k, v = (tiling.zero_padding(y) for y in (x, q, k, v))
        coarse, fine = (
            None if gate is None else self._heads(gate(x)).to(v.dtype)
            for gate in (self.gate_coarse, self.gate_fine)
        )
        assert coarse is not None, "built with gates"
        mask = tile_block_mask(self._tile_map(q, k, tiling), tiling)
        out = flex_attention(q, k, v, block_mask=mask)
        return combine(
            out, coarse_attention(*(pool_max(y, tiling) for y in (q, k, v))), coarse, fine, tiling
        )

    @torch.no_grad()
    def choose(self, q: Tensor, k: Tensor, tiling: VideoTiling) -> Choice:
        valid = tiling.valid(q.device).expand(*q.shape[:2], -1)
        return Choice(self._tile_map(q, k, tiling), valid, None)

    @torch.no_grad()
    def _tile_map(self, q: Tensor, k: Tensor, tiling: VideoTiling) -> Tensor:
        scores = coarse_scores(*(pool_max(y, tiling) for y in (q, k)))
        chosen = scores.topk(self.kv_rule, sorted=False).indices
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, chosen, True)


class _Ungated(flexsparse.nn.VSA):
    def forward(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, tiling: VideoTiling, *_: Any
    ) -> Tensor:
        return vsa_attention(q, k, v, tiling, top_k=self.kv_rule, gate_coarse=torch.ones_like(v))


class _ZeroFill(flexsparse.nn.BSA):
    def forward(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, tiling: VideoTiling, *_: Any
    ) -> Tensor:
        out = super().forward(x, q, k, v, tiling)
        window = fit_window(self.window, tiling)
        kept = prune_queries(q.detach(), tiling, keep=self.keep, window=window)
        return out * kept.mask[..., None]


def pool_max(x: Tensor, tiling: VideoTiling) -> Tensor:
    """The largest of each channel over the valid rows of each tile: [B, H, n, D], fp32."""
    hidden = ~tiling.valid(x.device)[:, None]
    tiles = x.masked_fill(hidden, -torch.inf).unflatten(-2, (tiling.num_tiles, tiling.rows))
    return tiles.amax(-2).float()
