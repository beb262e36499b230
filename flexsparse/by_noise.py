"""Density by noise level: a method for each band of them, and layers that are dense throughout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from flexsparse.slots import BSA, VSA, Dense
from flexsparse.tiling import VideoTiling

Method = Dense | VSA | BSA


@dataclass(frozen=True)
class ByNoise:
    """A slot that attends by one method at high noise levels and by another at lower ones.

    Layout and motion are settled at high noise, which those who make a model sparse without
    training leave dense, as Sparse VideoGen does (arXiv 2502.01776). A band reaches from its own
    noise level, 1 being noise and 0 data, up to the next one's. All sparse methods have the same
    module, with the same gates, and differ in the tiles that they admit alone. ``Dense()`` is that
    module with all tiles (and for BSA all queries): a model whose coarse gate is trained keeps its
    coarse stage.

    Args:
        methods: the method from each noise level on, 0 among them; a mapping, or pairs.
        dense_layers: layers that have all tiles at any noise level, counted from 0.

    Raises:
        ValueError: noise levels outside of [0, 1) or none at 0, methods that differ in more than
            what they admit, or none that is sparse.

    >>> slot = ByNoise({0.85: Dense(), 0.5: VSA(sparsity=0.8), 0: VSA(sparsity=0.9)})
    >>> [slot.band(torch.tensor([t])) for t in (1.0, 0.85, 0.84, 0.1)]
    ['0', '0', '1', '2']
    """

    methods: tuple[tuple[float, Method], ...]
    dense_layers: tuple[int, ...] = ()

    def __init__(
        self,
        methods: Mapping[float, Method] | Iterable[tuple[float, Method]],
        dense_layers: Iterable[int] = (),
    ) -> None:
        given: Any = methods.items() if isinstance(methods, Mapping) else methods
        pairs: list[tuple[float, Method]] = [(float(level), method) for level, method in given]
        ordered = tuple(sorted(pairs, key=lambda pair: -pair[0]))
        object.__setattr__(self, "methods", ordered)
        object.__setattr__(self, "dense_layers", tuple(sorted(set(dense_layers))))
        levels = [level for level, _ in ordered]
        if not levels or levels[-1] != 0 or not all(0 <= x < 1 for x in levels):
            raise ValueError(
                f"noise levels {levels} must be in [0, 1), where 1 is noise, and the least 0, for "
                f"all that is below the others: {{0.85: Dense(), 0: VSA()}}"
            )
        if len(set(levels)) < len(levels):
            raise ValueError(f"noise levels {levels}: give each one method")
        if any(type(i) is not int or i < 0 for i in self.dense_layers):
            raise ValueError(f"dense_layers {self.dense_layers} must be numbers of layers, from 0")
        for _, method in ordered:
            if not isinstance(method, Method):
                raise ValueError(f"{method!r} is no method: give VSA(...), BSA(...) or Dense()")
        if not (sparse := self.all_sparse):
            raise ValueError("no method is sparse: give VSA(...) or BSA(...) at some noise level")
        for other in sparse[1:]:
            if _but_rule(other) != _but_rule(sparse[0]):
                raise ValueError(
                    f"{sparse[0]} and {other} are of one model, and may differ in the tiles that "
                    f"they admit alone"
                )

    @property
    def all_sparse(self) -> list[VSA | BSA]:
        """The sparse methods, from noise to data."""
        return [method for _, method in self.methods if not isinstance(method, Dense)]

    @property
    def sparse(self) -> VSA | BSA:
        """That at the lowest noise, which says how tokens lie."""
        return self.all_sparse[-1]

    @property
    def levels(self) -> tuple[float, ...]:
        """The noise levels at which the method changes, from noise to data."""
        return tuple(level for level, _ in self.methods[:-1])

    def but(self, **changes: Any) -> ByNoise:
        """The same with all of its sparse methods changed."""
        changed = (
            (t, m if isinstance(m, Dense) else replace(m, **changes)) for t, m in self.methods
        )
        return ByNoise(changed, self.dense_layers)

    def band(self, noise: Tensor) -> str:
        """The name of the band of some videos' noise levels: ``[B]``, or with one for each token
        ``[B, ...]``, of which the highest counts. Reads them, which on a GPU waits for them.

        A name and no number, since torch.compile makes a program for each.

        Raises:
            ValueError: videos of different bands.
        """
        if len(self.methods) == 1:
            return "0"
        highest = noise.reshape(noise.shape[0] if noise.ndim else 1, -1).amax(1).tolist()
        found = [self._band(level) for level in highest]
        if len(set(found)) > 1:
            raise ValueError(
                f"videos at noise levels {', '.join(f'{x:.3g}' for x in highest)} want different "
                f"methods, whose bands begin at {[level for level, _ in self.methods]}: call the "
                f"model for each by itself"
            )
        return str(found[0])

    def _band(self, noise: float) -> int:
        last = len(self.methods) - 1
        return next((i for i, (level, _) in enumerate(self.methods) if noise >= level), last)

    def tiling(self, grid: tuple[int, int, int], text: int = 0) -> VideoTiling:
        return self.sparse.tiling(grid, text)

    def top_k_for(self, tiling: VideoTiling, layers: int | None = None) -> float:
        """The mean over noise levels that are spread evenly, of a model of so many layers. Where
        BSA prunes queries, all tiles for all queries are more tiles for those that stay."""
        rows = self.q_rows_for(tiling) or tiling.rows
        above, mean, every = 1.0, 0.0, tiling.num_tiles * tiling.rows / rows
        for level, method in self.methods:
            tiles = every if isinstance(method, Dense) else method.top_k_for(tiling)
            mean, above = mean + (above - level) * tiles, level
        return mean + len(self.dense_layers) / (layers or 1) * (every - mean)

    def q_rows_for(self, tiling: VideoTiling) -> int | None:
        return self.sparse.q_rows_for(tiling)

    def build(
        self, dim: int, num_heads: int, tiling: VideoTiling | None, head_dim: int | None = None
    ) -> nn.Module:
        module: Any = self.sparse.build(dim, num_heads, tiling, head_dim)
        module.kv_rules = {
            str(i): None if isinstance(method, Dense) else method.rule(tiling)
            for i, (_, method) in enumerate(self.methods)
        }
        return module

    def settle(self, layers: Sequence[Any]) -> None:
        """Give those of a model's modules, one of each layer, all tiles that are to be dense.

        Raises:
            ValueError: more than there are.
        """
        if self.dense_layers and self.dense_layers[-1] >= len(layers):
            raise ValueError(
                f"dense_layers {self.dense_layers}: the model has layers 0 to {len(layers) - 1}"
            )
        for i in self.dense_layers:
            layers[i].kv_rules = dict.fromkeys(layers[i].kv_rules)


def settle(slot: Any, layers: Sequence[Any], tiling: Any) -> float | None:
    """Let a model's modules be dense where its slot, of any kind, says so; returns the tiles that a
    query tile selects in them, on average."""
    if not isinstance(slot, ByNoise):
        return slot.top_k_for(tiling)
    slot.settle(layers)
    return slot.top_k_for(tiling, len(layers))


def band_of(slot: object, noise: Tensor) -> str | None:
    """The band of a call at some noise levels; None for a slot that has no bands."""
    if not isinstance(slot, ByNoise):
        return None
    return "0" if len(slot.methods) == 1 else _read_band(slot, noise)


# outside of compiled programs, since the level decides which of them runs
_read_band: Any = torch.compiler.disable(ByNoise.band, reason="the noise level is read")


def _but_rule(method: VSA | BSA) -> VSA | BSA:
    if isinstance(method, VSA):
        return replace(method, sparsity=VSA.sparsity, top_k=None)
    return replace(method, sparsity=BSA.sparsity, kv=None)
