"""What is measured: settings (a video, heads, head dim) by methods, most telling first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from flexsparse import VideoTiling


class Setting(NamedTuple):
    """A video of tokens, how it is tiled, and the heads of its attention."""

    name: str
    video: tuple[int, int, int]
    tile: tuple[int, int, int]
    heads: int
    dim: int

    @property
    def tiling(self) -> VideoTiling:
        return VideoTiling(self.video, self.tile)

    @property
    def key(self) -> str:
        return f"{self.name}-{self.heads}x{self.dim}"


VIDEOS = {
    "61k": ((16, 48, 80), (4, 4, 4)),  # VSA's longest sweep; the paper does not give the grid
    "153k": ((40, 48, 80), (4, 4, 4)),  # BSA's longest, inferred from its token count
    "75k": ((21, 45, 80), (3, 5, 4)),  # Wan 720p, 81 frames
    "33k": ((21, 30, 52), (3, 5, 4)),  # Wan 480p, 81 frames
    "23k": ((16, 28, 52), (4, 4, 4)),  # Wan 448 x 832, 61 frames
}
TINY = {
    "full": ((8, 8, 12), (4, 4, 4)),
    "ragged": ((5, 9, 8), (3, 5, 4)),  # and tiles of 60 rows, padded to 64
}


@dataclass(frozen=True)
class Method:
    """A way to compute attention.

    Attributes:
        kind: a key of ``methods.KINDS``.
        sparsity: of all pairs of tokens, as asked for; a threshold admits about so many.
        query_tiles: adjacent query tiles that choose together.
    """

    kind: str
    sparsity: float = 0.0
    query_tiles: int = 1

    @property
    def name(self) -> str:
        if not self.sparsity:
            return self.kind
        return f"{self.kind} {self.sparsity:.1%} x{self.query_tiles}"


def is_baseline(method: Method) -> bool:
    """Whether it is others' and timed unchecked: dense attention, which the library's self-check
    has at small sizes, and kernels that choose by scores of their own."""
    return method.kind.startswith("dense") or method.kind == "fastvideo"


DENSE = [Method(f"dense_{name}") for name in ("cudnn", "flash", "flex", "fa3", "fa4")]
PEERS = [Method("flex_plain", 0.875), Method("fastvideo", 0.875)]
OURS = [  # those that we have aims for first
    Method("fine", 0.875, 2),
    Method("vsa", 0.875, 2),
    Method("bsa", 0.95, 4),
    Method("vsa_ungated", 0.875, 2),
    Method("fine", 0.875, 1),
    Method("vsa", 0.875, 1),
    Method("bsa", 0.95, 2),
    *[Method("vsa", 0.912, x) for x in (2, 1)],
    *[Method("bsa", 0.93, x) for x in (4, 2)],
    Method("bsa", 0.95, 1),
    Method("bsa_top", 0.95, 4),
]
REHEARSED = [
    Method("dense_math"),
    Method("flex_plain", 0.5),
    *[Method("fine", 0.5, x) for x in (2, 1)],
    Method("vsa", 0.5, 2),
    Method("vsa_ungated", 0.5, 1),
    Method("bsa", 0.75, 2),
    Method("bsa_top", 0.75, 1),
]


def settings(rehearse: bool = False) -> list[Setting]:
    """All settings in the order in which they are measured while time is left."""
    if rehearse:
        return [Setting(name, *video, heads=2, dim=16) for name, video in TINY.items()]
    wan = ("75k", "33k", "23k")
    return [
        *[Setting(name, *video, heads=12, dim=128) for name, video in VIDEOS.items()],
        *[Setting(name, *VIDEOS[name], heads=40, dim=128) for name in wan],
        *[Setting(name, *video, heads=12, dim=64) for name, video in VIDEOS.items()],
    ]


def methods(rehearse: bool = False) -> list[Method]:
    """Baselines first: the others' ratios are to the fastest dense one of the same run."""
    return REHEARSED if rehearse else [*DENSE, *OURS, *PEERS]
