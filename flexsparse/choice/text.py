"""Text beside video: tiles that every token attends to, and that attend to every token.

The tiles of the video choose among themselves; what is here adds the text to their choice.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flexsparse.choice.block_mask import ChosenTiles
from flexsparse.choice.selection import pack_bits
from flexsparse.tiling import VideoTiling


def split(x: Tensor, tiling: VideoTiling) -> tuple[Tensor, Tensor]:
    """The rows of the video's tiles, and those of the text, of ``[..., padded_tokens, C]``."""
    return x[..., : tiling.video_rows, :], x[..., tiling.video_rows :, :]


def video_rows(x: Tensor, tiling: VideoTiling) -> Tensor:
    """The rows of the video's tiles; x itself where there is no text."""
    return split(x, tiling)[0] if tiling.text else x


def with_text_keys(bits: Tensor, tiling: VideoTiling, text_lengths: Tensor | None) -> Tensor:
    """A choice of the video's tiles and, in each row, all tiles that hold text.

    Args:
        bits: int32 ``[B, H, blocks, ceil(num_tiles / 32)]``, as ``choose_tiles`` returns them.

    Returns:
        int32 ``[B, H, blocks, ceil(key_tiles / 32)]``.
    """
    words = _bits_of_text(tiling, text_lengths, bits.device, video=False)
    chosen = F.pad(bits, (0, words.shape[-1] - bits.shape[-1]))
    return chosen | words[:, None, None]


def with_text_queries(
    bits: Tensor, tiling: VideoTiling, text_lengths: Tensor | None, q_block: int
) -> Tensor:
    """The same and, in rows of their own, the text's queries, ``q_block`` to a row: all tiles."""
    everything = _bits_of_text(tiling, text_lengths, bits.device, video=True)
    rows = -(-tiling.text_tiles * tiling.rows // q_block)
    shape = bits.shape[0], bits.shape[1], rows, -1
    return torch.cat((bits, everything[:, None, None].expand(*shape)), -2)


def with_text(
    bits: Tensor,
    tiling: VideoTiling,
    most: int,
    *,
    q_rows: int | None = None,
    query_tiles: int = 1,
    text_lengths: Tensor | None = None,
    of_video: bool = False,
) -> ChosenTiles:
    """The video's choice of at most ``most`` of its tiles, with the text added.

    Args:
        bits: int32 ``[B, H, blocks, ceil(num_tiles / 32)]``, as ``choose_tiles`` returns them.
        q_rows, query_tiles, text_lengths: as in ChosenTiles.
        of_video: leave out the text's queries. FlexAttention's lists have one width for all rows,
            and theirs hold all tiles: without them lists stay as narrow as the choice.
    """
    options: Any = dict(q_rows=q_rows, query_tiles=query_tiles)
    if not tiling.text:
        return ChosenTiles(bits, tiling, most, **options)
    bits = with_text_keys(bits, tiling, text_lengths)
    options |= dict(text_lengths=text_lengths)
    if of_video:
        most += tiling.text_tiles
        return ChosenTiles(bits, tiling, most, queries="video", **options)
    if tiling.num_tiles % query_tiles:
        raise ValueError(
            f"query_tiles={query_tiles} does not divide the {tiling.num_tiles} tiles of the video, "
            "and the rest would share a block with the text: give a divisor, or call "
            "vsa_attention or bsa_attention, which compute the text by itself"
        )
    q_block = query_tiles * (tiling.rows if q_rows is None else q_rows)
    bits = with_text_queries(bits, tiling, text_lengths, q_block)
    return ChosenTiles(bits, tiling, **options)


def text_to_all(
    tiling: VideoTiling, text_lengths: Tensor | None, device: torch.device
) -> ChosenTiles:
    """All tiles, for the text's queries, ``text_tiles * rows`` of them."""
    everything = _bits_of_text(tiling, text_lengths, device, video=True)[:, None, None]
    bits = everything.expand(-1, 1, tiling.text_tiles, -1).contiguous()
    return ChosenTiles(bits, tiling, text_lengths=text_lengths, queries="text")


def zero_text_padding(x: Tensor, tiling: VideoTiling, text_lengths: Tensor | None) -> Tensor:
    """The rows of text with zeros in padding: ``[B, H, text_tiles * rows, D]``."""
    token = torch.arange(x.shape[-2], device=x.device)
    ends = torch.full((1,), tiling.text, device=x.device) if text_lengths is None else text_lengths
    return torch.where((token < ends[:, None])[:, None, :, None], x, 0)


def join(video: Tensor, text: Tensor) -> Tensor:
    """The rows of the video's tiles, then those of the text. The memory order is ``[B, rows, H,
    D]``, so that merging heads copies nothing."""
    return torch.cat((video.transpose(1, 2), text.transpose(1, 2)), 1).transpose(1, 2)


def _bits_of_text(
    tiling: VideoTiling, text_lengths: Tensor | None, device: torch.device, *, video: bool
) -> Tensor:
    """The tiles that hold text, and with ``video`` its own: int32 ``[B or 1, words]``."""
    holds = (tiling.counts(device, text_lengths) > 0).view(-1, tiling.key_tiles)
    if not video:
        holds = holds & (torch.arange(tiling.key_tiles, device=device) >= tiling.num_tiles)
    return pack_bits(holds)
