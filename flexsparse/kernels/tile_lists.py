"""The index lists of a choice of tiles, in both directions and in one launch, by counting.

    by query block   num[i] = #(j chosen by i)     list[i][rank of j among them] = j
    by key tile      num[j] = #(i that chose j)    list[j][rank of i among them] = i

Ranks are sums over the bits before, so that lists ascend and no order of execution shows in them.
Tiles with padding, and those of text, are partial blocks of keys, the others full ones. Where there
are both, a query block has two lists of one layout; a key tile is one or the other, and has one
list under two counts. FIRST is the first kind that there is. Entries past a count are not written,
but for the first, which kernels read before they look at the count.
"""

import math

import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from flexsparse.kernels.geometry import grid_of, tile_tokens
from flexsparse.kernels.recompute import computed_again

_BLOCK_C = 64  # query blocks that a program of the key side reads at a time
_VALUES = 2048  # bits that a program of the query side holds


@triton.jit
def _kind(chosen, full, kind: tl.constexpr, KINDS: tl.constexpr):
    """Of what is chosen that of one kind, where there are two: 0 partial, 1 full."""
    if KINDS == 2:
        chosen = tl.where(full == (kind == 1), chosen, 0)
    return chosen


@triton.jit
def _by_query(
    bits, num, lists, i_bh, heads, full, o_r, o_s, n, blocks, words, width,
    KINDS: tl.constexpr, FIRST: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    m_r, row = o_r < blocks, i_bh * blocks + o_r
    p_word = bits + row[:, None] * words + (o_s // 32)[None, :]
    word = tl.load(p_word, mask=m_r[:, None] & (o_s < n)[None, :], other=0)
    chosen = (word >> (o_s % 32)[None, :]) & 1
    for kind in tl.static_range(KINDS):  # pyright: ignore[reportGeneralTypeIssues]
        listed = _kind(chosen, full[None, :], kind, KINDS)
        rank, count = tl.cumsum(listed, 1), tl.minimum(tl.sum(listed, 1), width)
        p_list = lists + (kind * heads * blocks + row)[:, None] * width
        m_list = (listed > 0) & (rank <= width)  # nothing lands in another's list
        tl.store(p_list + rank - 1, tl.zeros_like(rank) + o_s[None, :], mask=m_list)
        tl.store(p_list, tl.zeros([BLOCK_R, 1], tl.int32), mask=(m_r & (count == 0))[:, None])
        tl.store(num + (FIRST + kind) * heads * blocks + row, count, mask=m_r)
    if KINDS == 1:
        tl.store(num + (1 - FIRST) * heads * blocks + row, tl.zeros([BLOCK_R], tl.int32), mask=m_r)


@triton.jit
def _by_key(
    bits, num, lists, i_bh, heads, full, i_w, o_s, n, blocks, words,
    KINDS: tl.constexpr, FIRST: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    tile, o_c = i_w * 32 + o_s, tl.arange(0, BLOCK_C)
    m_t, row = tile < n, i_bh * n + tile
    p_list = lists + row[:, None] * blocks
    total = tl.zeros([32], tl.int32)
    for start in range(0, blocks, BLOCK_C):
        i_c = start + o_c
        word = tl.load(bits + (i_bh * blocks + i_c) * words + i_w, mask=i_c < blocks, other=0)
        chosen = ((word[None, :] >> o_s[:, None]) & 1) * m_t[:, None].to(tl.int32)
        rank = total[:, None] + tl.cumsum(chosen, 1)
        tl.store(p_list + rank - 1, tl.zeros_like(rank) + i_c[None, :], mask=chosen > 0)
        total += tl.sum(chosen, 1)
    tl.store(p_list, tl.zeros([32, 1], tl.int32), mask=(m_t & (total == 0))[:, None])
    for kind in tl.static_range(KINDS):  # pyright: ignore[reportGeneralTypeIssues]
        count = _kind(total, full, kind, KINDS)
        tl.store(num + (FIRST + kind) * heads * n + row, count, mask=m_t)
    if KINDS == 1:
        tl.store(num + (1 - FIRST) * heads * n + row, tl.zeros([32], tl.int32), mask=m_t)


@triton.jit
def _lists(
    bits, q_num, q_list, k_num, k_list, n, video_tiles, blocks, words, width, q_programs,
    VIDEO_T: tl.constexpr, VIDEO_H: tl.constexpr, VIDEO_W: tl.constexpr,
    TILE_T: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, ROWS: tl.constexpr,
    KINDS: tl.constexpr, FIRST: tl.constexpr, BY_KEY: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    i_p, i_bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    heads = tl.num_programs(1).to(tl.int64)
    if i_p < q_programs:
        o_r, o_s = i_p * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_S)
        full = tile_tokens(o_s, VIDEO_T, VIDEO_H, VIDEO_W, TILE_T, TILE_H, TILE_W) == ROWS
        full = full & (o_s < video_tiles)
        _by_query(
            bits, q_num, q_list, i_bh, heads, full, o_r, o_s, n, blocks, words, width,
            KINDS, FIRST, BLOCK_R,
        )  # fmt: skip
    elif BY_KEY:  # without, its outputs are None
        i_w, o_t = i_p - q_programs, tl.arange(0, 32)
        tile = i_w * 32 + o_t
        own = tile_tokens(tile, VIDEO_T, VIDEO_H, VIDEO_W, TILE_T, TILE_H, TILE_W) == ROWS
        own = own & (tile < video_tiles)
        _by_key(
            bits, k_num, k_list, i_bh, heads, own, i_w, o_t, n, blocks, words,
            KINDS, FIRST, BLOCK_C,
        )  # fmt: skip


@triton_op("flexsparse::tile_lists", mutates_args={})
def tile_lists(
    bits: Tensor,
    video: list[int],
    tile: list[int],
    rows: int,
    text_tiles: int,
    width: int,
    by_key: bool,
) -> list[Tensor]:
    """Counts and indices of the chosen tiles, int32, ascending.

    bits int32 ``[B, H, blocks, ceil(n / 32)]`` of n tiles, the last ``text_tiles`` of them text, at
    most ``width`` of a row set. Returns counts ``[2, B, H, blocks]``, of partial and of full tiles,
    and lists ``[kinds, B, H, blocks, width]`` of each query block: partial and full where there are
    both, else those that there are; and with ``by_key`` counts ``[2, B, H, n]`` and lists ``[B, H,
    n, blocks]`` of each key tile.
    """
    B, H, blocks, words = bits.shape
    video_tiles = math.prod(-(-side // part) for side, part in zip(video, tile))
    n = video_tiles + text_tiles
    some_full = math.prod(tile) == rows
    ragged = any(side % part for side, part in zip(video, tile))
    some_partial = not some_full or ragged or text_tiles > 0
    kinds = some_full + some_partial
    block_s = max(32, triton.next_power_of_2(n))
    block_r = max(1, _VALUES // block_s)
    outs = [bits.new_empty((2, B, H, blocks)), bits.new_empty((kinds, B, H, blocks, width))]
    if by_key:
        outs += [bits.new_empty((2, B, H, n)), bits.new_empty((B, H, n, blocks))]
    by_key_outs = outs[2:] if by_key else (None, None)  # a tensor given twice would be cloned
    q_programs = triton.cdiv(blocks, block_r)
    with computed_again():
        wrap_triton(_lists)[(q_programs + (words if by_key else 0), B * H)](
            bits, *outs[:2], *by_key_outs, n, video_tiles, blocks, words, width, q_programs,
            ROWS=rows, KINDS=kinds, FIRST=0 if some_partial else 1, BY_KEY=by_key,
            BLOCK_R=block_r, BLOCK_S=block_s, BLOCK_C=_BLOCK_C, num_warps=8, **grid_of(video, tile),
        )  # fmt: skip
    return outs
