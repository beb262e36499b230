"""The least loss that a model can have which sees so much of a clip, and which tiles hold copies.

Clip and noise are Gaussian, so the best guess of the content from what is seen is linear (Wiener's
filter), and its error is a matter of covariances: computed in fp64, not measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
import torch

from flexsparse import VideoTiling
from train.data.copies.clips import correlation
from train.data.copies.layouts import Copies, Layout


@dataclass(frozen=True)
class Floors:
    """Least losses of flow matching's velocity, as `train.flow.flow_loss` counts it.

    Attributes:
        patch: of a model whose tokens see themselves alone.
        tile: the tokens of their own tile.
        others: their own tile, and so many others, of those that hold most of its copies; in one
            layer, and no least loss where copies overlap.
        everything: the whole clip.
    """

    patch: float
    tile: float
    others: dict[int, float]
    everything: float


def floors(
    copies: Copies,
    place: Layout,
    tiling: VideoTiling,
    times: Iterable[float],
    others: Sequence[int] = (),
) -> Floors:
    """The mean over noise levels ``times`` in (0, 1), for one clip's layout.

    What is known of all clips counts as known: where copies lie, and how neighbours correlate.
    """
    ids = place.ids.reshape(-1)
    covariance = _Covariance(copies, place)
    tiles = tiles_of(tiling)
    best = {k: _with_most_copies(place, tiling, k) for k in others}
    seen = {
        "patch": [(np.array([i]), np.array([i])) for i in range(len(ids))],
        "tile": [(tile, tile) for tile in tiles],
        "everything": [(np.arange(len(ids)),) * 2],
    } | {
        k: [
            (tile, np.concatenate([tile, *(tiles[j] for j in chosen)]))
            for tile, chosen in zip(tiles, best[k])
        ]
        for k in others
    }
    if not copies.alike:  # then tokens of one content know nothing of any other
        seen["patch"] = seen["patch"][:1]
    found = dict.fromkeys(seen, 0.0)
    times = list(times)
    for t in times:
        ratio = (t / (1 - t)) ** 2  # the noise's variance, beside content of variance 1
        for name, groups in seen.items():
            left = sum(covariance.left(ids[own], ids[view], ratio) for own, view in groups)
            count = sum(len(own) for own, _ in groups)
            found[name] += left / count / t**2 / len(times)
    return Floors(found["patch"], found["tile"], {k: found[k] for k in others}, found["everything"])


def mean_floors(found: Sequence[Floors]) -> Floors:
    """Of several clips."""
    each = [(x.patch, x.tile, x.everything, *x.others.values()) for x in found]
    patch, tile, everything, *others = map(mean, zip(*each, strict=True))
    return Floors(patch, tile, dict(zip(found[0].others, others)), everything)


def tiles_of(tiling: VideoTiling) -> list[np.ndarray]:
    """The tokens of each tile, in raster order, by tile."""
    raster = torch.arange(tiling.tokens, dtype=torch.float64).view(1, 1, -1, 1) + 1
    rows = tiling.to_tiles(raster).view(tiling.num_tiles, tiling.rows).long().numpy() - 1
    return [tile[tile >= 0] for tile in rows]


def copies_in(place: Layout, tiling: VideoTiling) -> np.ndarray:
    """The share of each tile's tokens of which another tile holds a copy: fp64 [n, n]; 0 of
    itself."""
    ids, tiles = place.ids.reshape(-1), tiles_of(tiling)
    counts = np.stack([np.bincount(ids[tile], minlength=ids.max() + 1) for tile in tiles])
    found = counts @ (counts > 0).T / counts.sum(1, keepdims=True)
    np.fill_diagonal(found, 0)
    return found


def _with_most_copies(place: Layout, tiling: VideoTiling, k: int) -> np.ndarray:
    """Of each tile, the k others that hold most of its copies: [n, k]."""
    found = copies_in(place, tiling)
    np.fill_diagonal(found, -1)
    return np.argsort(-found, axis=1, kind="stable")[:, :k]


class _Covariance:
    """Of a clip's content."""

    def __init__(self, copies: Copies, place: Layout) -> None:
        self.alike = copies.alike
        sizes = [size for count, size in place.blocks for _ in range(count)]
        starts = np.cumsum([0, *(math.prod(size) for size in sizes)])
        self.block = np.repeat(np.arange(len(sizes)), np.diff(starts))
        self.place = np.concatenate(
            [np.stack(np.unravel_index(np.arange(math.prod(size)), size), 1) for size in sizes]
        )
        longest = max(max(size) for size in sizes)
        self.by_distance = correlation(longest, self.alike)[0]

    def between(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """[len(a), len(b)], fp64."""
        if not self.alike:
            return (a[:, None] == b).astype(np.float64)
        apart = np.abs(self.place[a][:, None] - self.place[b])
        return self.by_distance[apart].prod(-1) * (self.block[a][:, None] == self.block[b])

    def left(self, own: np.ndarray, seen: np.ndarray, noise: float) -> float:
        """The variance that is left of the content of `own`, summed, where `seen` is seen with
        noise of a variance; copies of one content are as one with less noise."""
        content, count = np.unique(seen, return_counts=True)
        if not self.alike:
            known = dict(zip(content, count))
            return sum(1 / (1 + known.get(i, 0) / noise) for i in own)
        wanted, times = np.unique(own, return_counts=True)
        across = self.between(wanted, content)
        noisy = self.between(content, content) + np.diag(noise / count)
        explained = np.einsum("ij,ji->i", across, np.linalg.solve(noisy, across.T))
        return float(((1 - explained) * times).sum())
