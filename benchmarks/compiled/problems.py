"""Layers that are run as Inductor wrote them for a GPU, and what each must equal.

They are small, since Triton's interpreter takes a second for some twenty blocks of attention, and
in fp16, which numpy has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention as torch_flex_attention

from benchmarks.compiled.capture import Built, Case
from flexsparse import (
    Mass,
    Threshold,
    TopK,
    VideoTiling,
    bsa_attention,
    flex_attention,
    prune_queries,
    reference,
    vsa_attention,
    vsa_mask,
)
from flexsparse.bsa import bsa_tile_map
from flexsparse.choice.block_mask import tile_block_mask
from flexsparse.choice.rules import Rule
from flexsparse.selfcheck.rows import stay
from flexsparse.vsa import vsa_tile_map

HEADS = 2
DTYPE = torch.float16
Oracle = Callable[..., Tensor]


@dataclass(frozen=True)
class Problem:
    """A layer of tile-major q, k, v, further tensors like these, and others that have no gradient.

    ``oracle(*raster, *others)`` gives a function of raster tensors and ``dtype=`` by
    ``flexsparse.reference``, with the choices of tiles and queries that the inputs lead to.
    """

    tiling: VideoTiling
    layer: Callable[..., Tensor]
    oracle: Callable[..., Oracle]
    gates: int = 0
    dim: int = 64
    batch: int = 1
    others: Sequence[Tensor] = ()
    trains: bool = True
    logits: int = 1
    """How many times larger q is, and with it every score."""
    poisoned: bool = True
    """Whether what stands in padding is NaN, of which torch's own flex_attention is not told."""

    def case(self) -> Case:
        """What ``capture.graphs`` compiles: inputs are the graph's first, in this order."""

        def built(device: torch.device) -> Built:
            size = self.batch, HEADS, self.tiling.padded_tokens, self.dim
            options: Any = dict(device=device, dtype=DTYPE, requires_grad=self.trains)
            inputs = [torch.empty(size, **options) for _ in range(3 + self.gates)]
            others = [torch.empty_like(x, device=device) for x in self.others]

            def in_order(*inputs: Tensor) -> Tensor:
                for x in inputs:
                    x.shape  # noqa: B018  (Dynamo takes inputs in the order of their use)
                return self.layer(*inputs)

            return in_order, [*inputs, *others]

        return built

    def draw(self) -> list[Tensor]:
        """Raster inputs and, last, the gradient of the output; always the same."""
        generator = torch.Generator().manual_seed(0)
        size = self.batch, HEADS, self.tiling.tokens, self.dim
        drawn = [torch.randn(size, generator=generator) for _ in range(4 + self.gates)]
        drawn[0] *= self.logits
        return [x.to(DTYPE) for x in drawn]

    def tiled(self, x: Tensor) -> Tensor:
        """Tile-major ``x``, with NaN in padding."""
        x, tiling = self.tiling.to_tiles(x), self.tiling
        return torch.where(tiling.valid()[:, None], x, torch.nan) if self.poisoned else x


