"""A dense clip as it is made, and beside each layer and model call what sparse attention does."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flexsparse.diffusers.families import family_of
from flexsparse.diffusers.generate.compare.share import held_share
from flexsparse.torch_names import tree_leaves

DENSE = 0.0, 1.0, 1.0, 1.0  # of a layer that is dense: error, tiles, queries, weight held


@dataclass
class Step:
    """The calls of a model at one noise level, with guidance two.

    Attributes:
        level: 1 for noise, 0 for data.
        latent: the noisy video that the first call was given, on the CPU.
        output: sums of squares ``[2]`` of the output's difference and of the dense one.
        layers: by number, the same of each attention's output, and its shares of tiles, queries and
            weight, a row for each call.
    """

    level: float
    latent: Tensor
    output: Tensor
    layers: dict[int, tuple[Tensor, list[tuple[float, float, float]]]] = field(default_factory=dict)

    def row(self, layers: int) -> Tensor:
        """Relative error and shares of each layer, over all calls: ``[layers, 4]``."""
        return torch.tensor([self._cell(i) for i in range(layers)], dtype=torch.float64)

    def _cell(self, layer: int) -> tuple[float, ...]:
        if layer not in self.layers:
            return DENSE
        sums, shares = self.layers[layer]
        if not shares:  # dense at this noise level
            return relative(sums).item(), *DENSE[1:]
        return relative(sums).item(), *torch.tensor(shares, dtype=torch.float64).mean(0).tolist()


class Watch:
    """What is seen of a pipeline's run.

    Attributes:
        steps: in the order of the noise levels.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def enter(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of a model: another noise level is another step."""
        given = inspect.signature(type(model).forward).bind(model, *args, **kwargs).arguments
        family = family_of(model)
        level = float(family.noise_of(model, args, kwargs).max())
        if not self.steps or self.steps[-1].level != level:
            latent = tree_leaves(given[family.latent])[0].detach().cpu()
            self.steps.append(Step(level, latent, torch.zeros(2, dtype=torch.float64)))


class Twin:
    """A sparse model that is dense for a while: each layer, and then the model, is called once more
    as sparse as it is, on the same input."""

    def __init__(self, watch: Watch, model: Any, own: dict[str, Any]) -> None:
        self.watch, self.model, self.own = watch, model, own
        family = family_of(model)
        self.layers = dict(family.layers(model))
        self.sparse: dict[str, Any] = {}  # processors while the layers have their own
        self.again = False  # within a second call

    def enter(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of the model."""
        if self.again:
            return
        self.watch.enter(model, args, kwargs)
        self.sparse = {name: attn.processor for name, attn in self.layers.items()}
        self._set(self.own)

    def leave(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """A forward hook of the model."""
        if self.again:
            return
        self.restore()
        with self._once_more():
            found = model(*args, **kwargs)
        self.watch.steps[-1].output += squares(found, out)

    def layer(self, number: int, name: str, attn: Any, args: Any, kwargs: Any, out: Any) -> None:
        """A forward hook of a layer, but for its number and name. Of text beside the video nothing
        is compared, since what stands in its padding is anything."""
        sparse: Any = self.sparse.get(name)
        if self.again or sparse is self.own[name]:
            return
        shares: list[tuple[float, float, float]] = []

        def choose(slot: Any, given: Any, options: dict[str, Any], out: Tensor) -> None:
            shares.append(shares_of(slot, *given, **options))

        slots = [module for module in attn.modules() if hasattr(module, "choose")]
        hooks = [slot.register_forward_hook(choose, with_kwargs=True) for slot in slots]
        _set_processor(attn, sparse)
        try:
            with self._once_more():
                found = attn(*args, **kwargs)
        finally:
            _set_processor(attn, self.own[name])
            for hook in hooks:
                hook.remove()
        layers = self.watch.steps[-1].layers
        sums, rows = layers.get(number, (0, []))
        of_video = (tree_leaves(x)[sparse.video] for x in (found, out))
        layers[number] = sums + squares(*of_video), rows + shares

    def restore(self) -> None:
        self._set(self.sparse)
        self.sparse = {}

    def _set(self, processors: dict[str, Any]) -> None:
        for name, processor in processors.items():
            _set_processor(self.layers[name], processor)

    @contextmanager
    def _once_more(self) -> Iterator[None]:
        self.again = True
        try:
            yield
        finally:
            self.again = False


@contextmanager
def observed(models: list[Any], own: list[dict[str, Any]]) -> Iterator[Watch]:
    """Within it, sparse models are dense, and the watch sees what they would do by their method.

    Args:
        models: sparse, in eager mode.
        own: of each, the processors that it had before it was sparse, by layer.
    """
    watch = Watch()
    with ExitStack() as ends:
        for model, processors in zip(models, own):
            twin = Twin(watch, model, processors)
            ends.callback(twin.restore)  # where a call raised
            hooks = [model.register_forward_pre_hook(twin.enter, with_kwargs=True)]
            hooks += [model.register_forward_hook(twin.leave, with_kwargs=True)]
            for number, (name, attn) in enumerate(twin.layers.items()):
                layer = partial(twin.layer, number, name)
                hooks += [attn.register_forward_hook(layer, with_kwargs=True)]
            for hook in hooks:
                ends.callback(hook.remove)
        yield watch


@contextmanager
def latents_of(models: list[nn.Module]) -> Iterator[Watch]:
    """Within it, the watch sees noise levels and latents, and changes nothing."""
    watch = Watch()
    hooks = [model.register_forward_pre_hook(watch.enter, with_kwargs=True) for model in models]
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()


def shares_of(
    slot: Any,
    x: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tiling: Any,
    text_lengths: Tensor | None = None,
    **options: Any,
) -> tuple[float, float, float]:
    """What a slot was called with, in shares: of the key tiles that query tiles attend to, of the
    queries that stay, and of dense attention's weight that those tiles hold. `options` say of
    which noise level."""
    choice = slot.choose(q, k, tiling, **options)
    if choice is None:
        return DENSE[1:]
    tiles = choice.tile_map.sum() / choice.tile_map.numel()
    of_video = choice.kept[..., : tiling.video_rows]
    queries = of_video.sum() / (of_video[..., 0].numel() * tiling.of_video.tokens)
    held = held_share(q, k, tiling, choice.tile_map, text_lengths)
    return float(tiles), float(queries), float(held)


def _set_processor(attn: Any, processor: Any) -> None:
    if hasattr(attn, "set_processor"):
        attn.set_processor(processor)
    else:
        attn.processor = processor


def squares(found: Any, wanted: Any) -> Tensor:
    """Sums of squares of the difference, and of `wanted`: ``[2]``, fp64 on the CPU.

    Of what is more than a tensor the first is compared: of a model that makes sound beside the
    video, the video.
    """
    a, b = tree_leaves(found)[0], tree_leaves(wanted)[0]
    wide = torch.promote_types(b.dtype, torch.float32)
    parts = a.to(wide) - b.to(wide), b.to(wide)
    norms = [torch.linalg.vector_norm(x, dtype=torch.float64) for x in parts]
    return torch.stack(norms).square().cpu()


def relative(squares: Tensor) -> Tensor:
    """The relative error that sums of squares ``[2]`` make; 0 where there is no difference."""
    error, norm = squares.sqrt()
    return torch.where(error == 0, error, error / norm)
