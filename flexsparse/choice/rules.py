"""Rules by which a query tile admits key tiles, as values: scores in, tile map out.

A new rule is a frozen dataclass with an ``admits`` method; see Threshold. Where ``k`` may be a
tensor, that is for schedules: it can be filled with another value without compiling anything anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from flexsparse.choice.selection import (
    Selection,
    select_admitted,
    select_top_k,
    sort_keys,
    tile_map,
)
from flexsparse.choice.union import Unites

_UNIT = float(1 << 30)  # of the largest weight, as an integer


class Fused(NamedTuple):
    """A rule that ``kernels/select_tiles.py`` knows: "top", "threshold" or "mass"."""

    rule: str
    amount: float  # how many tiles, the normal quantile, the share of the weights
    tensor: Tensor | None = None  # in its place, fp64, 0-dim, on the device


@dataclass(frozen=True, kw_only=True)
class Rule(Unites):
    """What all rules share: bounds on the number of tiles that a query tile admits.

    Args:
        min_tiles: admitted in any case, best first.
        max_tiles: at most so many, best first; None for no bound. A low one keeps lists narrow.

    Raises:
        ValueError: bounds that are not ints with 1 <= min_tiles <= max_tiles.
    """

    min_tiles: int = 1
    max_tiles: int | None = None

    def __post_init__(self) -> None:
        most = self.min_tiles if self.max_tiles is None else self.max_tiles
        if not (type(self.min_tiles) is int and type(most) is int and 1 <= self.min_tiles <= most):
            raise ValueError(
                f"min_tiles={self.min_tiles!r}, max_tiles={self.max_tiles!r}: give ints with "
                "1 <= min_tiles <= max_tiles, or max_tiles=None"
            )

    def __call__(self, scores: Tensor) -> Tensor:
        """The tile map of fp32 scores ``[..., n]``, who attends to whom: bool ``[..., n]``."""
        tiles, counts = self.select(scores)
        listed = torch.arange(tiles.shape[-1], device=scores.device) < counts[..., None]
        n = scores.shape[-1]
        return tile_map(torch.where(listed, tiles, n), n + 1)[..., :n]

    def select(self, scores: Tensor) -> Selection:
        """The tile map as lists, ``[..., most]`` wide, with no value read from the device."""
        least, most = self.bounds(scores.shape[-1])
        return select_admitted(scores, self.admits(scores.detach()), least, most)

    def bounds(self, n: int, query_tiles: int = 1) -> tuple[int, int]:
        """The fewest and the most of ``n`` tiles that this rule can admit to a block of
        ``query_tiles`` that choose together."""
        most = n if self.max_tiles is None else min(_fixed(self.max_tiles), n)
        return min(_fixed(self.min_tiles), n), most

    def admits(self, scores: Tensor) -> Tensor:
        """bool ``[..., n]`` without regard to the bounds; no score outside beats one inside."""
        raise NotImplementedError

    def fused(self, n: int) -> Fused | None:
        """What a kernel needs to choose in the same way among n tiles, from pooled queries and keys
        and without their scores in memory; None where there is none, and :meth:`select` chooses."""
        return None


@dataclass(frozen=True)
class TopK(Rule):
    """The ``k`` tiles of largest score, ties to the lower index (VSA, arXiv 2505.13389).

    Args:
        k: at least 1. A tensor of one number is not checked but kept within the bounds, and lists
            are then ``max_tiles`` wide.

    >>> TopK(1)(torch.tensor([0.5, 2.0, -1.0]))
    tensor([False,  True, False])
    """

    k: int | Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.k, Tensor) and (type(self.k) is not int or self.k < 1):
            raise ValueError(f"k={self.k!r} must be an int of at least 1, tiles per query tile")
        _check_scalar(self.k)

    def select(self, scores: Tensor) -> Selection:
        least, most = self.bounds(scores.shape[-1])
        if isinstance(self.k, Tensor):
            none = torch.zeros_like(scores, dtype=torch.bool)
            return select_admitted(scores, none, self.k.clamp(least, most), most)
        tiles = select_top_k(scores, most)
        return Selection(tiles, torch.full_like(tiles[..., 0], most))

    def bounds(self, n: int, query_tiles: int = 1) -> tuple[int, int]:
        least, most = super().bounds(n)
        if isinstance(self.k, Tensor):
            return least, most
        count = min(most, max(least, _fixed(self.k)))
        return count, count

    def fused(self, n: int) -> Fused | None:
        if type(self) is not TopK:
            return None
        if isinstance(self.k, Tensor):
            return Fused("top", 0.0, self.k.double())
        return Fused("top", float(n))  # the bounds say how many


@dataclass(frozen=True)
class Threshold(Rule):
    """Tiles with a score of at least ``mean + std * U(1 - k / n)``, the statistical dynamic
    threshold of BSA (arXiv 2509.01085), U the standard normal quantile.

    About ``k`` tiles where scores are normal, fewer where a few stand out. Mean and (population)
    deviation are of the row, over all n key tiles. That form of the rule is a reading of a
    secondary source.

    Args:
        k: above 0, not necessarily whole; all are admitted where it is at least n. A tensor of one
            number is not checked.

    >>> Threshold(1)(torch.tensor([0.0, 0.1, 4.0, 0.2]))
    tensor([False, False,  True, False])
    """

    k: float | Tensor
    _text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "_text", "" if isinstance(self.k, Tensor) else repr(self.k))
        if not isinstance(self.k, Tensor) and not (isinstance(self.k, (int, float)) and self.k > 0):
            raise ValueError(
                f"k={self.k!r} must be above 0, the tiles that a row admits on average"
            )
        _check_scalar(self.k)

    def admits(self, scores: Tensor) -> Tensor:
        n = scores.shape[-1]
        # Of equal scores the fp64 mean is exactly their value, and all are admitted.
        wide = scores.double()
        mean = wide.mean(-1, keepdim=True)
        deviation = wide.var(-1, correction=0, keepdim=True).sqrt()
        if isinstance(self.k, Tensor):
            quantile = torch.special.ndtri(1 - self.k.double() / n)
            return (wide >= mean + deviation * quantile) | (self.k >= n)
        quantile = _normal_quantile(self._text, n)
        if quantile == -math.inf:
            return torch.ones_like(scores, dtype=torch.bool)
        return wide >= mean + deviation * quantile

    def fused(self, n: int) -> Fused | None:
        if type(self) is not Threshold:
            return None
        if isinstance(self.k, Tensor):
            quantile = torch.special.ndtri(1 - self.k.double() / n)
            return Fused("threshold", 0.0, torch.where(self.k >= n, -math.inf, quantile))
        quantile = _normal_quantile(self._text, n)
        return Fused("top", float(n)) if quantile == -math.inf else Fused("threshold", quantile)


@torch.compiler.assume_constant_result
def _normal_quantile(k: str, n: int) -> float:
    """U(1 - k/n). k is text, since torch.compile makes symbols of floats that change."""
    share = min(1 - float(k) / n, 1 - 2**-53)  # of 1 there is no quantile
    return NormalDist().inv_cdf(share) if float(k) < n else -math.inf


def _fixed(number: int) -> int:
    """The number itself. torch.compile makes symbols of ints that change, but none of a range, and
    what a list is wide is known at compile time: each number is a program of its own."""
    return len(range(number))


@torch.compiler.assume_constant_result
def _constant(text: str) -> float:
    """The number, for the same reason."""
    return float(text)


def _check_scalar(k: object) -> None:
    if isinstance(k, Tensor) and k.dim():
        raise ValueError(f"k is a tensor of shape {tuple(k.shape)}: give one number, 0-dim")


@dataclass(frozen=True)
class Mass(Rule):
    """The fewest tiles, best first, whose softmax weights reach ``m`` (BSA, arXiv 2509.01085, in
    the reading of a secondary source).

    Args:
        m: above 0; from 1 on it means all tiles, however small their weight.

    >>> Mass(0.9)(torch.tensor([0.0, 9.0, 9.0, 0.0]))
    tensor([False,  True,  True, False])
    """

    m: float
    _text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "_text", repr(self.m))
        if not (isinstance(self.m, (int, float)) and self.m > 0):
            raise ValueError(f"m={self.m!r} must be above 0, a share of the softmax's sum")

    def admits(self, scores: Tensor) -> Tensor:
        if self.m >= 1:
            return torch.ones_like(scores, dtype=torch.bool)
        order = sort_keys(scores).topk(scores.shape[-1], dim=-1).indices
        # Integers: the order in which they are added does not show.
        score = scores.float()
        top = score.masked_fill(score.isnan(), -math.inf).amax(-1, keepdim=True)
        weights = torch.where(score < top, (score - top).exp(), 1) * _UNIT
        weights = weights.long().gather(-1, order)
        goal = (weights.sum(-1, keepdim=True).double() * self.m).ceil().long()
        before = weights.cumsum(-1) - weights
        return torch.empty_like(before, dtype=torch.bool).scatter_(-1, order, before < goal)

    def fused(self, n: int) -> Fused | None:
        if type(self) is not Mass:
            return None
        return Fused("top", float(n)) if self.m >= 1 else Fused("mass", _constant(self._text))
