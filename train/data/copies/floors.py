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
        others: their own tile, and so many others, each the one that tells most beside those
            before it, as if tokens told of their copies alone; in one layer. Of one other that is
            the least loss of all, if neighbours are not alike.
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
    seen: dict[str | int, list[tuple[np.ndarray, np.ndarray]]] = {
        "patch": [(np.array([i]), np.array([i])) for i in range(len(ids))],
        "tile": [(tile, tile) for tile in tiles],
        "everything": [(np.arange(len(ids)), np.arange(len(ids)))],
    }
    if not copies.alike:  # then tokens of one content know nothing of any other
        seen["patch"] = seen["patch"][:1]
    found: dict[str | int, float] = dict.fromkeys([*seen, *others], 0.0)
    times = list(times)
    for t in times:
        ratio = (t / (1 - t)) ** 2  # the noise's variance, beside content of variance 1
        best = tell_most(place, tiling, max(others, default=0), ratio)
        for k in others:
            views = [np.concatenate([i, *(tiles[j] for j in js[:k])]) for i, js in zip(tiles, best)]
            seen[k] = list(zip(tiles, views))
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


def tell_most(place: Layout, tiling: VideoTiling, k: int, noise: float) -> list[list[int]]:
    """Of each tile up to k others, each the one with which least is left beside those before it,
    under noise of a variance, as if tokens told of their copies alone."""
    ids, tiles = place.ids.reshape(-1), tiles_of(tiling)
    counts = np.stack([np.bincount(ids[tile], minlength=ids.max() + 1) for tile in tiles])
    found = []
    for own, tile in enumerate(tiles):
        copies = counts[:, ids[tile]]  # of each token, by tile
        known, left, chosen = copies[own], set(range(len(tiles))) - {own}, []
        for _ in range(min(k, len(left))):
            others = sorted(left)
            variance = (1 / (1 + (known + copies[others]) / noise)).sum(1)
            chosen.append(others[variance.argmin()])
            known = known + copies[chosen[-1]]
            left.remove(chosen[-1])
        found.append(chosen)
    return found


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
