"""The clips themselves: Gaussian content of a known covariance, laid out so that some of it
recurs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from train.data.batch import Sample
from train.data.copies.layouts import Copies, Grid, Layout, layout
from train.data.order.buckets import Size


class RecurringClips:
    """`length` clips; each is a pure function of `first + index`.

    A clip is `dict(video=float32 [3, num_frames, height, width], caption="")`, of mean 0 and
    standard deviation 1, as a latent is: its values are no brightness.

    Raises:
        ValueError: sizes that patches do not divide, or a layout that does not come out even.
    """

    def __init__(
        self, copies: Copies, length: int = 4096, *, first: int = 0, size: Size = (16, 32, 48)
    ) -> None:
        if any(pixels % side for pixels, side in zip(size, copies.patch)):
            raise ValueError(f"patch {copies.patch} does not divide the clip's {size}")
        t, h, w = (pixels // side for pixels, side in zip(size, copies.patch))
        self.copies, self.length, self.first = copies, length, first
        self.grid: Grid = (t, h, w)
        self.buckets: Sequence[range] = [range(length)]
        self.layout(0)

    def __len__(self) -> int:
        return self.length

    def layout(self, index: int) -> Layout:
        """Where the content of a clip lies."""
        return layout(self.copies, self.grid, self._generator(index, 0))

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(f"clip {index} of {self.length}")
        rng = self._generator(index, 1)
        place, patch = self.layout(index), self.copies.patch
        width = 3 * math.prod(patch)
        content = [
            drawn(count, size, width, self.copies.alike, rng) for count, size in place.blocks
        ]
        tokens = np.concatenate(content)[place.ids]  # [T, H, W, width]
        return {"video": _unpatched(torch.from_numpy(tokens), patch), "caption": ""}

    def _generator(self, index: int, part: int) -> np.random.Generator:
        return np.random.default_rng((self.first + index, part))


def correlation(size: int, alike: float) -> np.ndarray:
    """Of the content of tokens in a row: ``exp(-distance / alike)``, [size, size], fp64."""
    apart = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    return np.exp(-apart / alike) if alike else np.eye(size)


def drawn(count: int, size: Grid, width: int, alike: float, rng: np.random.Generator) -> np.ndarray:
    """Content of blocks of a size: float32 [tokens of all, width]."""
    x = rng.standard_normal((count, *size, width), dtype=np.float32)
    for axis, side in enumerate(size, start=1):
        if alike and side > 1:
            root = np.linalg.cholesky(correlation(side, alike)).astype(np.float32)
            x = np.moveaxis(np.tensordot(root, x, (1, axis)), 0, axis)
    return x.reshape(-1, width)


def _unpatched(tokens: Tensor, patch: Grid) -> Tensor:
    """[T, H, W, 3 * patch] to [3, T, H, W] in pixels."""
    x = tokens.unflatten(-1, (3, *patch)).permute(3, 0, 4, 1, 5, 2, 6)
    return x.flatten(5, 6).flatten(3, 4).flatten(1, 2).contiguous()
