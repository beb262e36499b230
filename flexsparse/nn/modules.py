"""Modules: they own the gate projections and call the functions."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from flexsparse.bsa import bsa_attention, bsa_tile_map
from flexsparse.choice.union import Unites
from flexsparse.engines.dense import dense_attention
from flexsparse.nn.layer import AttentionLayer
from flexsparse.stages.queries import Fill, prune_queries
from flexsparse.stages.windows import FitWindow, fit_window
from flexsparse.tiling import VideoTiling
from flexsparse.vsa import vsa_attention, vsa_tile_map

if TYPE_CHECKING:
    from flexsparse.nn.ulysses import Ulysses


class Choice(NamedTuple):
    """What a layer chose: who attends to whom, and whose query stays.

    Attributes:
        tile_map: bool ``[B, H, n, n]``, query tiles by key tiles.
        kept: bool ``[B, H, padded_tokens]``, the rows whose query stays; none in padding.
        q_rows: rows in memory that stand for a tile's queries; None for VSA, which prunes none.
    """

    tile_map: Tensor
    kept: Tensor
    q_rows: int | None


class _Admitting(AttentionLayer):
    """What VSA and BSA share: a rule, or one for each band of noise levels.

    Attributes:
        dense: assign True, and the layer is what a dense model computes of q, k and v, without
            gates.
    """

    dense: bool = False
    kv_rule: Unites | int | None
    kv_rules: Mapping[str, Unites | int | None] = MappingProxyType({})

    def rule(self, band: str | None) -> Unites | int | None:
        """``kv_rule``, or that of a band, of those in ``kv_rules``; None where dense."""
        if self.dense:
            return None
        return self.kv_rule if band is None else self.kv_rules[band]


class VSA(_Admitting):
    """Video Sparse Attention with learned gates (VSA, arXiv 2505.13389).

    Owns the gate projections only; q, k, v and the output projection belong to the block around it.
    Gates are linear in the block's input, one value per token and channel. For pretraining both
    gates exist and start near "the fine stage as it is, no coarse stage" (weights of std 0.02,
    bias 1 and 0; the paper gives no initialisation). For adapting a dense checkpoint the coarse
    gate starts at exactly zero and there is no fine gate, so that at ``top_k = num_tiles`` the
    converted layer equals the dense one.

    Args:
        dim: width of the block's input.
        num_heads: query heads.
        top_k: key tiles per query tile, a rule that admits them, or None for all, dense. Assign the
            attribute ``kv_rule`` to change it.
        adapt: adapt a dense checkpoint instead of pretraining.
        gates: whether there are any; without, the layer is the fine stage alone and has no
            parameters: a dense checkpoint made sparse without training, where a gate of zero would
            cost its projection and open nothing.
        head_dim: channels of a head; default ``dim // num_heads``.
        query_tiles, kernel_options: as in :func:`flexsparse.vsa_attention`.

    >>> tiling = VideoTiling((2, 4, 4), tile=(2, 2, 2))
    >>> x, q = torch.randn(1, tiling.padded_tokens, 32), torch.randn(1, 2, tiling.padded_tokens, 16)
    >>> VSA(dim=32, num_heads=2, top_k=2)(x, q, q, q, tiling).shape
    torch.Size([1, 2, 64, 16])
    """

    gate_coarse: nn.Linear | None
    gate_fine: nn.Linear | None

    def __init__(
        self,
        dim: int,
        num_heads: int,
        top_k: int | Unites | None,
        *,
        adapt: bool = False,
        gates: bool = True,
        head_dim: int | None = None,
        query_tiles: int = 1,
        kernel_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if head_dim is None and dim % num_heads:
            raise ValueError(f"dim={dim} is not a multiple of num_heads={num_heads}")
        _check_rule("top_k", top_k)
        self.num_heads, self.kv_rule, self.adapt = num_heads, top_k, adapt
        self.query_tiles, self.kernel_options = query_tiles, kernel_options
        width = num_heads * (head_dim or dim // num_heads)
        self.gate_coarse = nn.Linear(dim, width) if gates else None
        self.gate_fine = nn.Linear(dim, width) if gates and not adapt else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """(Re-)initialise the gates, as the class says."""
        if self.gate_coarse is None:
            return
        nn.init.zeros_(self.gate_coarse.bias)
        if self.gate_fine is None:
            nn.init.zeros_(self.gate_coarse.weight)
        else:
            nn.init.normal_(self.gate_coarse.weight, std=0.02)
            nn.init.normal_(self.gate_fine.weight, std=0.02)
            nn.init.ones_(self.gate_fine.bias)

    def gates(
        self,
        x: Tensor,
        tiling: VideoTiling,
        text_lengths: Tensor | None,
        shards: Ulysses | None,
    ) -> tuple[Tensor, ...]:
        if self.dense or self.gate_coarse is None:
            return ()
        # padding may hold anything, and the gates' weights have gradients, too
        if shards is None:
            x = tiling.zero_padding(x, text_lengths)
        elif tiling.has_padding or text_lengths is not None:
            valid = shards.shard(tiling.valid(x.device, text_lengths), -1)
            x = torch.where(valid.unsqueeze(-1), x, 0)
        made = [gate(x) for gate in (self.gate_coarse, self.gate_fine) if gate is not None]
        return tuple(y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in made)

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
        band: str | None = None,
    ) -> Tensor:
        """Attend; k and v may have a divisor of q's heads."""
        return vsa_attention(
            q,
            k,
            v,
            tiling,
            top_k=self.rule(band),
            gate_coarse=gate_coarse,
            gate_fine=gate_fine,
            enable_gqa=q.shape[1] != k.shape[1],
            query_tiles=min(self.query_tiles, tiling.num_tiles),
            text_lengths=text_lengths,
            kernel_options=self.kernel_options,
        )

    @torch.no_grad()
    def choose(
        self, q: Tensor, k: Tensor, tiling: VideoTiling, band: str | None = None
    ) -> Choice | None:
        """What :meth:`forward` chooses for the same q and k; None where it is dense."""
        if (rule := self.rule(band)) is None:
            return None
        together = min(self.query_tiles, tiling.num_tiles)
        tile_map = vsa_tile_map(q, k, tiling, top_k=rule, query_tiles=together)
        return Choice(tile_map, tiling.valid(q.device).expand(*q.shape[:2], -1), None)

    def extra_repr(self) -> str:
        gates = "" if self.gate_coarse is not None else ", gates=False"
        shown = f"num_heads={self.num_heads}, top_k={self.kv_rule}, adapt={self.adapt}{gates}"
        return f"{shown}, query_tiles={self.query_tiles}"


