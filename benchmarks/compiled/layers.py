"""Layers to compile: functions of a device that return a callable and its arguments, which require
grad. Tensors may be fake (``capture.py``): nothing reads a value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention as torch_flex_attention

from benchmarks.compiled.capture import Built, Case
from flexsparse import (
    Threshold,
    TopK,
    VideoTiling,
    bsa_attention,
    flex_attention,
    vsa_attention,
    vsa_mask,
)
from flexsparse.choice.block_mask import tile_block_mask
from flexsparse.choice.rules import Rule
from flexsparse.choice.selection import tile_map
from flexsparse.engines.flex import attend_zeroed

Grid = tuple[int, int, int]
TOKENS: dict[str, Any] = {
    "full64": ((16, 16, 16), (4, 4, 4)),  # 64 rows, no padding
    "padded64": ((21, 10, 12), (3, 5, 4)),  # 60 tokens in 64 rows, as on Wan's grids
    "ragged64": ((15, 15, 15), (4, 4, 4)),  # some tiles full, some not
    "full128": ((16, 16, 16), (4, 4, 8)),  # 128 rows
    "ragged128": ((15, 15, 15), (4, 4, 8)),
    "text64": ((15, 15, 15), (4, 4, 4), 64, 226),  # with text, as CogVideoX has it
    "parts64": ((15, 15, 15), (4, 4, 4), 64, 226, (100, 126)),  # in the coarse stage as well
}


def vsa_case(
    shape: str, dim: int, gates: bool, annealed: bool = False, query_tiles: int = 1
) -> Case:
    """One VSA layer in bf16: from q, k, v (and a coarse gate) to the output."""
    tiling = VideoTiling(*TOKENS[shape])

    def case(device: torch.device) -> Built:
        size = (1, 4, tiling.padded_tokens, dim)
        options: dict[str, Any] = dict(device=device, dtype=torch.bfloat16, requires_grad=True)
        inputs = [torch.empty(size, **options) for _ in range(4 if gates else 3)]
        top_k = (
            TopK(torch.empty((), dtype=torch.int32, device=device), max_tiles=48) if annealed else 8
        )

        def attend(q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None = None) -> Tensor:
            choice: Any = dict(top_k=top_k, query_tiles=query_tiles)
            return vsa_attention(q, k, v, tiling, gate_coarse=gate, **choice)

        return attend, inputs

    return case


def bsa_case(shape: str, dim: int, kv: Rule, annealed: bool = False, query_tiles: int = 1) -> Case:
    """One BSA layer in bf16, half of the queries kept: blocks of 32 query rows (64 of full128)."""
    tiling = VideoTiling(*TOKENS[shape])
    window = (3, 5, 2) if shape == "padded64" else (2, 2, 2)

    def case(device: torch.device) -> Built:
        size = (1, 4, tiling.padded_tokens, dim)
        options: dict[str, Any] = dict(device=device, dtype=torch.bfloat16, requires_grad=True)

        rule = Threshold(torch.empty((), dtype=torch.int32, device=device)) if annealed else kv

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            choice: Any = dict(kv=rule, query_tiles=query_tiles)
            return bsa_attention(q, k, v, tiling, keep=0.5, window=window, **choice)

        return attend, [torch.empty(size, **options) for _ in range(3)]

    return case


def fine_case(
    shape: str,
    dim: int,
    block: tuple[int, int | None],
    dtype: str = "bfloat16",
    kernel_options: dict[str, Any] | None = None,
    folded: bool = False,
) -> Case:
    """The fine stage alone, under a mask that is made of a choice: FlexAttention's kernels and
    those that make the lists. A block is so many query tiles, of so many rows (None: the keys').
    ``folded`` multiplies q by the scale, as VSA and BSA do."""
    tiling, (query_tiles, q_rows) = VideoTiling(*TOKENS[shape]), block

    def case(device: torch.device) -> Built:
        options: Any = dict(device=device, dtype=getattr(torch, dtype), requires_grad=True)
        queries = tiling.num_tiles * (q_rows or tiling.rows)
        q = torch.empty(1, 4, queries, dim, **options)
        k, v = (torch.empty(1, 4, tiling.padded_tokens, dim, **options) for _ in range(2))
        blocks = -(-tiling.num_tiles // query_tiles)
        chosen = torch.empty(1, 4, blocks, 8, dtype=torch.int32, device=device)

        def attend(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor) -> Tensor:
            chosen = tile_map(chosen, tiling.num_tiles)
            options: Any = dict(most=8, q_rows=q_rows, query_tiles=query_tiles)
            mask = tile_block_mask(chosen, tiling, **options)
            if folded and mask.made_of is not None:
                return attend_zeroed(q, k, v, mask.made_of, kernel_options=kernel_options)
            return flex_attention(q, k, v, block_mask=mask, kernel_options=kernel_options)

        return attend, [q, k, v, chosen]

    return case


def literal_case(shape: str, dim: int) -> Case:
    """torch's own ``flex_attention``, called as its documentation does, under a mask of ours."""
    tiling = VideoTiling(*TOKENS[shape])

    def case(device: torch.device) -> Built:
        options: Any = dict(device=device, dtype=torch.bfloat16, requires_grad=True)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Any:
            return torch_flex_attention(q, k, v, block_mask=vsa_mask(q, k, tiling, top_k=8))

        return attend, [torch.empty(1, 4, tiling.padded_tokens, dim, **options) for _ in range(3)]

    return case


def long_case(
    video: Grid,
    tile: Grid,
    heads: int,
    kind: str,
    dim: int = 128,
    query_tiles: int | None = None,
    rule: Rule | None = None,
) -> Case:
    """A layer at a size that is timed, of a kind of ``benchmarks.gpu``: VSA, with both gates or
    ``vsa_ungated``, by default with pairs of query tiles and at 87.5 %; BSA with fours, 95 %; dense
    attention by torch's own kernel."""
    tiling = VideoTiling(video, tile)
    n, window = tiling.num_tiles, (2, 2, 2) if tile == (4, 4, 4) else (3, 5, 2)
    family = kind.partition("_")[0]

    def case(device: torch.device) -> Built:
        options: Any = dict(device=device, dtype=torch.bfloat16, requires_grad=True)
        rows = tiling.tokens if family == "dense" else tiling.padded_tokens
        size = (1, heads, rows, dim)
        top_k, kv = rule or round(n / 8), rule or Threshold(round(n / 10))

        def vsa(q: Tensor, k: Tensor, v: Tensor, *gates: Tensor) -> Tensor:
            given: Any = dict(zip(("gate_coarse", "gate_fine"), gates))
            given |= dict(top_k=top_k, query_tiles=query_tiles or 2)
            return vsa_attention(q, k, v, tiling, **given)

        def bsa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            given: Any = dict(window=window, query_tiles=query_tiles or 4)
            return bsa_attention(q, k, v, tiling, kv=kv, **given)

        attend: Any = dict(vsa=vsa, bsa=bsa, dense=torch_flex_attention)[family]
        count = 5 if kind == "vsa" else 3
        return attend, [torch.empty(size, **options) for _ in range(count)]

    return case
