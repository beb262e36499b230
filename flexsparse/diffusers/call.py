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
from torch.utils.weak import WeakIdKeyDictionary

from flexsparse.by_noise import ByNoise, band_of
from flexsparse.permute import gather_rows, permute
from flexsparse.slots import BSA, VSA
from flexsparse.tiling import VideoTiling
from flexsparse.torch_names import tree_leaves

Grid = tuple[int, int, int]
Table = Tensor | tuple[Tensor, Tensor]


class Packed(NamedTuple):
    """A grid whose tokens have places of their own in the sequence that a model's layers see.

    Attributes:
        grid: tokens along (T, H, W).
        rows: int64 ``[S]``, all places of the sequence in the order that a VideoTiling has: those
            of the video in raster order, then those of all else, which attends as text does.
        parts: the VideoTiling's, of what attends as text does.
    """

    grid: Grid
    rows: Tensor
    parts: tuple[int, ...] = ()


class Met(NamedTuple):
    """What the layers know of a call.

    Attributes:
        grid: tokens along (T, H, W).
        band: of its noise level, where that decides the density.
        packed: of a :class:`Packed` sequence; else None.
    """

    grid: Grid
    band: str | None
    packed: Packed | None


class Call:
    """The grid of the model's current call, and the tiling that follows from it.

    One call at a time: it is no model for several threads.

    Attributes:
        method: the slot that all layers have.
        met: set at the model's door by :meth:`enter`, and again where the backward comes in by it:
            activation checkpointing runs the layers once more. Where it comes in elsewhere, a
            layer's rotary table tells, if it is of one call.
        band: that of the layer that runs, set by :meth:`tiling`.
    """

    def __init__(
        self,
        method: VSA | BSA | ByNoise,
        grid_of: Callable[..., Grid | Packed],
        noise_of: Callable[..., Tensor],
        attentions: dict[str, Any],
    ) -> None:
        own = method.sparse if isinstance(method, ByNoise) else method
        self.method, self._grid_of, self._noise_of = method, grid_of, noise_of
        self._alone = replace(own, query_tiles=1)
        self._attentions = attentions
        self.met: Met | None = None
        self.band: str | None = None
        self._inside = False  # a call, and no backward
        # of each call, by its rotary table, and as long as that lives
        self._calls: Any = WeakIdKeyDictionary()
        self._made: Any = WeakIdKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        """Pickled without what it remembers of calls."""
        return {**vars(self), "met": None, "_calls": None, "_made": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _calls=WeakIdKeyDictionary(), _made=WeakIdKeyDictionary())

    def enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of the model."""
        # torch.compile makes symbols of ints that change, but none of a range: tiles have static
        # sizes, so that each size of the video is a program of its own
        found = self._grid_of(model, *args, **kwargs)
        packed = found if isinstance(found, Packed) else None
        t, h, w = (len(range(x)) for x in (found.grid if isinstance(found, Packed) else found))
        band = None
        if isinstance(self.method, ByNoise):
            band = band_of(self.method, self._noise_of(model, args, kwargs))
        self.met, self._inside = Met((t, h, w), band, packed), True
        for name, attn in self._attentions.items():  # of which a compiled program has guards
            check_processor(name, attn)

    def leave(self, model: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """A forward hook of the model, for calls that raise, too."""
        met, self.met, self._inside = self.met, None, False
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

    def tiling(self, tokens: int, text: int | None = 0, rotary: Any = None) -> VideoTiling:
        """The tiling of a layer that has so many tokens of video, and of text beside them.

        Args:
            text: None where ``tokens`` are all of the layer's, and those that the grid does not
                have are text.
            rotary: what the call made for all of its layers, if it did. Activation checkpointing
                runs a layer once more after the call, with the same tensors, and other calls may
                have come in between; the backward may have come in elsewhere than at the output.

        Raises:
            ValueError: the model was not called as a whole, or with tokens that are no grid.
        """
        met = self._met(rotary)
        if met is None:
            raise ValueError(
                "a layer of a sparsified model ran by itself, and the video's grid is not known: "
                "call the model, or restore(model) first (activation checkpointing, which does so, "
                "takes a loss of the model's output)"
            )
        grid, self.band, packed = met
        all_known = packed is None or len(packed.rows) == tokens
        if text is None and all_known and tokens >= math.prod(grid):
            text = tokens - math.prod(grid)
        elif math.prod(grid) != tokens or text is None:
            raise ValueError(
                f"a layer has {tokens} tokens of video, but the call's grid {grid} has "
                f"{math.prod(grid)}: tokens beside the grid, or shards of it, cannot be tiled"
            )
        text = len(range(text))
        t, h, w, rows = map(int, self._tile_and_rows(grid, text).split())
        parts = tuple(len(range(size)) for size in packed.parts) if packed else ()
        return VideoTiling(grid, (t, h, w), rows, text, parts)

    def tiling_beside(self, tokens: int, text: int, rotary: Any = None) -> VideoTiling:
        """The same of a layer that has so many tokens of the grid and beside it, and text."""
        tiling = self.tiling(tokens + text, None, rotary)
        if tiling.text < text:
            return self.tiling(tokens, 0, rotary)  # says that they are fewer than the grid's
        return tiling

    def _met(self, rotary: Table | None) -> Met | None:
        """Of the call that a layer is in or, run once more in a backward, was."""
        if rotary is None or torch.compiler.is_compiling():
            return self.met
        calls: set[Met] = self._calls.setdefault(_key(rotary), set())
        if self._inside and self.met is not None:
            calls.add(self.met)  # a pipeline may have one table for all of its steps
            return self.met
        if len(calls) == 1:
            return next(iter(calls))
        return self.met

    def _packed(self, rotary: Table | None) -> Packed | None:
        met = self._met(rotary)
        return None if met is None else met.packed

    def order(self, tiling: VideoTiling, rotary: Table | None) -> tuple[Tensor, Tensor] | None:
        """Of a packed sequence the index that takes its rows to tile-major ones, and the one that
        takes them back; None where a model's tokens are in raster order."""
        packed = self._packed(rotary)
        if packed is None:
            return None
        return self._once(packed.rows, tiling, lambda: tile_rows(packed.rows, tiling))

    def rotary(
        self, table: Any, tiling: VideoTiling, as_pair: Callable[[Any], Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The call's cosines and sines in tile-major order, made once for all of its layers.

        Args:
            table: cosines and sines, ``[..., tokens of the video, C]``, or ``[1, tokens, 1, C]``,
                which gets ``[1, 1, rows, C]``. Text that it has no rows of is not turned.
            as_pair: makes cosines and sines, ``[..., tokens, C]``, of a table of another form.
        """
        packed = self._packed(table)

        def make() -> tuple[Tensor, Tensor]:
            # not `as_pair or heads_first`: torch 2.11 compiles no truth of a function in a function
            cos, sin = (heads_first if as_pair is None else as_pair)(table)
            if packed is not None:
                cos, sin = (x.index_select(-2, packed.rows) for x in (cos, sin))
            return tile_rotary((cos, sin), tiling)

        return self._once(_key(table), tiling, make)

    def _once(self, key: Tensor, tiling: VideoTiling, make: Callable[[], Any]) -> Any:
        """What all layers of a call share, as long as ``key`` lives, a tensor of that call."""
        if torch.compiler.is_compiling():  # weak keys are nothing that it could trace
            return make()
        if key.requires_grad:  # a checkpointed layer has to make it again in the backward
            return make()
        made_for = tiling, torch.is_inference_mode_enabled()  # whose tensors no backward may save
        if self._made.get(key, (None,))[0] != made_for:
            self._made[key] = made_for, make()
        return self._made[key][1]

    @torch.compiler.assume_constant_result
    def _tile_and_rows(self, grid: Grid, text: int) -> str:
        """As text, since of a constant's numbers torch.compile would want to guard each."""
        tiling = self._alone.tiling(grid, text)
        return " ".join(map(str, (*tiling.tile, tiling.rows)))


class Processor:
    """What the processors of all models share: attention through the layer's slot.

    It is an attention processor in diffusers' sense; a subclass knows how its model projects and
    rotates, and is called as that model's own processor is, with all of that one's arguments.

    Attributes:
        video: which of a layer's outputs is the video's, where there are several.
    """

    video = 0

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
        order: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Tile-major rows to raster ones, or to those of a packed sequence, by :meth:`Call.order`:
        x ``[B, padded_tokens, dim]``, q, k, v ``[B, H, padded_tokens, D]`` to ``[B, tokens,
        H * D]``."""
        if torch.is_autocast_enabled(q.device.type):  # norms leave q and k in fp32
            dtype = torch.get_autocast_dtype(q.device.type)
            q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        out = attn.slot(x, q, k, v, tiling, text_lengths, band=self.call.band)
        out = out.transpose(1, 2).flatten(2, 3)
        out = tiling.from_tiles(out) if order is None else permute(out, order[1], order[0])
        return out.to(q.dtype)


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


def to_tiles(x: Tensor, tiling: VideoTiling, order: tuple[Tensor, Tensor] | None) -> Tensor:
    """A layer's rows, ``[B, tokens, C]``, to tile-major ones, by :meth:`Call.order`."""
    return tiling.to_tiles(x) if order is None else permute(x, *order)


def tile_rows(rows: Tensor, tiling: VideoTiling) -> tuple[Tensor, Tensor]:
    """As :meth:`Call.order`, made anew."""
    layout = tiling.layout(rows.device).flatten()
    index = torch.where(layout > -1, rows[layout.clamp(min=0)], -1)
    memory = torch.arange(tiling.padded_tokens, device=rows.device)
    back = torch.empty_like(rows).index_copy(0, rows, tiling.from_tiles(memory[:, None])[:, 0])
    return index, back


def behind(x: Tensor, first: int, dim: int = 1) -> Tensor:
    """x with its first tokens after all others; with minus as many, as it was before."""
    return x.roll(-first, dim) if first else x


def tile_rotary(table: tuple[Tensor, Tensor], tiling: VideoTiling) -> tuple[Tensor, Tensor]:
    """As :meth:`Call.rotary`, made anew, of cosines and sines ``[..., tokens, C]``."""
    layout = tiling.layout(table[0].device).flatten()
    cos, sin = (
        gather_rows(F.pad(x, (0, 0, 0, tiling.tokens - x.shape[-2]), value=of_text), layout)
        for x, of_text in zip(table, (1, 0))
    )
    return cos, sin


def heads_first(table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    cos, sin = (x.transpose(1, 2) if x.ndim == 4 else x for x in table)
    return cos, sin


def _key(table: Table) -> Tensor:
    return table if isinstance(table, Tensor) else table[0]