class BSA(_Admitting):
    """Bidirectional Sparse Attention (BSA, arXiv 2509.01085); it has no parameters.

    Args:
        kv: which key tiles a query tile attends to; an int means TopK, None dense attention, in
            which no query is pruned. Assign the attribute
            ``kv_rule`` to change it.
        keep, window, fill, query_tiles, kernel_options: as in :func:`flexsparse.bsa_attention`, the
            window by :func:`flexsparse.stages.windows.fit_window`.

    >>> tiling = VideoTiling((2, 4, 4), tile=(2, 2, 2))
    >>> x, q = torch.randn(1, tiling.padded_tokens, 32), torch.randn(1, 2, tiling.padded_tokens, 16)
    >>> BSA(kv=Threshold(2), keep=0.5)(x, q, q, q, tiling).shape
    torch.Size([1, 2, 64, 16])
    """

    def __init__(
        self,
        kv: Unites | int | None,
        *,
        keep: float = 0.5,
        window: FitWindow = None,
        fill: Fill = "nearest",
        query_tiles: int = 1,
        kernel_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _check_rule("kv", kv)
        self.kv_rule, self.keep = kv, keep
        self.window: FitWindow = window
        self.fill: Fill = fill
        self.query_tiles, self.kernel_options = query_tiles, kernel_options

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        tiling: VideoTiling,
        text_lengths: Tensor | None = None,
        band: str | None = None,
    ) -> Tensor:
        """Attend; k and v may have a divisor of q's heads."""
        gqa = q.shape[1] != k.shape[1]
        if (rule := self.rule(band)) is None:
            return dense_attention(q, k, v, tiling, enable_gqa=gqa, text_lengths=text_lengths)
        return bsa_attention(
            q,
            k,
            v,
            tiling,
            kv=rule,
            keep=self.keep,
            window=fit_window(self.window, tiling),
            fill=self.fill,
            enable_gqa=gqa,
            query_tiles=min(self.query_tiles, tiling.num_tiles),
            text_lengths=text_lengths,
            kernel_options=self.kernel_options,
        )

    @torch.no_grad()
    def choose(
        self, q: Tensor, k: Tensor, tiling: VideoTiling, band: str | None = None
    ) -> Choice | None:
        """What :meth:`forward` chooses for the same q and k; None where it is dense."""
        if (rule := self.rule(band)) is None:
            return None
        kept = prune_queries(q, tiling, keep=self.keep, window=fit_window(self.window, tiling))
        together = min(self.query_tiles, tiling.num_tiles)
        tile_map = bsa_tile_map(kept, k, tiling, kv=rule, query_tiles=together)
        return Choice(tile_map, kept.mask, kept.q_rows)

    def extra_repr(self) -> str:
        shown = f"kv={self.kv_rule}, keep={self.keep}, window={self.window}, fill={self.fill!r}"
        return f"{shown}, query_tiles={self.query_tiles}"


def _check_rule(name: str, rule: Unites | int | None) -> None:
    if not (rule is None or isinstance(rule, Unites) or type(rule) is int and rule > 0):
        raise ValueError(
            f"{name}={rule!r} must be an int of at least 1, tiles per query tile, or a rule, or "
            "None for dense attention"
        )
