"""The shape of a tiled video: which token of the grid lies in which row of memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from flexsparse.permute import permute

# Under 64 rows a tile takes the next power of two (the smallest tensor-core block is 16 rows);
# above, the next multiple of 64, so that compute blocks of 64 rows always divide a tile.
_ROWS_SMALL = (16, 32, 64)
_MAX_ASPECT = 2.0


def _default_rows(volume: int) -> int:
    return next((r for r in _ROWS_SMALL if volume <= r), -(-volume // 64) * 64)


def _triple(name: str, value: Any) -> tuple[int, int, int]:
    sizes = tuple(value) if isinstance(value, (tuple, list, torch.Size)) else ()
    if len(sizes) != 3 or not all(type(s) is int and s > 0 for s in sizes):
        raise ValueError(
            f"{name} must be three positive ints (frames, height, width), not {value!r}"
        )
    return sizes


@dataclass(frozen=True)
class VideoTiling:
    """A video of tokens cut into cuboid tiles, each stored in the same number of rows.

    Raster order is ``(t h w)`` with w fastest, then the text, if there is some. Tile-major order
    stores the tiles one after another, ``rows`` rows each: first the valid tokens of the tile in
    raster order, then padding. Tiles at the far edges may hold fewer tokens (ragged). Text follows
    in tiles of its own, ``rows`` tokens each; every token attends to all of it, and it to every
    token. Every size here follows from :meth:`layout`.

    Where texts of a batch differ in length, what takes ``text_lengths``, int ``[B]`` of 0 to
    ``text``, treats the text tokens of each sequence from its length on as padding.

    Args:
        video: tokens along time, height and width (after patchify), ``(T, H, W)``.
        tile: tokens of a tile along the same axes; an axis longer than the video is clipped to it.
        rows: rows of a tile in memory, a multiple of 16 and at least the tile's volume. Default:
            16, 32 or 64, whichever is the first to hold the tile, else the next multiple of 64:
            the kernels work in blocks of 16 to 64 rows that must divide a tile.
        text: tokens of text that attend, and are attended to, together with the video's.
        parts: tokens of each part of the text, in order, where VSA's coarse stage has text as well:
            in tiles of ``rows`` tokens, of which none holds two parts. Without, it has the video's
            tiles alone.

    Raises:
        ValueError: sizes that are not positive ints, rows that cannot hold a tile, parts of another
            sum than text.

    >>> tiling = VideoTiling(video=(21, 30, 52), tile=(3, 5, 4))
    >>> tiling.rows, tiling.num_tiles, tiling.tokens, tiling.padded_tokens
    (64, 546, 32760, 34944)
    >>> tiling = VideoTiling(video=(21, 30, 52), tile=(3, 5, 4), text=226)
    >>> tiling.num_tiles, tiling.text_tiles, tiling.tokens, tiling.padded_tokens
    (546, 4, 32986, 35200)
    """

    video: tuple[int, int, int]
    tile: tuple[int, int, int] = (4, 4, 4)
    rows: int = None  # pyright: ignore[reportAssignmentType]  # an int once constructed
    text: int = 0
    parts: tuple[int, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        video, tile = _triple("video", self.video), _triple("tile", self.tile)
        tile = tuple(min(t, v) for t, v in zip(tile, video))
        volume = math.prod(tile)
        rows = _default_rows(volume) if self.rows is None else self.rows
        if type(rows) is not int or rows % 16 or rows < volume:
            raise ValueError(
                f"rows={rows!r} cannot hold a tile of {volume} tokens: give a multiple of 16 of at "
                f"least {volume}, or leave it out for {_default_rows(volume)}"
            )
        if type(self.text) is not int or self.text < 0:
            raise ValueError(f"text={self.text!r} must be an int of at least 0, tokens of text")
        if self.parts and (min(self.parts) < 1 or sum(self.parts) != self.text):
            raise ValueError(f"parts={self.parts} must be positive ints of sum text={self.text}")
        for name, value in (("video", video), ("tile", tile), ("rows", rows)):
            object.__setattr__(self, name, value)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tiles along time, height and width."""
        (a, b, c), (x, y, z) = self.video, self.tile
        return -(-a // x), -(-b // y), -(-c // z)

    @property
    def num_tiles(self) -> int:
        """Tiles of the video."""
        return math.prod(self.grid)

    @property
    def text_tiles(self) -> int:
        """Tiles of the text."""
        return -(-self.text // self.rows)

    @property
    def key_tiles(self) -> int:
        """Tiles in all, those of the text last."""
        return self.num_tiles + self.text_tiles

    @property
    def tokens(self) -> int:
        """Tokens of the video and of the text, the length of raster tensors."""
        return math.prod(self.video) + self.text

    @property
    def video_rows(self) -> int:
        """Rows in memory of the video's tiles; those of the text follow."""
        return self.num_tiles * self.rows

    @property
    def padded_tokens(self) -> int:
        """Rows in memory, the length of tile-major tensors."""
        return self.key_tiles * self.rows

    @property
    def full_tiles(self) -> int:
        """Tiles of the video without a single padding row."""
        if math.prod(self.tile) < self.rows:
            return 0
        return math.prod([v // t for v, t in zip(self.video, self.tile)])

    @property
    def has_padding(self) -> bool:
        """Whether some rows hold no token, of texts that are as long as ``text`` says."""
        return self.full_tiles < self.num_tiles or self.text % self.rows > 0

    @property
    def of_video(self) -> VideoTiling:
        """The same without text."""
        return replace(self, text=0, parts=()) if self.text else self

    @property
    def is_ragged(self) -> bool:
        """Whether some tiles of the video hold fewer tokens than others."""
        return any(v % t for v, t in zip(self.video, self.tile))

    @classmethod
    def fit(cls, video: tuple[int, int, int], rows: int = 64, *, text: int = 0) -> VideoTiling:
        """The tiling of least padding whose tiles take ``rows`` rows and are not too long.

        A tile's longest side is at most twice its shortest (a side that spans the whole video may
        be shorter). Among tilings with equal padding the most cubic wins.

        >>> VideoTiling.fit((21, 30, 52)).tile, VideoTiling.fit((21, 45, 80)).tile
        ((3, 5, 4), (3, 5, 4))
        """
        sizes = _triple("video", video)
        if type(rows) is not int or rows <= 0 or rows % 16:
            raise ValueError(f"rows must be a positive multiple of 16, not {rows!r}")
        best: tuple[tuple, VideoTiling] | None = None
        for t, h in product(*(range(1, min(s, rows) + 1) for s in sizes[:2])):
            for w in range(1, min(sizes[2], rows // (t * h)) + 1):
                inner = [x for x, s in zip((t, h, w), sizes) if x < s]
                aspect = max(t, h, w) / min(inner) if inner else 1.0
                if aspect <= _MAX_ASPECT:
                    tiling = cls(sizes, (t, h, w), rows)
                    rank = (tiling.padded_tokens, aspect, -t * h * w, tiling.tile)
                    best = min(best, (rank, tiling), key=lambda b: b[0]) if best else (rank, tiling)
        assert best is not None, "a tile of one token always fits"
        return replace(best[1], text=text)

    def layout(self, device: torch.device | str | None = None) -> Tensor:
        """The raster index of every row's token, -1 in padding: int64 ``[key_tiles, rows]``."""
        _, video_h, video_w = self.video
        tile = torch.arange(self.key_tiles, device=device)[:, None]
        (start_t, start_h, start_w), (size_t, size_h, size_w) = self._boxes(tile)
        row = torch.arange(self.rows, device=device)
        t = start_t + row // (size_h * size_w)
        h = start_h + row // size_w % size_h
        w = start_w + row % size_w
        index = (t * video_h + h) * video_w + w
        index = torch.where(row < size_t * size_h * size_w, index, -1)
        if not self.text:
            return index
        token = (tile - self.num_tiles) * self.rows + row
        word = torch.where(token < self.text, math.prod(self.video) + token, -1)
        return torch.where(tile < self.num_tiles, index, word)

    def boxes(self, device: torch.device | str | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """First token and size of the video's tiles, along T, H and W: int64 ``[num_tiles]``."""
        return self._boxes(torch.arange(self.num_tiles, device=device))

    def _boxes(self, tile: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The same of any tiles; past the last no meaning, but sizes of at least 1."""
        grid_t, grid_h, grid_w = self.grid
        places = (tile // (grid_h * grid_w), tile // grid_w % grid_h, tile % grid_w)
        start = [place * size for place, size in zip(places, self.tile)]
        # no clamp: Inductor makes a Min of it, which it cannot take apart behind a cat
        sizes = [
            torch.where(place == last - 1, v - (last - 1) * t, t)
            for place, last, v, t in zip(places, (grid_t, grid_h, grid_w), self.video, self.tile)
        ]
        return start, sizes

    def counts(
        self, device: torch.device | str | None = None, text_lengths: Tensor | None = None
    ) -> Tensor:
        """Valid tokens of every tile, in its first rows: int32 ``[key_tiles]``, with
        ``text_lengths`` ``[B, key_tiles]``."""
        if self.is_ragged:
            # a sum, which Inductor puts into memory: what it can compute for each element,
            # FlexAttention would compute for every column of scores
            valid = self.valid(device, text_lengths)
            return valid.unflatten(-1, (self.key_tiles, self.rows)).sum(-1, dtype=torch.int32)
        tile = torch.arange(self.key_tiles, device=device)
        # no constant: Inductor would divide VSA's coarse gradients by it where it adds them up, and
        # no longer add one of them at the end of FlexAttention's backward
        t, h, w = self._boxes(tile)[1]
        counts = t * h * w
        if self.text:  # no cat: FlexAttention cannot capture what Inductor makes of one
            ends = self.text if text_lengths is None else text_lengths[:, None]
            left = ends - (tile - self.num_tiles) * self.rows
            words = torch.where(left < self.rows, left, self.rows)  # no clamp, as in _boxes
            words = torch.where(words > 0, words, 0)
            counts = torch.where(tile < self.num_tiles, counts, words)
        return counts.int()

    def valid(
        self, device: torch.device | str | None = None, text_lengths: Tensor | None = None
    ) -> Tensor:
        """Which rows in memory hold a token: bool ``[padded_tokens]``, with ``text_lengths``
        ``[B, padded_tokens]``."""
        index = self.layout(device).flatten()
        if text_lengths is None:
            return index > -1
        end = math.prod(self.video) + text_lengths.long()
        return (index > -1) & (index < end[:, None])

    def to_tiles(self, x: Tensor) -> Tensor:
        """Raster ``[..., tokens, C]`` to tile-major ``[..., padded_tokens, C]``, zeros in padding.

        Its gradient drops whatever gradient arrives in padding.

        Raises:
            ValueError: the second to last dimension is not ``tokens``.
        """
        self.check_raster(x)
        layout = self.layout(x.device).flatten()
        return permute(x, layout, self._inverse(layout))

    def from_tiles(self, x: Tensor) -> Tensor:
        """Tile-major ``[..., padded_tokens, C]`` to raster ``[..., tokens, C]``: undoes to_tiles.

        Raises:
            ValueError: the second to last dimension is not ``padded_tokens``.
        """
        self.check_tiled(x)
        layout = self.layout(x.device).flatten()
        return permute(x, self._inverse(layout), layout)

    def zero_padding(self, x: Tensor, text_lengths: Tensor | None = None) -> Tensor:
        """Tile-major ``x`` with zeros in padding, whatever stood there (NaN, too).

        The gradient is zero in padding as well. Without padding this is ``x`` itself. With
        ``text_lengths`` the first dimension of x is the batch.
        """
        return self.zero_each([x], text_lengths)[0]

    def zero_each(self, xs: Sequence[Tensor], text_lengths: Tensor | None = None) -> list[Tensor]:
        """:meth:`zero_padding` of several tensors, of as many dimensions each: what tells padding
        is made once for all."""
        if text_lengths is None and not self.has_padding:
            return list(xs)
        valid = self.valid(xs[0].device, text_lengths)[..., None]
        if text_lengths is not None:  # one dimension of x for each of its batch, then all others
            valid = valid.view(len(valid), *(1,) * (xs[0].dim() - 3), -1, 1)
        return [torch.where(valid, x, 0) for x in xs]

    def spread(self, x: Tensor) -> Tensor:
        """A row for each tile, ``[..., key_tiles, C]``, to all of its tokens: tile-major ``[...,
        padded_tokens, C]``, zeros in padding."""
        rows = x.unsqueeze(-2)
        if self.has_padding:
            rows = torch.where(self.valid(x.device).view(self.key_tiles, self.rows, 1), rows, 0)
        else:
            rows = rows.expand(*x.shape[:-1], self.rows, -1)
        return rows.flatten(-3, -2)

    def check_tiled(self, x: Tensor, name: str = "x") -> None:
        """Raise ValueError, with the numbers and the fix, unless ``x`` can be tile-major."""
        self._check_rows(x, name, self.padded_tokens, "tile-major", self.tokens, "to_tiles")

    def check_raster(self, x: Tensor, name: str = "x") -> None:
        """Raise ValueError, with the numbers and the fix, unless ``x`` can be in raster order."""
        self._check_rows(x, name, self.tokens, "raster", self.padded_tokens, "from_tiles")

    def _check_rows(
        self, x: Tensor, name: str, due: int, order: str, other: int, verb: str
    ) -> None:
        if x.dim() < 2:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; [..., tokens, channels] is due")
        if x.shape[-2] != due:
            fix = (
                f"call tiling.{verb}({name}) first"
                if x.shape[-2] == other
                else "make the tiling for the video that it holds"
            )
            text = f", text={self.text}" if self.text else ""
            raise ValueError(
                f"{name} has {x.shape[-2]} rows; VideoTiling(video={self.video}, tile={self.tile}"
                f"{text}) has {due} in {order} order: {fix}"
            )

    def _inverse(self, layout: Tensor) -> Tensor:
        """The row in memory of every token: int64 ``[tokens]``, from the flattened layout."""
        rows = torch.arange(self.padded_tokens, device=layout.device)
        slot = torch.where(layout > -1, layout, self.tokens)  # padding writes past the end
        return rows.new_zeros(self.tokens + 1).scatter_(0, slot, rows)[: self.tokens]
