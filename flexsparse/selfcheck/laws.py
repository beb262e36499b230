"""What a check holds results to: accuracy, the same bits again, choices best first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flexsparse import reference
from flexsparse.choice.places import FirstFrames, Neighbourhood
from flexsparse.choice.rules import TopK
from flexsparse.choice.union import Union
from flexsparse.selfcheck.accuracy import error_ratios, recomputed_attention
from flexsparse.selfcheck.cases import Case
from flexsparse.tiling import VideoTiling

Ratios = dict[str, float]
Compute = Callable[..., Tensor]


def judge(
    tiling: VideoTiling,
    ours: Compute,
    oracle: Callable[..., Tensor],
    inputs: list[Tensor],
    g: Tensor,
    *,
    repeatable: bool = True,
) -> Ratios:
    """Output and gradients of ``ours`` against the oracle, and what padding and repetition do.

    Args:
        ours: of tile-major inputs, to a tile-major output or one without padding.
        oracle: ``(attend, dtype, *raster inputs)``, an output in raster order.
        inputs, g: raster tensors, and the gradient of the output.
        repeatable: whether the same bits are due in a second run, and with NaN in padding.
    """
    tiled_output = g.shape[-2] == tiling.tokens
    grad = tiling.to_tiles(g) if tiled_output else g
    first, ratios = repeated(tiling, ours, inputs, grad, repeatable=repeatable)
    return accuracy([_untiled(tiling, x) for x in first], oracle, inputs, g) | ratios


def repeated(
    tiling: VideoTiling, ours: Compute, inputs: list[Tensor], g: Tensor, *, repeatable: bool = True
) -> tuple[list[Tensor], Ratios]:
    clean = [tiling.to_tiles(x) for x in inputs]
    first = with_gradients(ours, clean, g)
    if not repeatable:
        return first, {}
    runs = {"in a second run": lambda x: x}
    if tiling.has_padding:
        valid = tiling.valid(g.device)[:, None]
        runs["with NaN in padding"] = lambda x: torch.where(valid, x, math.nan)
    ratios = {}
    for what, change in runs.items():
        grad = change(g) if g.shape[-2] == tiling.padded_tokens else g
        again = with_gradients(ours, [change(x) for x in clean], grad)
        for name, a, b in zip(_names(len(inputs)), again, first, strict=True):
            ratios[f"{name} {what}"] = differ(*(_untiled(tiling, x) for x in (a, b)))
    return first, ratios


def with_gradients(compute: Compute, inputs: Sequence[Tensor], g: Tensor) -> list[Tensor]:
    """The output of ``compute(*inputs)`` and the gradient of each input for ``g``."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = compute(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, g.to(out.dtype))]


def accuracy(
    found: list[Tensor], oracle: Callable[..., Tensor], inputs: list[Tensor], g: Tensor
) -> Ratios:
    def run(attend: Any, dtype: torch.dtype) -> list[Tensor]:
        cast = [x.to(torch.float64) if dtype == torch.float64 else x for x in inputs]
        return with_gradients(lambda *x: oracle(attend, dtype, *x), cast, g)

    exact = run(reference.attention, torch.float64)
    dtype = inputs[0].dtype
    plain = [run(attend, dtype) for attend in (reference.attention, recomputed_attention)]
    names = _names(len(inputs))
    return dict(zip(names, error_ratios(found, plain, exact, [*inputs, g]), strict=True))


def choice_of_tiles(case: Case, tile_map: Tensor, q: Tensor, k: Tensor, weights: Tensor) -> Ratios:
    """No tile that was left out beats one that was chosen, but for what rounding explains; TopK
    takes as many as it says; the tiles of places are there, whatever their scores."""

    def scores(dtype: torch.dtype) -> Tensor:
        of_token = reference.tile_of_token(case.sizes.video, case.tiling.tile).to(q.device)
        block = of_token // case.query_tiles
        member = torch.nn.functional.one_hot(block).to(dtype)
        w = weights.to(dtype)[..., None]
        means = (member.T @ (q.to(dtype) * w)) / (member.T @ w)
        keys = reference.pool(k.to(dtype), case.sizes.video, case.tiling.tile)
        s = means @ keys.mT / math.sqrt(case.dim)
        return s.repeat_interleave(case.query_tiles, -2)[..., : case.tiling.num_tiles, :]

    exact = scores(torch.float64)
    plain = scores(torch.float32)
    ratios = {}
    if isinstance(case.admitted, Union):
        near = _of_places(case, tile_map.device)
        ratios["tiles of places"] = 0.0 if bool((tile_map | ~near).all()) else math.inf
        exact = exact.masked_fill(near, math.nan)
    elif isinstance(case.admitted, TopK):
        right = bool((tile_map.sum(-1) == case.admitted.k).all())
        ratios["number of tiles"] = 0.0 if right else math.inf
    return ratios | {"choice of tiles": best_first(tile_map, exact, plain, dim=-1)}


def _of_places(case: Case, device: torch.device) -> Tensor:
    """What the places of a union admit to each block of query tiles: bool ``[n, n]``."""
    sizes = case.sizes.video, case.tiling.tile
    assert isinstance(case.admitted, Union)
    window, frames = None, 0
    for part in case.admitted.parts:
        if isinstance(part, Neighbourhood):
            t, h, w = (x or 2 * n for x, n in zip(part.window, case.tiling.grid))
            window = t, h, w
        elif isinstance(part, FirstFrames):
            frames = part.frames
    near = reference.neighbourhood(*sizes, window, frames)
    blocks = torch.arange(len(near)) // case.query_tiles
    together = (blocks[:, None] == blocks).float() @ near.float() > 0
    return together.to(device)


def best_first(chosen: Tensor, exact: Tensor, plain: Tensor, dim: int) -> float:
    """By how much a candidate left out beats one chosen, over what two of plain PyTorch's errors,
    twice as large, would explain; candidates that are NaN do not count."""
    none = exact.isnan()
    left = exact.masked_fill(chosen | none, -math.inf).amax(dim)
    taken = exact.masked_fill(~chosen | none, math.inf).amin(dim)
    lead = (left - taken).amax().item()
    rounding = torch.finfo(plain.dtype).eps * exact.nan_to_num().abs().max().item()
    bound = 4 * (plain - exact).nan_to_num().abs().max().item() + rounding
    return max(lead, 0.0) / bound


def _names(inputs: int) -> list[str]:
    every = ["dq", "dk", "dv", "dgate_coarse", "dgate_fine"]
    return ["out", *(every[:inputs] if inputs > 1 else ["dx"])]


def _untiled(tiling: VideoTiling, x: Tensor) -> Tensor:
    return tiling.from_tiles(x) if x.shape[-2] == tiling.padded_tokens else x


def differ(a: Tensor, b: Tensor) -> float:
    return 0.0 if torch.equal(a, b) else math.inf
