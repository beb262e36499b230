"""What the self-attention of each layer does to one clip: tiles admitted, queries kept, FLOPs.

Known for models whose `layers` are blocks with a module that has a `slot`, as VideoDiT's and Wan's
are, and for slots that have `choose` or are dense.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from flexsparse import VideoTiling
from flexsparse.flops import attention_flops
from flexsparse.nn import Choice
from flexsparse.nn.ulysses import Ulysses


@dataclass(frozen=True)
class LayerStats:
    """One layer, one clip.

    Attributes:
        admitted: key tiles that each query tile attends to, int64 [B, H, n]; None for dense
            attention.
        kept: the tokens whose query stays, bool [B, H, T, H, W]; None for dense attention.
        sparsity: the share of the products of dense attention that the kernels leave out, of tiles
            and of the rows that stand for their queries, as `attention_cost` counts it.
        flops: of attention for a clip, forward and backward, see `flexsparse.flops`.
        chosen: what the tile in the middle of the video attends to, uint8 [B, H, T, H, W]: 1 for a
            token of those tiles, 2 for its own tokens; None for dense attention.
    """

    admitted: Tensor | None
    kept: Tensor | None
    sparsity: float
    flops: int
    chosen: Tensor | None = None

    @property
    def mean_admitted(self) -> float | None:
        return None if self.admitted is None else self.admitted.double().mean().item()

    @property
    def share_kept(self) -> float:
        return 1.0 if self.kept is None else self.kept.double().mean().item()


def attention_stats(model: nn.Module, *inputs: Tensor) -> list[LayerStats]:
    """Those of each layer in one forward pass, as far as they are known; on the CPU.

    Under FSDP a collective. Nothing is kept from layer to layer but the statistics.
    """
    found: list[LayerStats] = []

    def see(slot: nn.Module, given: tuple) -> None:
        stats = layer_stats(slot, *given)
        if stats is not None:
            found.append(stats)

    if slots(model):
        with watched_slots(model, see), torch.no_grad():
            model(*inputs)
    return found


def layer_stats(
    slot: Any,
    x: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tiling: VideoTiling | None,
    shards: Ulysses | None = None,
    band: str | None = None,
) -> LayerStats | None:
    """Those of what a slot was called with; None where it does not say what it chooses.

    Where ranks share the rows a collective, with the same answer, of all heads, on each.
    """
    heads, length, dim = q.shape[1:]
    if tiling is not None and not hasattr(slot, "choose"):
        return None
    choice = None if tiling is None else choice_of(slot, q, k, tiling, shards, band)
    if tiling is None or choice is None:
        rows = length if shards is None else shards.length
        tokens = rows if tiling is None else tiling.tokens
        return LayerStats(None, None, 0.0, attention_flops(tokens, heads, dim, backward=True))
    admitted = choice.tile_map.sum(-1).cpu()
    mean = admitted.double().mean().item()
    rows_share = 1 if choice.q_rows is None else choice.q_rows / tiling.rows
    cost = attention_flops(
        tiling.tokens,
        heads,
        dim,
        tiling=tiling,
        top_k=mean,
        q_rows=choice.q_rows,
        backward=True,
    )
    kept = tiling.from_tiles(choice.kept.unsqueeze(-1)).bool().cpu()
    kept = kept.unflatten(2, tiling.video).squeeze(-1)
    sparsity = 1 - mean / tiling.num_tiles * rows_share
    return LayerStats(admitted, kept, sparsity, cost, chosen_by_middle(choice.tile_map, tiling))


def chosen_by_middle(tile_map: Tensor, tiling: VideoTiling) -> Tensor:
    """`LayerStats.chosen` of who attends to whom, bool [B, H, n, n]."""
    _, rows, columns = tiling.grid
    t, h, w = (size // 2 for size in tiling.grid)
    middle = (t * rows + h) * columns + w
    of_tiles = tile_map[:, :, middle].byte()
    of_tiles[..., middle] = 2
    of_tokens = tiling.from_tiles(of_tiles.repeat_interleave(tiling.rows, -1).unsqueeze(-1))
    return of_tokens.squeeze(-1).unflatten(2, tiling.video).cpu()


def choice_of(
    slot: Any,
    q: Tensor,
    k: Tensor,
    tiling: VideoTiling,
    shards: Ulysses | None,
    band: str | None = None,
) -> Choice | None:
    """What a slot chooses for q and k, of all heads; None where it is dense.

    Where ranks share the rows a collective, with the same answer on each.
    """
    options = {} if band is None else dict(band=band)
    if shards is None:
        return slot.choose(q, k, tiling, **options)
    q, k = shards.to_heads(q, k)
    choice = slot.choose(q, k, tiling, **options)
    if choice is None:
        return None
    tile_map, kept = (shards.gather_heads(x.byte()).bool() for x in choice[:2])
    return Choice(tile_map, kept, choice.q_rows)


@contextmanager
def watched_slots(model: nn.Module, see: Callable[[nn.Module, tuple], None]) -> Iterator[None]:
    """Within it, `see(slot, inputs)` is told of each call of a layer's slot, before it is made.

    The inputs are x, q, k, v, tiling, how ranks share the rows, where they do, and the band of the
    noise level, where there are some.

    Hooks within a compiled block do not run, so blocks run uncompiled; what the slots compile for
    themselves stays compiled.
    """

    def told(slot: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        more = [kwargs.get(name) for name in ("shards", "band")]
        while more and more[-1] is None:
            more.pop()
        see(slot, (*args, *more))

    hooks = [slot.register_forward_pre_hook(told, with_kwargs=True) for slot in slots(model)]
    compiled = {block: block._compiled_call_impl for block in _blocks(model)}
    try:
        for block in compiled:
            block._compiled_call_impl = None
        yield
    finally:
        for block, call in compiled.items():
            block._compiled_call_impl = call
        for hook in hooks:
            hook.remove()


def slots(model: nn.Module) -> list[nn.Module]:
    """The modules of the attention slots, layer by layer."""
    modules = [module for block in _blocks(model) for module in block.modules()]
    found = [getattr(module, "slot", None) for module in modules]
    return [slot for slot in found if isinstance(slot, nn.Module)]


def _blocks(model: nn.Module) -> list[nn.Module]:
    return list(cast(nn.ModuleDict, model.layers).children())


def kept_pixels(kept: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Which pixels belong to kept tokens: bool [..., T, H, W] of tokens -> [..., *size]."""
    for axis, (pixels, tokens) in enumerate(zip(size, kept.shape[-3:], strict=True)):
        of_pixel = torch.arange(pixels, device=kept.device) * tokens // pixels
        kept = kept.index_select(axis - 3, of_pixel)
    return kept
