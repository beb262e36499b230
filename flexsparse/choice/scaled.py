"""Rules for videos of any size: so many tiles, or a share of however many there are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from flexsparse.checks import check_sparsity
from flexsparse.choice.places import on_grid
from flexsparse.choice.rules import Rule, Threshold, TopK
from flexsparse.choice.union import Union, Unites
from flexsparse.tiling import VideoTiling


@dataclass(frozen=True)
class Scaled(Unites):
    """TopK or Threshold, with a ``k`` that follows from the number of tiles n at each call.

    What the attention functions and modules take for ``top_k`` or ``kv`` may be one. Where a model
    meets several resolutions it says what is meant at each of them.

    Args:
        sparsity: ``1 - k/n`` wanted, in [0, 1): the nearest whole k is taken, at least 1. FastVideo
            rounds otherwise: see :func:`fastvideo_top_k`.
        top_k: in its place, a number of tiles; all of a video that has fewer.
        rule: what is made of k, ``TopK`` or ``Threshold``.

    Raises:
        ValueError: not one of the two, or out of range.

    >>> Scaled(sparsity=0.9).at(624).k, Scaled(top_k=64).at(624).k, Scaled(top_k=64).at(48).k
    (62, 64, 48)
    """

    sparsity: float | None = None
    top_k: int | None = None
    rule: type[TopK] | type[Threshold] = TopK
    _text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_text", str(self.sparsity))
        if (self.sparsity is None) == (self.top_k is None):
            raise ValueError(f"{self}: give either a sparsity or a top_k")
        if self.top_k is not None and (type(self.top_k) is not int or self.top_k < 1):
            raise ValueError(
                f"top_k={self.top_k!r} must be an int of at least 1, or give a sparsity"
            )
        number = isinstance(self.sparsity, (int, float)) and not isinstance(self.sparsity, bool)
        if self.sparsity is not None and not (number and 0 <= self.sparsity < 1):
            raise ValueError(
                f"sparsity={self.sparsity!r} must be in [0, 1): 0.875 keeps 1 tile in 8"
            )

    def at(self, n: int) -> Rule:
        """The rule for n tiles."""
        k = int(_share(self._text, n)) if self.top_k is None else min(self.top_k, n)
        return TopK(k) if self.rule is TopK else Threshold(k)


@torch.compiler.assume_constant_result
def _share(sparsity: str, n: int) -> str:
    """Tiles that stay. Numbers are text, since torch.compile makes symbols of those that change,
    and wants to guard those that it takes for constants."""
    return str(max(1, round(n * (1 - float(sparsity)))))


def fastvideo_top_k(sparsity: float, tiling: VideoTiling) -> int:
    """The ``top_k`` of FastVideo, from VSA's authors, at a sparsity that one of its models names.

    It takes the ceiling, and of tokens, without padding, over those of a tile; we round, and count
    tiles. Where all tiles are full the two differ by one tile at most; where some are ragged,
    FastVideo attends to fewer. A checkpoint of theirs does not hold its sparsity: its model card or
    training command (``VSA_sparsity``) has it. Theirs are tiles of 4x4x4.

    >>> tiling = VideoTiling((21, 30, 52))
    >>> fastvideo_top_k(0.9, tiling), Scaled(sparsity=0.9).at(tiling.num_tiles).k
    (52, 62)
    """
    check_sparsity(sparsity)
    return math.ceil((1 - sparsity) * (math.prod(tiling.video) / math.prod(tiling.tile)))


def as_rule(rule: int | Unites, tiling: VideoTiling | int, name: str = "top_k") -> Rule:
    """``rule`` itself, ``TopK(rule)`` for an int of 1 to n, or what a share, a place or a union is
    on the n tiles of a tiling, which may be n alone where no place is asked for.

    Raises:
        ValueError: an int out of range, or a rule with more ``min_tiles`` (TopK: ``k``) than tiles.
    """
    n = tiling if isinstance(tiling, int) else tiling.num_tiles
    if isinstance(rule, Scaled):
        return rule.at(n)
    if isinstance(rule, Unites) and not isinstance(rule, Rule):
        if isinstance(tiling, int):
            raise ValueError(f"{name}={rule} is of places in a video: give its tiling")
        parts = rule.parts if isinstance(rule, Union) else (rule,)
        chosen = [x for x in parts if isinstance(x, Rule | Scaled)]
        return on_grid(rule, tiling, tuple(as_rule(x, tiling, name) for x in chosen))
    if not isinstance(rule, Rule):
        if type(rule) is not int or not 1 <= rule <= n:
            raise ValueError(f"{name}={rule!r} must be an int in 1..{n}, the tiles, or a rule")
        return TopK(rule)
    asked = rule.k if isinstance(rule, TopK) and isinstance(rule.k, int) else 1
    least = max(rule.min_tiles, asked)
    if least > n:
        raise ValueError(f"{name}={rule} asks for {least} tiles of {n}: ask for fewer")
    return rule
