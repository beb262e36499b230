"""Windows of a tile: the parts in which BSA prunes queries, each with a center of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from flexsparse.tiling import VideoTiling

FitWindow = tuple[int, int, int] | Literal["fit"] | None  # what fit_window takes


class Tables(NamedTuple):
    """Where the tokens of every window are: int64, per tile, W windows of V tokens."""

    rows: Tensor  # [n, W, V], the token's row of the tile, -1 where a ragged window has none
    center: Tensor  # [n, W], which of the V is the center
    quota: Tensor  # [n, W], how many of the V stay
    place: Tensor  # [n, tiling.rows], window * V + token of every row of the tile, -1 in padding


@dataclass(frozen=True)
class Windows:
    """Each tile of ``tiling`` cut into windows, of whose queries the fraction ``keep`` stays.

    Of a window with v valid tokens ``ceil(keep * v)`` stay; its center is the token at
    ``size // 2`` of its valid extent along each axis. Those that stay take the window's own
    ``per_window`` slots, in ascending order; slots that a ragged window cannot fill are holes.

    Args:
        tiling: the shape.
        keep: fraction in (0, 1].
        window: tokens along (T, H, W), a divisor of the tile's; None is the whole tile.

    Raises:
        ValueError: keep out of range, or a window that does not divide the tile.

    >>> windows = Windows(VideoTiling((8, 8, 8)), keep=0.5, window=(2, 2, 2))
    >>> windows.num_windows, windows.per_window, windows.kept_rows
    (8, 4, 32)
    """

    tiling: VideoTiling
    keep: float
    window: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.keep, (int, float)) and 0 < self.keep <= 1):
            raise ValueError(f"keep={self.keep!r} must be in (0, 1], the fraction that stays")
        tile = self.tiling.tile
        given = self.window
        window = tile if given is None else tuple(given) if isinstance(given, Sequence) else ()
        fits = len(window) == 3 and all(type(w) is int and w > 0 for w in window)
        if not fits or any(t % w for t, w in zip(tile, window)):
            raise ValueError(
                f"window={self.window!r} does not divide the tile {tile} of this tiling: give "
                "divisors of its sides, or None for the whole tile"
            )
        object.__setattr__(self, "window", window)

    @property
    def size(self) -> tuple[int, int, int]:
        """Tokens of a window along (T, H, W)."""
        assert self.window is not None
        return self.window

    @property
    def volume(self) -> int:
        return math.prod(self.size)

    @property
    def num_windows(self) -> int:
        return math.prod(self.tiling.tile) // self.volume

    @property
    def per_window(self) -> int:
        """Slots of a window: what stays of a whole one."""
        return math.ceil(round(self.keep * self.volume, 9))

    @property
    def kept_rows(self) -> int:
        """Rows in memory for the queries of a tile that stay, a multiple of 16."""
        return -(-self.num_windows * self.per_window // 16) * 16

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is pruned, and queries stay where they are."""
        return self.keep == 1

    @property
    def has_holes(self) -> bool:
        """Whether some tile leaves some of its ``kept_rows`` unused."""
        unused = self.num_windows * self.per_window < self.kept_rows
        return self.tiling.is_ragged or unused

    def tables(self, device: torch.device | str | None = None) -> Tables:
        """Rows, center and quota of every window: pointwise integer work on tile numbers."""
        grid = [t // w for t, w in zip(self.tiling.tile, self.size)]
        window = _split(torch.arange(self.num_windows, device=device)[:, None], grid)
        token = _split(torch.arange(self.volume, device=device), self.size)
        _, sizes = self.tiling.boxes(device)
        sides = [x[:, None, None] for x in sizes]  # [n, 1, 1]
        first = [i * s for i, s in zip(window, self.size)]  # [W, 1]
        extent = [(n - f).clamp(0, w) for n, f, w in zip(sides, first, self.size)]  # [n, W, 1]
        inside = [x < e for x, e in zip(token, extent)]  # [n, W, V]
        rows = _join([f + x for f, x in zip(first, token)], sides)
        center = _join([e >> 1 for e in extent], self.size)  # Inductor trips over // 2 here
        quota = self.quota(extent[0] * extent[1] * extent[2])
        rows = torch.where(inside[0] & inside[1] & inside[2], rows, -1)
        return Tables(rows, center.squeeze(-1), quota.squeeze(-1), self._places(sizes))

    def quota(self, tokens: Tensor) -> Tensor:
        """How many of a window's tokens stay: int64, as ``tokens``."""
        # 0.07 * 100 is above 7 in fp64. No division here: CUDA multiplies by 1 / b instead, and
        # 15e9 * 1e-9 is above 15.
        return (self.keep * tokens.double() - 5e-10).ceil().long()

    def _places(self, sizes: Sequence[Tensor]) -> Tensor:
        sides = [x[:, None] for x in sizes]
        row = torch.arange(self.tiling.rows, device=sizes[0].device)
        at = _split(row, sides)
        grid = [t // w for t, w in zip(self.tiling.tile, self.size)]
        window = _join([x // w for x, w in zip(at, self.size)], grid)
        token = _join([x % w for x, w in zip(at, self.size)], self.size)
        valid = row < sides[0] * sides[1] * sides[2]
        return torch.where(valid, window * self.volume + token, -1)


def check_window(window: FitWindow, keep: float) -> None:
    """Raise ValueError unless some tile can be cut into such windows, keeping so much."""
    Windows(VideoTiling((1, 1, 1)), keep)
    if window is None or window == "fit":
        return
    sides = tuple(window) if isinstance(window, Sequence) else ()
    if len(sides) != 3 or not all(type(w) is int and w > 0 for w in sides):
        raise ValueError(
            f"window={window!r} must be three positive ints (frames, height, width), None for the "
            'whole tile, or "fit"'
        )


def fit_window(window: FitWindow, tiling: VideoTiling) -> tuple[int, int, int] | None:
    """The window for videos of any size: along an axis where one tile spans the video, and the
    window does not divide it, the whole of it. "fit" is a window for any tile: 2 along its even
    sides, the whole of the odd ones.

    >>> fit_window((2, 2, 2), VideoTiling((1, 7, 8)))
    (1, 2, 2)
    >>> fit_window("fit", VideoTiling((21, 30, 52), tile=(3, 5, 4)))
    (3, 5, 2)
    """
    if window == "fit":
        t, h, w = (side if side % 2 else 2 for side in tiling.tile)
        return t, h, w
    if window is None or len(window) != 3:
        return window  # Windows says what is wrong with it
    t, h, w = (
        size if size == side and size % part else part
        for size, side, part in zip(tiling.tile, tiling.video, window, strict=True)
    )
    return t, h, w


def _split(index: Tensor, sides: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor]:
    return index // (sides[1] * sides[2]), index // sides[2] % sides[1], index % sides[2]


def _join(at: Sequence[Tensor], sides: Sequence[Any]) -> Tensor:
    return (at[0] * sides[1] + at[1]) * sides[2] + at[2]
