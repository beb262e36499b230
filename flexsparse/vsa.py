"""Video Sparse Attention (VSA, arXiv 2505.13389): a coarse stage that chooses tiles, a fine one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flexsparse.checks import (
    as_autocast,
    check_alike,
    check_heads,
    check_query_tiles,
    check_text_lengths,
)
from flexsparse.choice.block_mask import TileBlockMask
from flexsparse.choice.choose import choose_tiles, coarse_scores, of_tiles, pool_scores
from flexsparse.choice.rules import Rule
from flexsparse.choice.scaled import as_rule
from flexsparse.choice.selection import unpack_bits
from flexsparse.choice.text import (
    join,
    split,
    text_to_all,
    video_rows,
    with_text,
    zero_text_padding,
)
from flexsparse.choice.union import Unites
from flexsparse.engines.dense import dense_attention
from flexsparse.engines.flex import attend_zeroed, query_factor
from flexsparse.stages.coarse import coarse_attention
from flexsparse.stages.gates import combine
from flexsparse.stages.pooling import pool_each, pool_parts, pool_tiles, spread_parts
from flexsparse.tiling import VideoTiling


def vsa_mask(
    q: Tensor,
    k: Tensor,
    tiling: VideoTiling,
    *,
    top_k: int | Unites,
    query_tiles: int = 1,
    text_lengths: Tensor | None = None,
) -> TileBlockMask:
    """The BlockMask of VSA's fine stage: each query tile sees the ``top_k`` tiles of best score.

    Scores are the scaled dot products of mean-pooled queries and keys, in fp32; ties go to the
    lower tile. Works with torch's own ``flex_attention`` as well. Build it under ``no_grad`` for
    inference and it leaves out the lists that only the backward reads.

    Args:
        q: tile-major ``[B, H, padded_tokens, D]``; padding is never read. No gradient flows
            through the mask.
        k: tile-major ``[B, Hkv, padded_tokens, D]``; query head h reads key head
            ``h // (H // Hkv)``.
        tiling: the shape.
        top_k: key tiles per query tile, 1 to ``tiling.num_tiles``, or a rule that admits them.
        query_tiles: so many query tiles, adjacent in memory, choose together, by the mean of their
            scores, weighted by tokens, and make one query block (ours: each key tile that a GPU
            reads then serves as many more rows). The last block has fewer where the number of tiles
            is not a multiple.
        text_lengths: where texts of the batch differ in length, int ``[B]``. Text takes no part in
            the choice: every query block has all of it, and its own see all tiles.

    Returns:
        A BlockMask of tiles, ``[B, H, padded_tokens, padded_tokens]``.

    Raises:
        ValueError: raster tensors, another video's tensors, ``top_k`` or ``query_tiles`` out of
            range.

    >>> tiling = VideoTiling((4, 8, 8), tile=(2, 4, 4))
    >>> q = k = tiling.to_tiles(torch.randn(1, 2, tiling.tokens, 16))
    >>> vsa_mask(q, k, tiling, top_k=2).sparsity()
    75.0
    """
    rule = as_rule(top_k, tiling)
    check_text_lengths(text_lengths, tiling, q)
    bits = _choose(q, k, tiling, rule, query_tiles)
    most = rule.bounds(tiling.num_tiles, query_tiles)[1]
    options: Any = dict(query_tiles=query_tiles, text_lengths=text_lengths)
    return with_text(bits, tiling, most, **options).mask()


def vsa_tile_map(
    q: Tensor, k: Tensor, tiling: VideoTiling, *, top_k: int | Unites, query_tiles: int = 1
) -> Tensor:
    """Who attends to whom in :func:`vsa_mask`: bool ``[B, H, n, n]``, query tiles by key tiles, of
    the video."""
    rule = as_rule(top_k, tiling)
    bits = _choose(q, k, tiling, rule, query_tiles)
    return of_tiles(unpack_bits(bits, tiling.num_tiles), query_tiles)


def vsa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tiling: VideoTiling,
    *,
    top_k: int | Unites | None,
    gate_coarse: Tensor | None = None,
    gate_fine: Tensor | None = None,
    enable_gqa: bool = False,
    query_tiles: int = 1,
    text_lengths: Tensor | None = None,
    kernel_options: dict[str, Any] | None = None,
) -> Tensor:
    """VSA: ``O = softmax(Qc Kc^T / sqrt(D)) Vc * gate_coarse + fine * gate_fine``.

    ``Qc, Kc, Vc`` are means over tiles, and the coarse output of a tile is spread to all of its
    tokens. The fine stage is token attention over the ``top_k`` tiles of best coarse score. With
    ``top_k = tiling.num_tiles`` and no gates this is dense attention. Text has no part in the
    coarse stage, and its rows are ``fine * gate_fine``, unless the tiling has ``parts`` of it: then
    the coarse output attends to their tiles, too, and is spread to their rows (FastVideo's VSA of
    MiniMax-H3).

    Args:
        q: tile-major ``[B, H, padded_tokens, D]``; what stands in padding has no effect. Mixed
            dtypes under autocast are cast to its own.
        k, v: tile-major ``[B, Hkv, padded_tokens, D]``, with fewer heads only if ``enable_gqa``.
        tiling: the shape.
        top_k: key tiles per query tile, 1 to ``tiling.num_tiles``, or a rule that admits them; None
            is all tiles, with the fine stage a dense kernel rather than lists that hold everything.
        gate_coarse: ``[B, H, padded_tokens, D]``; None leaves the coarse branch out.
        gate_fine: ``[B, H, padded_tokens, D]``; None means 1.
        enable_gqa: whether k and v may have a divisor of q's heads; query head h reads key head
            ``h // (H // Hkv)``, in both stages.
        query_tiles: adjacent query tiles that choose together, see :func:`vsa_mask`.
        text_lengths: where texts of the batch differ in length, int ``[B]``.
        kernel_options: of the fine stage on CUDA, see :func:`flexsparse.flex_attention`.

    Returns:
        ``[B, H, padded_tokens, D]``, zeros in padding. Differentiable in q, k, v and the gates; the
        choice of tiles has no gradient.

    Raises:
        ValueError: raster tensors, mixed devices or dtypes, ``top_k`` or ``query_tiles`` out of
            range.
    """
    q, k, v, gate_coarse, gate_fine = as_autocast(q, k, v, gate_coarse, gate_fine)
    for name, x in (("q", q), ("k", k), ("v", v)):
        tiling.check_tiled(x, name)
    check_alike(q=q, k=k, v=v)
    check_heads(q, k, enable_gqa, ("q", "k"))
    if k.shape[0] != q.shape[0]:
        raise ValueError(f"q has batch {q.shape[0]}, k and v {k.shape[0]}: expand k and v")
    for name, gate in (("gate_coarse", gate_coarse), ("gate_fine", gate_fine)):
        if gate is not None:
            _check_gate(name, gate, q, v, tiling)
    check_query_tiles(query_tiles, tiling)
    check_text_lengths(text_lengths, tiling, q)
    rule = None if top_k is None else as_rule(top_k, tiling)
    raw = q  # for pooling, which reads no padding: zeroed, q is written for attention alone
    if rule is not None:  # once, for all that reads them
        q, k, v = tiling.zero_each((q, k, v), text_lengths)
    of_video = [video_rows(x, tiling) for x in (raw, k, v)]
    again = rule is not None and _saves_as_it_is(k, tiling)
    kept = 1 if again else 3  # attention saves q as it is scaled
    pooled = None if gate_coarse is None else pool_each(of_video, tiling.of_video, kept=kept)
    words = None
    if rule is None:
        fine = dense_attention(q, k, v, tiling, enable_gqa=enable_gqa, text_lengths=text_lengths)
        if tiling.text:
            fine, words = split(fine, tiling)
    else:
        bits = _choose(raw, k, tiling, rule, query_tiles, pooled)
        most = rule.bounds(tiling.num_tiles, query_tiles)[1]
        options: Any = dict(query_tiles=query_tiles, text_lengths=text_lengths, of_video=True)
        chosen = with_text(bits, tiling, most, **options)
        factor = query_factor(q, k, v, kernel_options)
        scaled = q if factor == 1 else q * factor  # once for the video and the text
        options = dict(enable_gqa=enable_gqa, kernel_options=kernel_options, factor=factor)
        fine = attend_zeroed(video_rows(scaled, tiling), k, v, chosen, **options)
        if tiling.text:
            chosen = text_to_all(tiling, text_lengths, q.device)
            words = attend_zeroed(split(scaled, tiling)[1], k, v, chosen, **options)
    gates = gate_coarse, gate_fine
    of_video_gates = [gate if gate is None else video_rows(gate, tiling) for gate in gates]
    coarse = None if pooled is None else _coarse(pooled, (q, k, v), tiling, again)
    of_tiles, of_words = coarse, None
    if coarse is not None and tiling.parts:
        of_tiles, of_words = coarse.split(
            (tiling.num_tiles, coarse.shape[-2] - tiling.num_tiles), -2
        )
        of_tiles = of_tiles.contiguous()
    out = _gated(fine, of_tiles, of_video_gates[0], of_video_gates[1], tiling.of_video)
    if words is None:
        return out
    dtype = words.dtype
    if gate_fine is not None:
        words = words * zero_text_padding(split(gate_fine, tiling)[1], tiling, text_lengths)
    if of_words is not None and gate_coarse is not None:
        gate = zero_text_padding(split(gate_coarse, tiling)[1], tiling, text_lengths)
        words = (words + spread_parts(of_words, tiling) * gate).to(dtype)
    return join(out, zero_text_padding(words, tiling, text_lengths))


def _saves_as_it_is(k: Tensor, tiling: VideoTiling) -> bool:
    """Whether compiled training has k and v in its backward, to pool them there once more: it has
    what autocast makes of them for attention. (Means that are joined with those of text are saved.)
    """
    if not (k.is_cuda and torch.compiler.is_compiling() and torch.is_grad_enabled()):
        return False
    cast = torch.is_autocast_enabled("cuda") and k.dtype != torch.get_autocast_dtype("cuda")
    return not cast and not tiling.parts


def _coarse(
    pooled: Sequence[Tensor], rows: Sequence[Tensor], tiling: VideoTiling, again: bool
) -> Tensor:
    """The coarse output of the video's tiles, then of those of the text's parts."""
    if tiling.parts:
        words = [pool_parts(split(x, tiling)[1], tiling) for x in rows]
        pooled = [torch.cat(pair, -2) for pair in zip(pooled, words)]
    return coarse_attention(*pooled, again=again)


def _gated(
    fine: Tensor,
    coarse: Tensor | None,
    gate_coarse: Tensor | None,
    gate_fine: Tensor | None,
    tiling: VideoTiling,
) -> Tensor:
    if coarse is not None and gate_coarse is not None:
        return combine(fine, coarse, gate_coarse, gate_fine, tiling)
    if gate_fine is not None:
        fine = fine * tiling.zero_padding(gate_fine)  # or its NaN would reach fine's gradient
    return tiling.zero_padding(fine)


def block_scores(q: Tensor, k: Tensor, tiling: VideoTiling, query_tiles: int) -> Tensor:
    """What query blocks choose by, in plain PyTorch: ``[B, H, ceil(n / query_tiles), n]``."""
    video = tiling.of_video
    q_pooled, k_pooled = (pool_tiles(video_rows(x, tiling), video) for x in (q, k))
    scores = coarse_scores(q_pooled, k_pooled)
    return pool_scores(scores, _counts(video, query_tiles, q.device), query_tiles)


def _choose(
    q: Tensor,
    k: Tensor,
    tiling: VideoTiling,
    rule: Rule,
    query_tiles: int,
    pooled: Sequence[Tensor] | None = None,
) -> Tensor:
    """The bits of the chosen tiles, from pooled q and k where they are at hand."""
    check_query_tiles(query_tiles, tiling)
    if pooled is None:
        q, k = as_autocast(q, k)
        for name, x in (("q", q), ("k", k)):
            tiling.check_tiled(x, name)
        check_alike(q=q, k=k, v=k)
        pooled = pool_each([video_rows(x.detach(), tiling) for x in (q, k)], tiling.of_video)
    counts = _counts(tiling.of_video, query_tiles, q.device)
    return choose_tiles(pooled[0], pooled[1], rule, counts=counts, query_tiles=query_tiles)


def _counts(tiling: VideoTiling, query_tiles: int, device: torch.device) -> Tensor | None:
    """How many queries each tile has, where tiles that choose together may differ in it."""
    return tiling.counts(device) if tiling.is_ragged and query_tiles > 1 else None


def _check_gate(name: str, gate: Tensor, q: Tensor, v: Tensor, tiling: VideoTiling) -> None:
    tiling.check_tiled(gate, name)
    due = *q.shape[:3], v.shape[3]
    if (gate.shape, gate.device, gate.dtype) != (due, v.device, v.dtype):
        raise ValueError(
            f"{name} is {tuple(gate.shape)} {gate.device}/{gate.dtype}, the output {due} "
            f"{v.device}/{v.dtype}: make them alike"
        )
