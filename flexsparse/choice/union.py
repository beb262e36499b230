"""``TopK(32) | Neighbourhood((3, 3, 3))``: what unites, before the video is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class Unites:
    """What ``|`` may stand between: rules, shares of a video's tiles, and places in it."""

    def __or__(self, other: Any) -> Any:
        return Union.of(self, other) if isinstance(other, Unites) else NotImplemented


@dataclass(frozen=True)
class Union(Unites):
    """A query tile attends to what any of the ``parts`` admits."""

    parts: tuple[Any, ...]

    @classmethod
    def of(cls, *some: Unites) -> Unites:
        """One of each part; the part itself where there is one alone."""
        parts = [x for one in some for x in (one.parts if isinstance(one, Union) else (one,))]
        parts = [x for i, x in enumerate(parts) if not any(x is y or x == y for y in parts[:i])]
        return parts[0] if len(parts) == 1 else cls(tuple(parts))

    def __str__(self) -> str:
        return " | ".join(map(str, self.parts))
