"""Tiles that are admitted for where they lie in the video, whatever the scores; unions with rules.

    TopK(32) | Neighbourhood((3, 3, 3)) | FirstFrames(1)

:func:`on_grid` makes a rule of it once the tiling is known. Which tiles lie where is arithmetic on
their numbers, so that the width of lists is known before anything is computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from flexsparse.choice.rules import Rule
from flexsparse.choice.selection import pack_bits
from flexsparse.choice.union import Union, Unites
from flexsparse.tiling import VideoTiling

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Neighbourhood(Unites):
    """Tiles at most ``window // 2`` away along each axis: sliding tile attention, cut at the edges.

    Args:
        window: odd numbers of tiles along (T, H, W); None along an axis means all of it.

    Raises:
        ValueError: a window that is not three odd ints of at least 1, or None.

    >>> Neighbourhood((1, None, 3)).admits((2, 1, 3)).int()[0]
    tensor([1, 1, 0, 0, 0, 0], dtype=torch.int32)
    """

    window: tuple[int | None, int | None, int | None]

    def __post_init__(self) -> None:
        sizes = tuple(self.window) if isinstance(self.window, (tuple, list)) else ()
        odd = all(x is None or (type(x) is int and x > 0 and x % 2) for x in sizes)
        if len(sizes) != 3 or not odd:
            raise ValueError(
                f"window={self.window!r} must be three odd numbers of tiles (frames, height, "
                "width), or None for all along an axis"
            )
        object.__setattr__(self, "window", sizes)

    def on(self, tiling: VideoTiling) -> Neighbourhood:
        return self

    def admits(self, grid: Grid, device: torch.device | str | None = None) -> Tensor:
        """bool ``[n, n]``, query tiles by key tiles."""
        near = torch.ones(1, 1, dtype=torch.bool, device=device)
        for q, k, size in zip(*_places(grid, device), self.window):
            if size is not None:
                near = near & ((q - k).abs() <= size // 2)
        return near.expand(math.prod(grid), math.prod(grid))

    def most(self, grid: Grid, query_tiles: int) -> int:
        """Tiles that a block of query tiles, neighbours along W but at its ends, has at most."""
        sizes = [min(x or n, n) for x, n in zip(self.window, grid)]
        rows = 1 if grid[2] % query_tiles == 0 else -(-(query_tiles - 1) // grid[2]) + 1
        wide = min(sizes[2] + query_tiles - 1, grid[2])
        return min(rows * math.prod(sizes[:2]) * wide, math.prod(grid))


@dataclass(frozen=True)
class FirstFrames(Unites):
    """Tiles that hold one of the first ``frames`` frames, of tokens, of the video.

    Raises:
        ValueError: frames that are not an int of at least 1.
    """

    frames: int = 1

    def __post_init__(self) -> None:
        if type(self.frames) is not int or self.frames < 1:
            raise ValueError(f"frames={self.frames!r} must be an int of at least 1")

    def on(self, tiling: VideoTiling) -> _FirstTiles:
        per_layer = tiling.grid[1] * tiling.grid[2]
        return _FirstTiles(min(-(-self.frames // tiling.tile[0]), tiling.grid[0]) * per_layer)


@dataclass(frozen=True)
class _FirstTiles:
    tiles: int

    def admits(self, grid: Grid, device: torch.device | str | None = None) -> Tensor:
        n = math.prod(grid)
        return (torch.arange(n, device=device) < self.tiles).expand(n, n)

    def most(self, grid: Grid, query_tiles: int) -> int:
        return self.tiles


def OwnTile() -> Neighbourhood:
    """The query tile itself."""
    return Neighbourhood((1, 1, 1))


@dataclass(frozen=True)
class OnGrid(Rule):
    """A union on a grid of tiles: what any of the ``rules`` admits, and the tiles of ``places``.

    Its scores do not say where tiles lie, so that :func:`flexsparse.choice.choose.choose_tiles`
    asks the rules one by one, and there is no ``admits``.
    """

    rules: tuple[Rule, ...]
    places: tuple[Any, ...]
    grid: Grid

    def bounds(self, n: int, query_tiles: int = 1) -> tuple[int, int]:
        each = [rule.bounds(n) for rule in self.rules]
        least = max([least for least, _ in each], default=1)
        most = sum(most for _, most in each)
        most += sum(place.most(self.grid, query_tiles) for place in self.places)
        return least, min(most, n)

    def always(self, query_tiles: int, device: torch.device) -> Tensor | None:
        """The bits of ``places``: int32 ``[ceil(n / query_tiles), ceil(n / 32)]``."""
        if not self.places:
            return None
        near = reduce(torch.logical_or, (place.admits(self.grid, device) for place in self.places))
        if query_tiles > 1:
            near = torch.nn.functional.pad(near, (0, 0, 0, -len(near) % query_tiles))
            near = near.unflatten(0, (-1, query_tiles)).any(1)
        return pack_bits(near)


def on_grid(asked: Unites, tiling: VideoTiling, rules: tuple[Rule, ...]) -> OnGrid:
    """The union of ``rules`` and of the places in ``asked``, on the grid of a tiling."""
    parts = asked.parts if isinstance(asked, Union) else (asked,)
    places = [x.on(tiling) for x in parts if isinstance(x, Neighbourhood | FirstFrames)]
    return OnGrid(rules, tuple(places), tiling.grid)


def _places(grid: Grid, device: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Where tiles lie along T, H and W: as columns for queries, as rows for keys."""
    tile = torch.arange(math.prod(grid), device=device)
    axes = [tile // (grid[1] * grid[2]), tile // grid[2] % grid[1], tile % grid[2]]
    return [x[:, None] for x in axes], axes
