"""What the layers of a model know of the call that they are in: the video's grid of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Variable
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from flexsparse.by_noise import ByNoise, band_of
from flexsparse.slots import BSA, VSA
from flexsparse.tiling import VideoTiling

Grid = tuple[int, int, int]


class Met(NamedTuple):
    """What the layers know of a call.

    Attributes:
        grid: tokens along (T, H, W).
        band: of its noise level, where that decides the density.
    """

    grid: Grid
    band: str | None


class Call:
    """The grid of the model's current call, and the tiling that follows from it.

    One call at a time: it is no model for several threads.

    Attributes:
        method: the slot that all layers have.
        met: set at the model's door by :meth:`enter`, and again where the backward comes in by it:
            activation checkpointing runs the layers once more.
        band: that of the layer that runs, set by :meth:`tiling`.
    """

    def __init__(
        self,
        method: VSA | BSA | ByNoise,
        grid_of: Callable[..., Grid],
        noise_of: Callable[..., Tensor],
        attentions: dict[str, Any],
    ) -> None:
        own = method.sparse if isinstance(method, ByNoise) else method
        self.method, self._grid_of, self._noise_of = method, grid_of, noise_of
        self._alone = replace(own, query_tiles=1)
        self._attentions = attentions
        self.met: Met | None = None
        self.band: str | None = None
        # of each call, by its rotary table, and as long as that lives
        self._calls: Any = WeakIdKeyDictionary()
        self._tiled: Any = WeakIdKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        """Pickled without what it remembers of calls."""
        return {**vars(self), "met": None, "_calls": None, "_tiled": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _calls=WeakIdKeyDictionary(), _tiled=WeakIdKeyDictionary())

    def enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of the model."""
        # torch.compile makes symbols of ints that change, but none of a range: tiles have static
        # sizes, so that each size of the video is a program of its own
        t, h, w = (len(range(size)) for size in self._grid_of(model, *args, **kwargs))
        band = None
        if isinstance(self.method, ByNoise):
            band = band_of(self.method, self._noise_of(model, args, kwargs))
        self.met = Met((t, h, w), band)
        for name, attn in self._attentions.items():  # of which a compiled program has guards
            check_processor(name, attn)

    def leave(self, model: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """A forward hook of the model, for calls that raise, too."""
        met, self.met = self.met, None
        if torch.compiler.is_compiling():
            return
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.requires_grad:
                x.register_hook(partial(self._enter_backward, met))

    def _enter_backward(self, met: Met | None, gradient: Tensor) -> None:
        """Of several calls in one backward the last comes first, and is through before the next."""
        self.met = met
        Variable._execution_engine.queue_callback(self._leave_backward)

    def _leave_backward(self) -> None:
        self.met = None

    def tiling(self, tokens: int, text: int = 0, rotary: Any = None) -> VideoTiling:
        """The tiling of a layer that has so many tokens of video, and of text beside them.

        Args:
            rotary: what the call made for all of its layers, if it did. Activation checkpointing
                runs a layer once more after the call, with the same tensors, and other calls may
                have come in between; the backward may have come in elsewhere than at the output.

        Raises:
            ValueError: the model was not called as a whole, or with tokens that are no grid.
        """
        met = self.met
        if rotary is not None and not torch.compiler.is_compiling():
            met = self._calls.get(rotary[0], met)
            if met is not None:
                self._calls[rotary[0]] = met
        if met is None:
            raise ValueError(
                "a layer of a sparsified model ran by itself, and the video's grid is not known: "
                "call the model, or restore(model) first (activation checkpointing, which does so, "
                "takes a loss of the model's output)"
            )
        grid, self.band = met
        if math.prod(grid) != tokens:
            raise ValueError(
                f"a layer has {tokens} tokens of video, but the call's grid {grid} has "
                f"{math.prod(grid)}: tokens beside the grid, or shards of it, cannot be tiled"
            )
        text = len(range(text))
        t, h, w, rows = map(int, self._tile_and_rows(grid, text).split())
        return VideoTiling(grid, (t, h, w), rows, text)

    def rotary(self, table: tuple[Tensor, Tensor], tiling: VideoTiling) -> tuple[Tensor, Tensor]:
        """The call's cosines and sines in tile-major order, made once for all of its layers.

        Args:
            table: ``[..., tokens of the video, C]``, or ``[1, tokens, 1, C]``, which gets
                ``[1, 1, rows, C]``. Text is not turned.
        """
        if torch.compiler.is_compiling():  # weak keys are nothing that it could trace
            return tile_rotary(table, tiling)
        key = table[0]
        made_for = tiling, torch.is_inference_mode_enabled()  # whose tensors no backward may save
        if self._tiled.get(key, (None,))[0] != made_for:
            self._tiled[key] = made_for, tile_rotary(table, tiling)
        return self._tiled[key][1]

    @torch.compiler.assume_constant_result
    def _tile_and_rows(self, grid: Grid, text: int) -> str:
        """As text, since of a constant's numbers torch.compile would want to guard each."""
        tiling = self._alone.tiling(grid, text)
        return " ".join(map(str, (*tiling.tile, tiling.rows)))


class Processor:
    """What the processors of all models share: attention through the layer's slot.

    It is an attention processor in diffusers' sense; a subclass knows how its model projects and
    rotates, and is called as that model's own processor is, with all of that one's arguments.
    """

    def __init__(self, call: Call) -> None:
        self.call = call

    def refuse(self, **given: Tensor | None) -> None:
        """ValueError for arguments of the dense processor that sparse attention has no use for."""
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"{name} {list(value.shape)} was given to a layer whose attention is sparse, "
                    f"which cannot obey it: call without it, or restore(model) first"
                )

    def attend(
        self,
        attn: Any,
        x: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        tiling: VideoTiling,
        text_lengths: Tensor | None = None,
    ) -> Tensor:
        """Tile-major rows to raster ones: x ``[B, padded_tokens, dim]``, q, k, v ``[B, H,
        padded_tokens, D]`` to ``[B, tokens, H * D]``."""
        if torch.is_autocast_enabled(q.device.type):  # norms leave q and k in fp32
            dtype = torch.get_autocast_dtype(q.device.type)
            q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        out = attn.slot(x, q, k, v, tiling, text_lengths, band=self.call.band)
        return tiling.from_tiles(out.transpose(1, 2).flatten(2, 3)).to(q.dtype)


def check_processor(name: str, attn: Any) -> None:
    """Raise ValueError if a layer of a sparse model has got another processor since."""
    if not isinstance(attn.processor, Processor):
        raise ValueError(
            f"{name} has lost its sparse attention to a {type(attn.processor).__name__}: "
            "restore(model) and sparsify it again, after what sets processors"
        )


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[B, L, H * D]`` to ``[B, H, L, D]``."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def tile_rotary(table: tuple[Tensor, Tensor], tiling: VideoTiling) -> tuple[Tensor, Tensor]:
    """As :meth:`Call.rotary`, made anew."""
    cos, sin = (x.transpose(1, 2) if x.ndim == 4 else x for x in table)
    cos, sin = (
        tiling.to_tiles(F.pad(x, (0, 0, 0, tiling.text), value=of_text))
        for x, of_text in ((cos, 1), (sin, 0))
    )
    return cos, sin
