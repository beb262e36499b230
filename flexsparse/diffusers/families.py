"""Which models are known, and how: each file beside this one registers its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from flexsparse.diffusers.call import Grid, Packed, Processor


def of_a_thousand(timestep: Tensor) -> Tensor:
    """The noise level of a timestep that goes from 1,000 (noise) to 0, as most models'."""
    return timestep.double() / 1000


@dataclass(frozen=True)
class Family:
    """How to make the self-attention of a class of models sparse.

    Args:
        name: the model's class, ``type(model).__name__``.
        grid: the tokens along (T, H, W) of a call: called as the model is, with the model first.
            :class:`~flexsparse.diffusers.call.Packed` where they have places of their own in it.
        layers: its self-attention modules over the video, by name. Each has ``heads``, ``to_q``,
            ``processor`` and ``set_processor``, as diffusers' own attention modules do.
        processor: made from the shared Call; takes the place of each layer's processor. Where it
            depends on that one, of which parameters it reads, give one for each class that is
            known: a layer with any other, which may compute something else, is refused.
        noise: noise levels, 0 for data and 1 for noise, from the call's timesteps.
        timestep: the argument of the call that has them.
        video: that which has the noisy video, or a list of it.
        output: the number of the video among what a layer returns, where that is a tuple.
        query: what the layers call ``to_q``.
        heads: what they call ``heads``.
    """

    name: str
    grid: Callable[..., Grid | Packed]
    layers: Callable[[nn.Module], Iterator[tuple[str, Any]]]
    processor: type[Processor] | Mapping[type, type[Processor]]
    noise: Callable[[Tensor], Tensor] = of_a_thousand
    timestep: str = "timestep"
    video: str = "hidden_states"
    output: int = 0
    query: str = "to_q"
    heads: str = "heads"

    def query_of(self, attn: Any) -> Any:
        """The projection of a layer's queries."""
        return getattr(attn, self.query)

    def noise_of(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The noise levels of a call; ValueError for one without timesteps."""
        given = inspect.signature(type(model).forward).bind(model, *args, **kwargs).arguments
        if not isinstance(found := given.get(self.timestep), Tensor):
            raise ValueError(
                f"{self.name} was called with {self.timestep}={found!r}, a tensor of which says "
                f"how dense its attention is to be: give one, or a single method to sparsify"
            )
        return self.noise(found)

    def of(self, model: nn.Module) -> Family:
        """The family of one model of the class, where they differ."""
        return self

    def processor_for(self, layer: str, replaced: Any) -> type[Processor]:
        """What takes the place of a layer's processor; ValueError for one that is not known."""
        if not isinstance(self.processor, Mapping):
            return self.processor
        if (found := self.processor.get(type(replaced))) is None:
            known = " or ".join(kind.__name__ for kind in self.processor)
            raise ValueError(
                f"{layer} has a {type(replaced).__name__}, and what that computes is not known: "
                f"set a {known} before sparsify"
            )
        return found


_FAMILIES: dict[str, Family] = {}
_REFUSED: dict[str, str] = {}


def register(family: Family) -> Family:
    """Make a model known to :func:`flexsparse.diffusers.sparsify`."""
    _FAMILIES[family.name] = family
    return family


def refuse(name: str, reason: str) -> None:
    """Make known why a class of models cannot be sparsified: a sentence's end, after a colon."""
    _REFUSED[name] = reason


def family_of(model: nn.Module) -> Family:
    """The family of a model; ValueError where it is not known."""
    for kind in type(model).__mro__:
        if kind.__name__ in _FAMILIES:
            return _FAMILIES[kind.__name__].of(model)
        if kind.__name__ in _REFUSED:
            raise ValueError(f"{kind.__name__} cannot be sparsified: {_REFUSED[kind.__name__]}")
    name = type(model).__name__
    if hasattr(model, "transformer"):
        raise ValueError(f"{name} is a pipeline: give its model, sparsify(pipe.transformer, ...)")
    raise ValueError(
        f"{name} is not a model that can be sparsified; known are "
        f"{', '.join(sorted(_FAMILIES))}. To add it: flexsparse.diffusers.register(Family("
        f"{name!r}, grid, layers, processor)), as flexsparse/diffusers/wan.py does for Wan"
    )


@dataclass(frozen=True)
class LayersOf:
    """The modules ``model.<list>.<i>.<attention>`` of these ModuleLists."""

    lists: tuple[str, ...]
    attention: str

    def __call__(self, model: nn.Module) -> Iterator[tuple[str, Any]]:
        for name in self.lists:
            for i, _ in enumerate(model.get_submodule(name).children()):
                path = f"{name}.{i}.{self.attention}"
                yield path, model.get_submodule(path)


def layers_of(*lists: str, attention: str) -> LayersOf:
    """A family's ``layers``: a value, since it is pickled with the models that it is of."""
    return LayersOf(lists, attention)
