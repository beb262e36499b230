"""Attention that only ablations want, made of flexsparse's parts: what a slot of your own takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import flexsparse.nn
from flexsparse import VideoTiling, flex_attention, prune_queries
from flexsparse.choice.block_mask import tile_block_mask
from flexsparse.choice.choose import coarse_scores
from flexsparse.nn import Choice
from flexsparse.stages.coarse import coarse_attention
from flexsparse.stages.gates import combine
from flexsparse.stages.windows import fit_window
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
class FineGatedVSA(VSA):
    """VSA without its coarse stage, whose fine stage is gated all the same; with all tiles it is
    dense attention with a gate on its output."""

    def build(self, dim: int, num_heads: int, tiling: VideoTiling | None) -> nn.Module:
        assert tiling is not None, "an ablation has one grid"
        return _FineGated(dim, num_heads, self.top_k_for(tiling), adapt=True)


@dataclass(frozen=True)
class OwnTileVSA(VSA):
    """Each tile attends to itself, nothing is chosen: what the others' choice is worth."""

    def build(self, dim: int, num_heads: int, tiling: VideoTiling | None) -> nn.Module:
        return _OwnTile(dim, num_heads, 1, gates=False)


@dataclass(frozen=True)
class RandomVSA(VSA):
    """VSA that attends to tiles drawn at random, its own among them: others for each head, the same
    in every call."""

    def build(self, dim: int, num_heads: int, tiling: VideoTiling | None) -> nn.Module:
        assert tiling is not None, "an ablation has one grid"
        drawn = draw_tiles(num_heads, tiling.num_tiles, self.top_k_for(tiling))
        return _Random(dim, num_heads, drawn)


@dataclass(frozen=True)
class ZeroFillBSA(BSA):
    """BSA in which the output of a pruned query is zero: its token keeps what it was."""

    def build(self, dim: int, num_heads: int, tiling: VideoTiling | None) -> nn.Module:
        assert tiling is not None, "an ablation has one grid"
        return _ZeroFill(self.rule_for(tiling), keep=self.keep, window=self.window)


class _MaxPooled(flexsparse.nn.VSA):
    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gate_coarse: Tensor | None = None,
        gate_fine: Tensor | None = None,
        *,
        tiling: VideoTiling,
        text_lengths: Tensor | None = None,
    ) -> Tensor:
        assert gate_coarse is not None, "built with gates"
        q, k, v = (tiling.zero_padding(x) for x in (q, k, v))
        mask = tile_block_mask(self._tile_map(q, k, tiling), tiling)
        fine = flex_attention(q, k, v, block_mask=mask)
        coarse = coarse_attention(*(pool_max(x, tiling) for x in (q, k, v)))
        return combine(fine, coarse, gate_coarse, gate_fine, tiling)

    @torch.no_grad()
    def choose(self, q: Tensor, k: Tensor, tiling: VideoTiling) -> Choice:
        valid = tiling.valid(q.device).expand(*q.shape[:2], -1)
        return Choice(self._tile_map(q, k, tiling), valid, None)

    @torch.no_grad()
    def _tile_map(self, q: Tensor, k: Tensor, tiling: VideoTiling) -> Tensor:
        scores = coarse_scores(pool_max(q, tiling), pool_max(k, tiling))
        assert isinstance(self.kv_rule, int), "built with a number of tiles"
        chosen = scores.topk(self.kv_rule, sorted=False).indices
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, chosen, True)


class _Ungated(flexsparse.nn.VSA):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, *gates: Any, **shape: Any) -> Tensor:
        return super().attend(q, k, v, torch.ones_like(v), **shape)


class _FineGated(flexsparse.nn.VSA):
    """Its one gate, `gate_coarse`, starts as VSA's fine gate does and serves as such."""

    def reset_parameters(self) -> None:
        assert self.gate_coarse is not None, "built with one"
        nn.init.normal_(self.gate_coarse.weight, std=0.02)
        nn.init.ones_(self.gate_coarse.bias)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *gates: Tensor, **shape: Any) -> Tensor:
        (gate,) = gates
        return gate * super().attend(q, k, v, **shape)


class _OwnTile(flexsparse.nn.VSA):
    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, *gates: Any, tiling: VideoTiling, **text: Any
    ) -> Tensor:
        q, k, v = (tiling.zero_padding(x) for x in (q, k, v))
        mask = tile_block_mask(self.choose(q, k, tiling).tile_map, tiling)
        return flex_attention(q, k, v, block_mask=mask)

    @torch.no_grad()
    def choose(self, q: Tensor, k: Tensor, tiling: VideoTiling) -> Choice:
        own = torch.eye(tiling.num_tiles, dtype=torch.bool, device=q.device)
        valid = tiling.valid(q.device).expand(*q.shape[:2], -1)
        return Choice(own.expand(*q.shape[:2], -1, -1).contiguous(), valid, None)


class _Random(_OwnTile):
    def __init__(self, dim: int, num_heads: int, drawn: Tensor) -> None:
        super().__init__(dim, num_heads, drawn.shape[-1], gates=False)
        self.drawn = drawn  # no buffer: to_empty would forget it; on the CPU, also under "meta"

    @torch.no_grad()
    def choose(self, q: Tensor, k: Tensor, tiling: VideoTiling) -> Choice:
        n, heads = tiling.num_tiles, q.shape[1]
        found = torch.zeros(heads, n, n, dtype=torch.bool, device=q.device)
        found = found.scatter_(-1, self.drawn.to(q.device), True)
        found = found.expand(q.shape[0], -1, -1, -1).contiguous()
        return Choice(found, tiling.valid(q.device).expand(*q.shape[:2], -1), None)


class _ZeroFill(flexsparse.nn.BSA):
    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, *gates: Any, tiling: VideoTiling, **text: Any
    ) -> Tensor:
        window = fit_window(self.window, tiling)
        kept = prune_queries(q.detach(), tiling, keep=self.keep, window=window)
        return super().attend(q, k, v, tiling=tiling) * kept.mask[..., None]


def draw_tiles(heads: int, tiles: int, k: int) -> Tensor:
    """The same k tiles in every call for each head and tile, its own first: int64 [H, n, k].

    Compiled code can make no generator: draw where a layer is built.
    """
    seeded = torch.Generator("cpu").manual_seed(0)
    drawn = torch.rand(heads, tiles, tiles, generator=seeded, device="cpu")
    drawn.diagonal(dim1=-2, dim2=-1).fill_(1)
    return drawn.topk(k).indices


def pool_max(x: Tensor, tiling: VideoTiling) -> Tensor:
    """The largest of each channel over the valid rows of each tile: [B, H, n, D], fp32."""
    hidden = ~tiling.valid(x.device)[:, None]
    tiles = x.masked_fill(hidden, -torch.inf).unflatten(-2, (tiling.num_tiles, tiling.rows))
    return tiles.amax(-2).float()
