"""A schedule of sparsity, applied to a model step by step.

Three programs are compiled in all, however many values the schedule has: dense attention, sparse
attention with a number of tiles that is a tensor, and the model as it was configured.
"""

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from flexsparse import Threshold, TopK
from flexsparse.choice.places import OnGrid
from flexsparse.choice.rules import Rule
from flexsparse.choice.scaled import as_rule
from train.sparsity.schedules import Constant, Schedule


@dataclass(kw_only=True, slots=True)
class SparsityConfig:
    schedule: Schedule = field(default_factory=Constant)
    """Tiles that attention admits as training goes on; ends at those of the config."""
    break_even: float = -1.0
    """Sparsity up to which dense attention is used on the way, being faster; -1: measured."""

    def __post_init__(self) -> None:
        if self.break_even != -1 and not 0 <= self.break_even <= 1:
            raise ValueError(
                f"sparsity.break_even is {self.break_even}: give a sparsity of 0 to 1, or -1"
            )


class Annealing:
    """Sets, at each step, the rule of all layers whose attention has one: its attribute `kv_rule`.

    Args:
        model: has `tiling` and `top_k`, which is None where attention is dense. One without them
            stays as it is.
        schedule: what to admit at each step.
        steps: of the whole training.

    Attributes:
        n, target: tiles that there are, and that are admitted in the end.
        break_even: sparsity up to which the dense kernel is used before the target is reached.

    Raises:
        ValueError: a schedule for dense attention, or for a rule without a number of tiles.
    """

    def __init__(self, model: nn.Module, schedule: Schedule, steps: int) -> None:
        self._layers: list[Any] = [m for m in model.modules() if hasattr(m, "kv_rule")]
        self._rules = [layer.kv_rule for layer in self._layers]
        self._schedule, self._device = schedule, next(model.parameters()).device
        m: Any = model
        self.target: float | None = getattr(m, "top_k", None) if self._layers else None
        self.n, self._plan, self._at_n = 0, [], []
        by_noise = any(getattr(layer, "kv_rules", None) for layer in self._layers)
        if by_noise and not isinstance(schedule, Constant):
            raise ValueError(
                f"sparsity.schedule is {schedule}, but the density follows the noise level: train "
                f"with a single method first, and go on from its weights with ByNoise"
            )
        if self.target is not None and not by_noise:
            self.n = m.tiling.num_tiles
            self._at_n = [as_rule(rule, m.tiling) for rule in self._rules]
            most = max(_cap(rule, self.n) for rule in self._at_n)
            plan = (schedule.tiles(step, self.n, self.target) for step in range(steps))
            self._plan = [tiles if tiles is None else min(tiles, most) for tiles in plan]
        elif not isinstance(schedule, Constant):
            why = "the model has no top_k" if self._layers else "attention is dense"
            raise ValueError(f"sparsity.schedule is {schedule}, but {why}")
        if any(schedule.tiles(step, self.n, 1) not in (None, 1) for step in range(len(self._plan))):
            for rule in self._at_n:
                annealed(rule, torch.zeros(()), self.n)  # ValueError where there is nothing to vary
        self.break_even = 0.0

    @property
    def break_even(self) -> float:
        return self._break_even

    @break_even.setter
    def break_even(self, sparsity: float) -> None:
        self._break_even = sparsity
        between = [int(x) for x in map(self._sparse, self._plan) if x and x != self.target]
        self._tiles = torch.zeros((), dtype=torch.int32, device=self._device)
        width = max(between, default=0)
        self._moving = [annealed(rule, self._tiles, width) for rule in self._at_n if width]

    @property
    def needs_break_even(self) -> bool:
        """Whether there are steps at which either kernel would do."""
        return any(tiles not in (None, self.target) for tiles in self._plan)

    def tiles_at(self, step: int) -> float | None:
        """Tiles admitted at a step, the first being 1; None for dense attention."""
        if not self._plan:
            return self.target
        return self._sparse(self._plan[min(max(step, 1), len(self._plan)) - 1])

    def apply(self, step: int) -> float | None:
        """Make the model attend as it should at a step; returns `tiles_at(step)`."""
        tiles = self.tiles_at(step)
        if not self._plan:
            return tiles
        if tiles is None:
            rules = [None] * len(self._layers)
        elif tiles == self.target:
            rules = self._rules
        else:
            self._tiles.fill_(tiles)
            rules = self._moving
        for layer, rule in zip(self._layers, rules, strict=True):
            layer.kv_rule = rule
        return tiles

    def describe(self) -> list[str]:
        """What happens when, in lines for the log; none where sparsity never changes."""
        lines, step = [], 1
        if all(tiles == self.target for tiles in self._plan):
            return lines
        for kind, group in itertools.groupby(self._plan, self._kind):
            tiles = list(group)
            last = step + len(tiles) - 1
            lines.append(f"attention at steps {step:,} to {last:,}: {self._words(kind, tiles)}")
            step = last + 1
        if self._plan and self._plan[-1] != self.target:
            lines.append(
                f"training.steps of {len(self._plan):,} end before attention is at its target of "
                f"{self.target:g} tiles: {self._steps_to_target()}"
            )
        return lines

    def _sparse(self, tiles: float | None) -> float | None:
        """The same, or None where that is for the dense kernel."""
        if tiles is None or tiles == self.target:
            return tiles
        return None if 1 - tiles / self.n <= self.break_even else tiles

    def _kind(self, tiles: float | None) -> str:
        if tiles is None or tiles == self.target:
            return "dense" if tiles is None else "target"
        return "sparse" if self._sparse(tiles) else "break-even"

    def _words(self, kind: str, tiles: list[Any]) -> str:
        if kind == "dense":
            return kind
        span = f"{tiles[0]:g}" if tiles[0] == tiles[-1] else f"{tiles[0]:g} to {tiles[-1]:g}"
        words = f"{span} of {self.n} tiles, sparsity {1 - tiles[-1] / self.n:.1%}"
        if kind == "break-even":
            return (
                f"dense, where the schedule has {words}: up to {self.break_even:.1%} it is faster"
            )
        return words

    def _steps_to_target(self) -> str:
        assert self.target is not None
        for step in range(len(self._plan), 1_000_000):
            if self._schedule.tiles(step, self.n, self.target) == self.target:
                return f"that takes {step + 1:,}"
        return "the schedule does not reach it"


def annealed(rule: Rule, tiles: Tensor, width: int) -> Rule:
    """The rule with `tiles`, a tensor of one number, in place of its own, and at most `width`."""
    if isinstance(rule, TopK):
        most = width if rule.max_tiles is None else min(width, rule.max_tiles)
        return replace(rule, k=tiles, max_tiles=most)
    if isinstance(rule, Threshold):
        return replace(rule, k=tiles)
    if isinstance(rule, OnGrid) and rule.rules:
        return replace(rule, rules=tuple(annealed(part, tiles, width) for part in rule.rules))
    raise ValueError(
        f"{rule} has no number of tiles for sparsity.schedule to change: use Threshold or TopK, or "
        "a schedule that goes from dense attention straight to the target"
    )


def _cap(rule: Rule, n: int) -> int:
    """The most tiles of `n` that the rule admits, whatever its own number of them."""
    return n if rule.max_tiles is None else min(n, rule.max_tiles)