def fine(tiling: VideoTiling, query_tiles: int = 1, dim: int = 64, ours: bool = True) -> Problem:
    """The fine stage under a map of tiles whose rows have 1, 2, ... tiles, all, 1 ..."""
    n, blocks = tiling.num_tiles, -(-tiling.num_tiles // query_tiles)
    generator = torch.Generator().manual_seed(1)
    rank = torch.rand(1, HEADS, blocks, n, generator=generator).argsort(-1)
    tile_map = rank <= torch.arange(blocks)[:, None] % n

    def layer(q: Tensor, k: Tensor, v: Tensor, tile_map: Tensor) -> Any:
        mask = tile_block_mask(tile_map, tiling, query_tiles=query_tiles)
        return (flex_attention if ours else torch_flex_attention)(q, k, v, block_mask=mask)

    of_tiles = tile_map.repeat_interleave(query_tiles, -2)[..., :n, :]
    oracle = _vsa_oracle(tiling, lambda q, k: of_tiles)
    return Problem(tiling, layer, oracle, dim=dim, others=[tile_map], poisoned=ours)


def vsa(
    tiling: VideoTiling,
    query_tiles: int = 1,
    gates: int = 0,
    lengths: Sequence[int] | None = None,
    trains: bool = True,
    dim: int = 64,
    logits: int = 1,
) -> Problem:
    """Whole VSA; of text that has these lengths, one for each video of the batch."""
    choice: Any = dict(top_k=3, query_tiles=query_tiles)

    def layer(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor) -> Tensor:
        given: Any = dict(zip(("gate_coarse", "gate_fine"), rest[:gates]))
        text = rest[gates] if lengths else None
        return vsa_attention(q, k, v, tiling, text_lengths=text, **given, **choice)

    oracle = _vsa_oracle(tiling, lambda q, k: vsa_tile_map(q, k, tiling.of_video, **choice))
    others = [torch.tensor(lengths)] if lengths else []
    return Problem(tiling, layer, oracle, gates, dim, len(lengths or [1]), others, trains, logits)


def literal(tiling: VideoTiling) -> Problem:
    """torch's own ``flex_attention`` under ``vsa_mask``."""

    def layer(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return torch_flex_attention(q, k, v, block_mask=vsa_mask(q, k, tiling, top_k=3))

    oracle = _vsa_oracle(tiling, lambda q, k: vsa_tile_map(q, k, tiling, top_k=3))
    return Problem(tiling, layer, oracle, poisoned=False)


def bsa(
    tiling: VideoTiling,
    rule: Rule,
    window: tuple[int, int, int],
    query_tiles: int = 1,
    logits: int = 1,
    dim: int = 64,
) -> Problem:
    """Whole BSA: prune half of the queries, attend, restore."""
    choice: Any = dict(kv=rule, query_tiles=query_tiles)

    def layer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return bsa_attention(q, k, v, tiling, keep=0.5, window=window, **choice)

    def oracle(q: Tensor, k: Tensor) -> Oracle:
        video = tiling.of_video
        q, k = (video.to_tiles(x[..., : video.tokens, :]) for x in (q, k))
        kept = prune_queries(q, video, keep=0.5, window=window)
        tile_map = bsa_tile_map(kept, k, video, **choice)
        given: Any = dict(keep=0.5, window=window, tile_map=tile_map, kept=stay(kept))

        def compute(q: Tensor, k: Tensor, v: Tensor, *, dtype: torch.dtype) -> Tensor:
            return reference.bsa(q, k, v, tiling.video, tiling.tile, dtype=dtype, **given)

        return compute

    return Problem(tiling, layer, oracle, dim=dim, logits=logits)


def _vsa_oracle(
    tiling: VideoTiling, choose: Callable[[Tensor, Tensor], Tensor]
) -> Callable[..., Oracle]:
    video = tiling.of_video

    def oracle(q: Tensor, k: Tensor, *others: Tensor) -> Oracle:
        of_video = (video.to_tiles(x[..., : video.tokens, :]) for x in (q, k))
        given: Any = dict(tile_map=choose(*of_video), top_k=0)
        if tiling.text and others:
            given["text_lengths"] = others[-1]
        if tiling.parts:
            given |= dict(parts=tiling.parts, rows=tiling.rows)

        def compute(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor, dtype: torch.dtype) -> Tensor:
            gates: Any = dict(zip(("gate_coarse", "gate_fine"), rest), dtype=dtype)
            return reference.vsa(q, k, v, tiling.video, tiling.tile, **gates, **given)

        return compute

    return oracle


FULL = VideoTiling((4, 8, 8), (4, 4, 4))  # 4 tiles of 64 rows
PADDED = VideoTiling((3, 10, 12), (3, 5, 4))  # 6 of 60 tokens in 64 rows
RAGGED = VideoTiling((9, 4, 10), (4, 4, 4))  # 9, some of them full
ROW = VideoTiling((4, 4, 18), (4, 4, 4))  # 5, the last of them ragged
SMALL = VideoTiling((3, 4, 10), (2, 4, 4))  # 6 of 32 rows
LARGE = VideoTiling((4, 5, 16), (4, 4, 8))  # 4 of 128 rows
TEXT = VideoTiling((4, 5, 6), (4, 4, 4), 64, 70)  # 4, and 2 of text
FULL_TEXT = VideoTiling((4, 4, 12), (4, 4, 4), 64, 70)  # 3 without padding, and 2
PADDED_TEXT = VideoTiling((3, 5, 12), (3, 5, 4), 64, 70)  # 3 of 60 tokens, and 2
PARTS = replace(TEXT, parts=(5, 65))  # 3 tiles of text in the coarse stage
CUT = VideoTiling((3, 10, 6), (3, 5, 4))  # 4, of 60 or 30 tokens
FIT, WAN, TILE = (2, 2, 2), (3, 5, 2), (3, 5, 4)  # windows
PROBLEMS: dict[str, Problem] = {
    "fine_full": fine(FULL),
    "fine_full_pairs": fine(FULL, 2),
    "fine_padded": fine(PADDED),
    "fine_padded_fours": fine(PADDED, 4),
    "fine_ragged": fine(RAGGED),
    "fine_ragged_pairs_d128": fine(ROW, 2, dim=128),
    "fine_32_rows": fine(SMALL),
    "fine_32_rows_fours": fine(SMALL, 4),
    "fine_128_rows": fine(LARGE),
    "vsa_text": vsa(TEXT),
    "vsa_text_of_two_lengths": vsa(TEXT, lengths=(5, 66)),
    "vsa_full_text_of_two_lengths": vsa(FULL_TEXT, lengths=(5, 66)),
    "vsa_padded_text": vsa(PADDED_TEXT),
    "vsa_text_parts_gated": vsa(PARTS, gates=2),
    "vsa_inference": vsa(FULL, trains=False),
    "vsa_inference_of_large_logits": vsa(FULL, trains=False, dim=128, logits=64),
    "vsa_large_logits": vsa(FULL, logits=64),
    "vsa_padded_large_logits_pairs_d128": vsa(PADDED, 2, dim=128, logits=64),
    "vsa_full_gated": vsa(FULL, gates=2),
    "vsa_padded_gated_pairs": vsa(PADDED, 2, gates=1),
    "vsa_ragged_gated": vsa(ROW, gates=2),
    "bsa_full_topk": bsa(FULL, TopK(3), FIT),
    "bsa_padded_threshold": bsa(PADDED, Threshold(2), WAN),
    "bsa_cut_mass": bsa(CUT, Mass(0.8), TILE),
    "bsa_ragged_threshold_fours": bsa(RAGGED, Threshold(3), FIT, 4),
    "bsa_ragged_large_logits": bsa(RAGGED, TopK(3), FIT, logits=64),
    "bsa_padded_large_logits_d128": bsa(PADDED, TopK(3), WAN, logits=64, dim=128),
    "bsa_text": bsa(TEXT, TopK(3), FIT),
    "torchs_full": literal(FULL),
    "torchs_ragged": literal(ROW),
    "torchs_map": fine(ROW, ours=False),
}
