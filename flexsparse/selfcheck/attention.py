"""The checks of the self-check: each computes one case and says how far off every result is.

A check is a function of a case and a device that returns ratios by the name of the result, right up
to 1 (see ``error_ratios`` in accuracy.py); what must be equal to the last bit is 0 or inf. It
raises NotAvailable, with the reason, where its backend does not exist.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, create_mask
from torch.nn.attention.flex_attention import flex_attention as torch_flex_attention

from flexsparse import reference
from flexsparse.bsa import bsa_attention, bsa_tile_map
from flexsparse.engines.dense import dense_attention
from flexsparse.selfcheck.cases import Case, draw
from flexsparse.selfcheck.laws import (
    Ratios,
    accuracy,
    choice_of_tiles,
    differ,
    judge,
    with_gradients,
)
from flexsparse.selfcheck.rows import stay
from flexsparse.stages.queries import prune_queries
from flexsparse.vsa import vsa_attention, vsa_tile_map


class NotAvailable(Exception):
    """The backend does not exist here; says why."""


def vsa(case: Case, device: str, repeatable: bool = True, **options: Any) -> Ratios:
    """The fine stage: FlexAttention under a mask of tiles, and the choice of these."""
    tiling, (q, k, v, g) = case.tiling, draw(case, device, 4)
    given: dict[str, Any] = dict(top_k=case.admitted, query_tiles=case.query_tiles)
    tile_map = vsa_tile_map(tiling.to_tiles(q), tiling.to_tiles(k), tiling, **given)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return vsa_attention(q, k, v, tiling, **given, **options)

    oracle = _oracle(_of_tokens(tile_map, case))
    found = judge(tiling, ours, oracle, [q, k, v], g, repeatable=repeatable)
    everyone = torch.ones_like(q[..., 0])
    return choice_of_tiles(case, tile_map, q, k, everyone) | found


def gated_vsa(case: Case, device: str) -> Ratios:
    """Coarse and fine stage with both gates, compiled as a whole: with Inductor on CUDA, else
    traced and differentiated alone, which needs no C++ compiler."""
    tiling, (*inputs, g) = case.tiling, draw(case, device, 6)
    given: dict[str, Any] = dict(top_k=case.admitted, query_tiles=case.query_tiles)
    q, k = map(tiling.to_tiles, inputs[:2])
    tile_map = vsa_tile_map(q, k, tiling, **given)
    mask, shape = _of_tokens(tile_map, case), (case.sizes.video, tiling.tile)
    of_token = reference.tile_of_token(*shape).to(device)

    def whole(q: Tensor, k: Tensor, v: Tensor, *gates: Tensor) -> Tensor:
        gated = dict(zip(("gate_coarse", "gate_fine"), gates))
        return vsa_attention(q, k, v, tiling, **gated, **given)

    backend = "inductor" if device == "cuda" else "aot_eager"
    ours = torch.compile(whole, fullgraph=True, dynamic=False, backend=backend)

    def oracle(attend: Any, dtype: torch.dtype, *x: Tensor) -> Tensor:
        q, k, v, gate_coarse, gate_fine = x
        weights = reference.scores(q, k, *shape).softmax(-1)
        coarse = (weights @ reference.pool(v, *shape))[..., of_token, :]
        return coarse * gate_coarse + attend(q, k, v, mask) * gate_fine

    return judge(tiling, ours, oracle, inputs, g)


def bsa(case: Case, device: str) -> Ratios:
    """Prune, attend, restore."""
    tiling, (q, k, v, g) = case.tiling, draw(case, device, 4)
    given: dict[str, Any] = dict(kv=case.admitted, query_tiles=case.query_tiles)
    window = case.sizes.window
    kept = prune_queries(tiling.to_tiles(q), tiling, window=window)
    tile_map = bsa_tile_map(kept, tiling.to_tiles(k), tiling, **given)
    stays = stay(kept)
    source = reference.sources(stays, tiling.video, tiling.tile, window, "nearest")

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return bsa_attention(q, k, v, tiling, window=window, **given)

    oracle = _oracle(_of_tokens(tile_map, case), source)
    found = judge(tiling, ours, oracle, [q, k, v], g)
    return choice_of_tiles(case, tile_map, q, k, stays.to(q.dtype)) | found


def two_masks(case: Case, device: str) -> Ratios:
    """A mask, another with tensors of the same shapes, the first again."""
    other = Case("full64", case.dim, case.dtype, case.rule)
    tiling, other_tiling = case.tiling, other.tiling
    if tiling == other_tiling or tiling.padded_tokens != other_tiling.padded_tokens:
        raise ValueError(f"{case.shape} has not the tensors of {other.shape} in another tiling")
    *inputs, g = map(tiling.to_tiles, draw(case, device, 4))

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return vsa_attention(q, k, v, tiling, top_k=case.admitted)

    before = with_gradients(ours, inputs, g)
    between = vsa(other, device)
    after = with_gradients(ours, inputs, g)
    named = zip(("out", "dq", "dk", "dv"), map(differ, after, before))
    ratios = {f"{name} of the first mask again": x for name, x in named}
    return ratios | {f"{name} of the second mask": x for name, x in between.items()}


def sdpa(backend: SDPBackend) -> Callable[[Case, str], Ratios]:
    """Dense attention through one kernel of torch's."""

    def check(case: Case, device: str) -> Ratios:
        tiling, (q, k, v, g) = case.tiling, draw(case, device, 4)
        everything = torch.ones(1, 1, dtype=torch.bool, device=device)

        def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(backend), warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                try:
                    return dense_attention(q, k, v, tiling)
                except RuntimeError as error:
                    if not str(error).startswith(("No available kernel", "No viable backend")):
                        raise
                    raise NotAvailable(_reason(said) or one_line(str(error))) from error

        # These add up gradients in any order: they owe accuracy, not the same bits twice.
        return judge(tiling, ours, _oracle(everything), [q, k, v], g, repeatable=False)

    return check


