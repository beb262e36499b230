"""Which tokens a tile holds, by arithmetic on its number: kernels need no tables of the tiling.

Every kernel that asks takes ``**grid_of(video, tile)`` and hands all six on by name; they are known
at compile time, so that divisions are cheap.
"""

from collections.abc import Sequence

import triton
import triton.language as tl


@triton.jit
def tile_sides(
    i_n,
    VIDEO_T: tl.constexpr, VIDEO_H: tl.constexpr, VIDEO_W: tl.constexpr,
    TILE_T: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
):  # fmt: skip
    """Tokens of tile i_n (a number, or a block of them) along T, H and W."""
    GRID_H: tl.constexpr = (VIDEO_H + TILE_H - 1) // TILE_H
    GRID_W: tl.constexpr = (VIDEO_W + TILE_W - 1) // TILE_W
    size_t = _side(i_n // (GRID_H * GRID_W), VIDEO_T, TILE_T)
    size_h = _side(i_n // GRID_W % GRID_H, VIDEO_H, TILE_H)
    size_w = _side(i_n % GRID_W, VIDEO_W, TILE_W)
    return size_t, size_h, size_w


@triton.jit
def _side(place, VIDEO: tl.constexpr, TILE: tl.constexpr):
    if VIDEO % TILE == 0:
        side = place * 0 + TILE  # a constant, to the compiler, too
    else:
        side = tl.minimum(VIDEO - place * TILE, TILE)
    return side


@triton.jit
def tile_tokens(
    i_n,
    VIDEO_T: tl.constexpr, VIDEO_H: tl.constexpr, VIDEO_W: tl.constexpr,
    TILE_T: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
):  # fmt: skip
    """How many tokens tile i_n holds; they stand in its first rows."""
    sides = tile_sides(i_n, VIDEO_T, VIDEO_H, VIDEO_W, TILE_T, TILE_H, TILE_W)
    return sides[0] * sides[1] * sides[2]


@triton.jit
def window_boxes(
    i_n, window,
    VIDEO_T: tl.constexpr, VIDEO_H: tl.constexpr, VIDEO_W: tl.constexpr,
    TILE_T: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
    SIZE_T: tl.constexpr, SIZE_H: tl.constexpr, SIZE_W: tl.constexpr,
):  # fmt: skip
    """Sides of tile i_n, first token in it of a window, tokens of that window, each along T, H, W.

    A ragged tile cuts windows short and may leave nothing of one: no tokens along some axis. So it
    is with numbers past the last window.
    """
    GRID_H: tl.constexpr = TILE_H // SIZE_H
    GRID_W: tl.constexpr = TILE_W // SIZE_W
    sides = tile_sides(i_n, VIDEO_T, VIDEO_H, VIDEO_W, TILE_T, TILE_H, TILE_W)
    first_t = window // (GRID_H * GRID_W) * SIZE_T
    first_h = window // GRID_W % GRID_H * SIZE_H
    first_w = window % GRID_W * SIZE_W
    extent_t = _extent(sides[0], first_t, VIDEO_T, TILE_T, SIZE_T)
    extent_h = _extent(sides[1], first_h, VIDEO_H, TILE_H, SIZE_H)
    extent_w = _extent(sides[2], first_w, VIDEO_W, TILE_W, SIZE_W)
    return sides, (first_t, first_h, first_w), (extent_t, extent_h, extent_w)


@triton.jit
def _extent(side, first, VIDEO: tl.constexpr, TILE: tl.constexpr, SIZE: tl.constexpr):
    if VIDEO % TILE == 0:
        extent = tl.where(first < TILE, SIZE, 0)
    else:
        extent = tl.minimum(tl.maximum(side - first, 0), SIZE)
    return extent


@triton.jit
def window_rows(
    sides, first, extent, token, SIZE_H: tl.constexpr, SIZE_W: tl.constexpr
):  # fmt: skip
    """The tile's row of a token of a window, counted as in a whole one; -1 where it has none."""
    t, h, w = token // (SIZE_H * SIZE_W), token // SIZE_W % SIZE_H, token % SIZE_W
    inside = (t < extent[0]) & (h < extent[1]) & (w < extent[2])
    row = ((first[0] + t) * sides[1] + first[1] + h) * sides[2] + first[2] + w
    return tl.where(inside, row, -1)


@triton.jit
def center_rows(sides, first, extent):
    """The tile's row of a window's center."""
    t, h, w = first[0] + extent[0] // 2, first[1] + extent[1] // 2, first[2] + extent[2] // 2
    return (t * sides[1] + h) * sides[2] + w


def grid_of(
    video: Sequence[int], tile: Sequence[int], window: Sequence[int] | None = None
) -> dict[str, int]:
    """The compile-time arguments of the functions above: six, with windows nine."""
    sizes = {"VIDEO": video, "TILE": tile} | ({} if window is None else {"SIZE": window})
    return {f"{name}_{a}": n for name, x in sizes.items() for a, n in zip("THW", x, strict=True)}
