"""What the self-check runs on: shapes, dtypes and rules as values, and their tensors."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from flexsparse.choice.places import FirstFrames, Neighbourhood
from flexsparse.choice.rules import Mass, Rule, Threshold, TopK
from flexsparse.choice.union import Union, Unites
from flexsparse.tiling import VideoTiling


class Shape(NamedTuple):
    """A video in tiles, and the windows in which BSA prunes it."""

    name: str
    video: tuple[int, int, int]
    tile: tuple[int, int, int]
    window: tuple[int, int, int]


SHAPES = (
    Shape("full64", (8, 8, 12), (4, 4, 4), (2, 2, 2)),
    Shape("padded64", (6, 10, 12), (3, 5, 4), (3, 5, 2)),
    Shape("ragged64", (9, 9, 10), (4, 4, 4), (2, 2, 2)),  # 27 tiles: query blocks of 2 leave one
    Shape("full128", (4, 8, 24), (4, 4, 8), (2, 2, 2)),
    Shape("ragged32", (5, 6, 7), (2, 4, 4), (2, 2, 2)),
)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
_DTYPES = {BF16: "bf16", FP16: "fp16", FP32: "fp32"}
DIMS = 64, 80, 96, 128


@dataclass(frozen=True)
class Case:
    """One problem: ``logits`` multiplies queries, and ``rule`` None is for what takes none.

    >>> print(Case("full64", 128, torch.bfloat16, TopK(3), query_tiles=2))
    full64, dim 128, bf16, TopK(k=3), 2 query tiles
    """

    shape: str
    dim: int
    dtype: torch.dtype
    rule: Unites | Literal["all tiles"] | None = None
    logits: int = 1
    query_tiles: int = 1

    @property
    def sizes(self) -> Shape:
        return next(s for s in SHAPES if s.name == self.shape)

    @property
    def tiling(self) -> VideoTiling:
        return VideoTiling(self.sizes.video, self.sizes.tile)

    @property
    def admitted(self) -> Unites:
        if self.rule is None:
            raise ValueError(f"{self} has no rule")
        return TopK(self.tiling.num_tiles) if self.rule == "all tiles" else self.rule

    def __str__(self) -> str:
        parts = [self.shape, f"dim {self.dim}", _DTYPES[self.dtype]]
        parts += [_text(self.rule)] if self.rule else []
        parts += [f"logits x{self.logits}"] if self.logits > 1 else []
        parts += [f"{self.query_tiles} query tiles"] if self.query_tiles > 1 else []
        return ", ".join(parts)


def _text(rule: Unites | str) -> str:
    if isinstance(rule, Union):
        return " | ".join(map(_text, rule.parts))
    if isinstance(rule, str) or not isinstance(rule, Rule):
        return str(rule)
    own = rule.__dict__.keys() & {"k", "m"}  # without the bounds that all rules have
    return f"{type(rule).__name__}({', '.join(f'{x}={getattr(rule, x)}' for x in own)})"


def draw(case: Case, device: str, count: int) -> list[Tensor]:
    """Raster tensors ``[2, 2, tokens, dim]``, the first times ``case.logits``; always the same.

    They are drawn on the CPU, so that every device sees the same numbers.
    """
    generator = torch.Generator().manual_seed(0)
    shape = 2, 2, case.tiling.tokens, case.dim
    drawn = [torch.randn(shape, generator=generator) for _ in range(count)]
    drawn[0] *= case.logits
    return [x.to(device, case.dtype) for x in drawn]


# Each value of each axis at least once, and the pairs that have gone wrong elsewhere: every new
# combination but of logits costs a GPU a compilation.
VSA_CASES = (
    Case("full64", 128, BF16, TopK(3)),
    Case("padded64", 64, FP16, Threshold(2)),
    Case("ragged64", 128, BF16, Threshold(2)),
    Case("full128", 80, BF16, TopK(1)),
    Case("ragged32", 96, FP16, "all tiles"),
    Case("padded64", 128, BF16, TopK(3), 64),
    Case("ragged64", 64, FP32, TopK(3)),
    Case("full64", 64, FP32, Threshold(2), 64),
    Case("full64", 64, BF16, TopK(3), 1, 2),
    Case("ragged64", 96, BF16, Threshold(2), 1, 2),
    Case("padded64", 128, FP16, TopK(1), 64, 2),
    Case("full128", 128, BF16, "all tiles"),
    Case("ragged64", 128, BF16, TopK(1) | Neighbourhood((1, 3, 1))),
    Case("full64", 64, FP16, Threshold(2) | FirstFrames(), 1, 2),
)
BSA_CASES = (
    Case("full64", 128, BF16, TopK(3)),
    Case("padded64", 64, FP16, Threshold(2)),
    Case("ragged64", 80, FP32, Mass(0.8)),
    Case("full128", 96, BF16, TopK(1), 64),
    Case("ragged64", 128, BF16, TopK(3), 1, 2),
    Case("full64", 128, BF16, Threshold(2), 1, 4),  # 32 kept rows each
)
GATED_CASES = (
    Case("full64", 64, BF16, TopK(3), 1, 2),
    Case("ragged64", 128, BF16, TopK(3)),
)
DENSE_CASES = (
    Case("full64", 128, BF16),
    Case("padded64", 64, FP16, logits=64),
    Case("ragged64", 80, FP32),
    Case("ragged32", 96, BF16),
)
ROW_CASES = (  # for kernels that move or average rows
    Case("full64", 128, BF16),
    Case("padded64", 64, FP32),
    Case("ragged64", 80, FP16),
    Case("ragged32", 96, FP32),
)


def full_cases(*rules: Unites | Literal["all tiles"]) -> tuple[Case, ...]:
    """Every shape, head dim, dtype and logits with the first rule, and every rule at two dims."""
    names, blocks = [s.name for s in SHAPES], (1, 2)
    first = product(names, DIMS, _DTYPES, rules[:1], (1, 64), blocks)
    second = product(names, (64, 128), (BF16, FP32), rules[1:], (1,), blocks)
    return tuple(Case(*sizes) for sizes in (*first, *second))


def full_plain_cases() -> tuple[Case, ...]:
    """Every shape, head dim, dtype and logits, for what takes no rule."""
    names = [s.name for s in SHAPES]
    return tuple(Case(*sizes) for sizes in product(names, DIMS, _DTYPES, (None,), (1, 64)))
