"""Our methods as functions: from q, k and v (and gates) to the output, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.attention import SDPBackend

from benchmarks.gpu import baselines
from benchmarks.gpu.cases import Method, Setting
from benchmarks.gpu.layers import KEEP, Layer, compiled, rule_of, tiled, window_of
from flexsparse import (
    bsa_attention,
    bsa_mask,
    flex_attention,
    prune_queries,
    vsa_attention,
    vsa_mask,
)
from flexsparse.bsa import bsa_tile_map
from flexsparse.vsa import vsa_tile_map


def build(method: Method, setting: Setting, tensors: list[Tensor]) -> Layer:
    """The layer of ``method`` on tile-major ``tensors`` (q, k, v and two gates).

    Raises:
        Unavailable: the method cannot run here.
    """
    return KINDS[method.kind](method, setting, tensors)


def fine(
    method: Method, setting: Setting, tensors: list[Tensor], options: dict[str, Any] | None = None
) -> Layer:
    """Attention alone, under a mask that is there already, with FlexAttention's ``options``."""
    q, k, v = tensors[:3]
    tiling, rule, rows = setting.tiling, rule_of(method, setting), None
    if method.kind == "bsa_fine":
        kept = prune_queries(q, tiling, keep=KEEP, window=window_of(setting))
        mask = bsa_mask(kept, k, tiling, kv=rule, query_tiles=method.query_tiles)
        q, rows = kept.q, kept.q_rows
    else:
        mask = vsa_mask(q, k, tiling, top_k=rule, query_tiles=method.query_tiles)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex_attention(q, k, v, block_mask=mask, kernel_options=options)

    share = float(mask.to_dense().float().mean())
    return tiled(compiled(attend, q), [q, k, v], setting, share, q_rows=rows, scores=False)


def _vsa(method: Method, setting: Setting, tensors: list[Tensor]) -> Layer:
    tiling, rule = setting.tiling, rule_of(method, setting)
    given: Any = dict(top_k=rule, query_tiles=method.query_tiles)

    def attend(q: Tensor, k: Tensor, v: Tensor, *gates: Tensor) -> Tensor:
        options = given | dict(zip(("gate_coarse", "gate_fine"), gates))
        return vsa_attention(q, k, v, tiling, **options)

    share = vsa_tile_map(tensors[0], tensors[1], tiling, **given).float().mean()
    used = tensors if method.kind == "vsa" else tensors[:3]
    return tiled(compiled(attend, tensors[0]), used, setting, float(share))


def _bsa(method: Method, setting: Setting, tensors: list[Tensor]) -> Layer:
    tiling, rule = setting.tiling, rule_of(method, setting)
    pruned: Any = dict(keep=KEEP, window=window_of(setting))
    given: Any = dict(kv=rule, query_tiles=method.query_tiles)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return bsa_attention(q, k, v, tiling, **given, **pruned)

    kept = prune_queries(tensors[0], tiling, **pruned)
    share = float(bsa_tile_map(kept, tensors[1], tiling, **given).float().mean())
    rows = kept.q_rows
    return tiled(compiled(attend, tensors[0]), tensors[:3], setting, share, q_rows=rows)


KINDS: dict[str, Callable[..., Layer]] = {
    "dense_math": baselines.sdpa(SDPBackend.MATH),
    "dense_cudnn": baselines.sdpa(SDPBackend.CUDNN_ATTENTION),
    "dense_flash": baselines.sdpa(SDPBackend.FLASH_ATTENTION),
    "dense_flex": baselines.dense_flex,
    "dense_fa3": baselines.package("flash_attn_interface"),
    "dense_fa4": baselines.package("flash_attn.cute"),
    "flex_plain": baselines.flex_plain,
    "fine": fine,
    "bsa_fine": fine,
    "vsa": _vsa,
    "vsa_ungated": _vsa,
    "bsa": _bsa,
    "bsa_top": _bsa,
    "fastvideo": baselines.fastvideo,
}
