"""Where a clip's content lies, and where it lies again: a number for each token.

Tokens of one number show the same content. What is recalled in language models by multi-query
associative recall (Arora et al., arXiv 2312.04927) is recalled here by denoising: a token is known
better, the more noisy copies of it are seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Grid = tuple[int, int, int]
Where = Literal["loop", "pan", "shuffle", "objects"]


@dataclass(frozen=True, kw_only=True)
class Copies:
    """What recurs in a clip, and where. Sizes are in tokens.

    Args:
        where: "loop": frames come again, `copies` times. "pan": a camera passes over a wall, by
            `speed` tokens a frame, turns and comes back. "shuffle": the clip is cells, each at
            `copies` random places, so that content alone tells where. "objects": such cells, at
            random places that do not overlap, before a background that does not recur.
        copies: how often what recurs is seen.
        cell: of "shuffle" and "objects".
        offset: by which a "shuffle" lies off the grid of tiles, around the clip's edges.
        speed: of "pan".
        share: of the cells of a "shuffle", or of the tokens of "objects", that recur. The rest is
            seen once: distractors, among which copies are to be found, beside those of others.
        alike: correlation length of the content: neighbours at a distance of d correlate by
            exp(-d / alike). 0: each token by itself.
        patch: (frames, height, width) in pixels of a token.
    """

    where: Where = "loop"
    copies: int = 4
    cell: Grid = (4, 4, 4)
    offset: Grid = (0, 0, 0)
    speed: int = 4
    share: float = 1.0
    alike: float = 0.0
    patch: Grid = (1, 4, 4)

    def __post_init__(self) -> None:
        if self.where not in get_args(Where):
            raise ValueError(f"where={self.where!r} must be one of {', '.join(get_args(Where))}")
        sizes = (self.copies, self.speed, *self.cell, *self.patch)
        if min(sizes) < 1 or not 0 < self.share <= 1 or not self.alike >= 0:
            raise ValueError(
                f"{self}: copies, cell, speed and patch are whole numbers from 1, share is above "
                f"0 and at most 1, alike at least 0"
            )


@dataclass(frozen=True)
class Layout:
    """One clip's.

    Attributes:
        ids: int64 ``[T, H, W]``, the content of each token.
        blocks: the content: so many blocks of a size. Within one neighbours may be alike; blocks
            are independent, and numbered one after the other.
    """

    ids: np.ndarray
    blocks: tuple[tuple[int, Grid], ...]


def layout(copies: Copies, grid: Grid, rng: np.random.Generator) -> Layout:
    """Draw where a clip's content lies.

    Raises:
        ValueError: frames or cells that do not come out even.
    """
    t, h, w = grid
    if copies.where == "loop":
        if t % copies.copies:
            raise ValueError(f"{t} frames are not {copies.copies} times the same: change copies")
        period = t // copies.copies
        once = np.arange(period * h * w).reshape(period, h, w)
        return Layout(np.tile(once, (copies.copies, 1, 1)), ((1, (period, h, w)),))
    if copies.where == "pan":
        way = np.abs((np.arange(t) + t // 2) % (2 * (t // 2) or 1) - t // 2) * copies.speed
        wide = w + int(way.max())
        columns = way[:, None] + np.arange(w)
        ids = np.arange(h)[:, None] * wide + columns[:, None]
        return Layout(ids, ((1, (1, h, wide)),))
    if copies.where == "shuffle":
        return _shuffle(copies, grid, rng)
    return _objects(copies, grid, rng)


def _shuffle(copies: Copies, grid: Grid, rng: np.random.Generator) -> Layout:
    cells = [size // side for size, side in zip(grid, copies.cell)]
    if any(size % side for size, side in zip(grid, copies.cell)):
        raise ValueError(f"cells {copies.cell} do not divide the {grid} tokens of a clip")
    every, volume = math.prod(cells), math.prod(copies.cell)
    groups = round(copies.share * every / copies.copies)
    if not groups:
        raise ValueError(
            f"of {every} cells none can be at {copies.copies} places: more cells, or fewer copies"
        )
    once = every - groups * copies.copies
    content = np.concatenate(
        [np.repeat(np.arange(groups), copies.copies), groups + np.arange(once)]
    )
    placed = rng.permutation(content).reshape(cells)
    within = np.arange(volume).reshape(copies.cell)
    ids = np.kron(placed * volume, np.ones(copies.cell, dtype=np.int64)) + np.tile(within, cells)
    return Layout(np.roll(ids, copies.offset, (0, 1, 2)), ((groups + once, copies.cell),))


def _objects(copies: Copies, grid: Grid, rng: np.random.Generator) -> Layout:
    every, volume = math.prod(grid), math.prod(copies.cell)
    groups = round(copies.share * every / volume / copies.copies)
    room = [size - side + 1 for size, side in zip(grid, copies.cell)]
    if groups < 1 or min(room) < 1:
        raise ValueError(
            f"objects of {copies.cell} tokens at {copies.copies} places are not "
            f"{copies.share:g} of a clip of {grid}: smaller objects, or a larger share"
        )
    ids = np.arange(every).reshape(grid)
    free = np.ones(grid, dtype=bool)
    for group in range(groups):
        content = every + group * volume + np.arange(volume).reshape(copies.cell)
        for _ in range(copies.copies):
            place = _free_place(free, copies, room, rng)
            ids[place], free[place] = content, False
    return Layout(ids, ((1, grid), (groups, copies.cell)))


def _free_place(
    free: np.ndarray, copies: Copies, room: list[int], rng: np.random.Generator
) -> tuple[slice, ...]:
    for corner in rng.permutation(math.prod(room)):
        start = np.unravel_index(corner, room)
        place = tuple(slice(a, a + side) for a, side in zip(start, copies.cell))
        if free[place].all():
            return place
    raise ValueError(
        f"objects of {copies.cell} tokens fill {copies.share:g} of a clip so that no place is left "
        f"for another: a smaller share"
    )