def flash(case: Case, device: str) -> Ratios:
    """FlexAttention by its CuTe kernels, where the package that has them is installed."""
    found = importlib.util.find_spec("flash_attn")
    if found is None or importlib.util.find_spec("flash_attn.cute") is None:
        raise NotAvailable("not installed: flash_attn.cute")
    if device == "cpu":
        raise NotAvailable("it has CUDA kernels alone")
    due = 2 if torch.cuda.get_device_capability()[0] >= 10 else 1
    if case.query_tiles != due:
        raise NotAvailable(f"its kernels take {due * case.tiling.rows} query rows on this GPU")
    return vsa(case, device, repeatable=False, kernel_options={"BACKEND": "FLASH"})


def other_flex_attention(case: Case, device: str) -> Ratios:
    """torch's own FlexAttention, compiled, with blocks of 128 that are none of ours."""
    if device == "cpu":
        raise NotAvailable("torch's FlexAttention has no backward on a CPU")
    *inputs, g = (x[..., :512, :] for x in draw(case, device, 4))

    def nearby(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return (q >= kv) & (q - kv < 200)

    torch.compiler.reset()  # ours are versions of the same function, of which few are allowed
    mask = create_block_mask(nearby, None, None, 512, 512, device=device)
    compiled = torch.compile(torch_flex_attention, dynamic=False, fullgraph=True)
    found = with_gradients(lambda *x: compiled(*x, block_mask=mask), inputs, g)
    oracle = _oracle(create_mask(nearby, None, None, 512, 512, device=device))
    return accuracy(found, oracle, inputs, g)


def _reason(said: list[warnings.WarningMessage]) -> str:
    """Why torch took no kernel: it says so of each of them, first of those that we turned off."""
    texts = [str(x.message).split(" (Triggered")[0].strip() for x in said]
    texts = [x for x in texts if not x.endswith("because:") and "runtime disabled" not in x]
    return one_line(texts[0]) if texts else ""


def _oracle(mask: Tensor, source: Tensor | None = None) -> Callable[..., Tensor]:
    """Attention of the tokens that ``mask`` pairs; each takes the output of its ``source``."""

    def compute(attend: Any, dtype: torch.dtype, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = attend(q, k, v, mask)
        return out if source is None else out.gather(-2, source[..., None].expand_as(out))

    return compute


def _of_tokens(tile_map: Tensor, case: Case) -> Tensor:
    of_token = reference.tile_of_token(case.sizes.video, case.tiling.tile).to(tile_map.device)
    return tile_map[..., of_token, :][..., of_token]


def one_line(text: str) -> str:
    """The first sentence or line that says something."""
    lines = (x.strip() for x in text.splitlines())
    return next((x.split(". ")[0] for x in lines if x), "no message")
