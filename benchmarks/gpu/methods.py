"""The methods as functions: from q, k and v (and gates) to the output, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask
from torch.nn.attention.flex_attention import flex_attention as torch_flex_attention

from benchmarks.gpu.cases import Method, Setting
from benchmarks.video_like import video_like
from flexsparse import (
    Threshold,
    TopK,
    bsa_attention,
    bsa_mask,
    flex_attention,
    prune_queries,
    vsa_attention,
    vsa_mask,
)
from flexsparse.bsa import bsa_tile_map
from flexsparse.flops import attention_flops
from flexsparse.kv_rules import Rule
from flexsparse.vsa import vsa_tile_map

KEEP = 0.5
WINDOWS = {(4, 4, 4): (2, 2, 2), (3, 5, 4): (3, 5, 2)}


class Unavailable(Exception):
    """A method that cannot run here, and why."""


class Layer(NamedTuple):
    """One attention layer.

    Attributes:
        attend: of its inputs.
        inputs: leaves that require grad, the first three q, k and v; tile-major but for dense
            attention, which has them in raster order, without padding.
        flops: of the forward, as counted by ``flexsparse.flops``, scores included.
        sparsity: 1 - the share of all pairs of tokens that it computes.
    """

    attend: Callable[..., Tensor]
    inputs: list[Tensor]
    flops: int
    sparsity: float


def draw(setting: Setting, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Tile-major q, k, v and two gates, of a video's kind rather than white noise."""
    q, k, v = video_like(setting.tiling, setting.heads, setting.dim, device=device, dtype=dtype)
    generator = torch.Generator(device).manual_seed(1)
    gates = [
        setting.tiling.zero_padding(
            torch.randn(q.shape, device=device, dtype=dtype, generator=generator)
        )
        for _ in range(2)
    ]
    return [q, k, v, *gates]


def build(method: Method, setting: Setting, tensors: list[Tensor]) -> Layer:
    """The layer of ``method`` on tile-major ``tensors`` (q, k, v and two gates).

    Raises:
        Unavailable: the method cannot run here.
    """
    return KINDS[method.kind](method, setting, tensors)


def rule_of(method: Method, setting: Setting) -> Rule:
    """Which key tiles are admitted, so that the layer has the sparsity asked for."""
    n = setting.tiling.num_tiles
    share = 1 - method.sparsity
    if method.kind.startswith("bsa"):
        k = max(1, round(n * share / KEEP))
        return TopK(k) if method.kind == "bsa_top" else Threshold(k)
    return TopK(max(1, round(n * share)))


def window_of(setting: Setting) -> tuple[int, int, int] | None:
    return WINDOWS.get(setting.tile)


def _leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [x.detach().requires_grad_() for x in tensors]


def _compiled(function: Callable[..., Tensor], like: Tensor) -> Callable[..., Tensor]:
    """As a model is compiled; a rehearsal traces, and leaves out what takes a C++ compiler long."""
    backend = "inductor" if like.is_cuda else "eager"
    return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)


def _dense(attend: Callable[..., Tensor]) -> Callable[..., Layer]:
    def make(method: Method, setting: Setting, tensors: list[Tensor]) -> Layer:
        raster = _leaves([setting.tiling.from_tiles(x) for x in tensors[:3]])
        flops = attention_flops(setting.tiling.tokens, setting.heads, setting.dim)
        return Layer(attend, raster, flops, 0.0)

    return make


def _sdpa(backend: SDPBackend) -> Callable[..., Layer]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return _dense(attend)


def _dense_flex(method: Method, setting: Setting, tensors: list[Tensor]) -> Layer:
    return _dense(_compiled(torch_flex_attention, tensors[0]))(method, setting, tensors)


def _package(module: str) -> Callable[..., Layer]:
    """FlashAttention's own packages, which want [batch, tokens, heads, dim]."""

    def make(method: Method, setting: Setting, tensors: list[Tensor]) -> Layer:
        compute = _imported(module).flash_attn_func

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = compute(*(x.transpose(1, 2) for x in (q, k, v)))
            return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

        return _dense(attend)(method, setting, tensors)

    return make


def _imported(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise Unavailable(f"{module} is not installed") from error


def _flex_plain(method: Method, setting: Setting, tensors: list[Tensor]) -> Layer:
    """As FlexAttention's documentation has it: a ``mask_mod``, and torch makes the lists of it."""
    q, k = tensors[:2]
    tiling, rule = setting.tiling, rule_of(method, setting)
    chosen, valid = vsa_tile_map(q, k, tiling, top_k=rule), tiling.valid(q.device)

    def mask_mod(b: Tensor, h: Tensor, q_: Tensor, kv: Tensor) -> Tensor:
        return chosen[b, h, q_ // tiling.rows, kv // tiling.rows] & valid[kv]

    size = tiling.padded_tokens
    options: Any = dict(device=q.device, BLOCK_SIZE=tiling.rows, _compile=q.is_cuda)
    mask = create_block_mask(mask_mod, 1, setting.heads, size, size, **options)
    compute = _compiled(torch_flex_attention, q) if q.is_cuda else flex_attention

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return compute(q, k, v, block_mask=mask)

    return _tiled(attend, tensors[:3], setting, float(chosen.float().mean()))


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
    return _tiled(_compiled(attend, q), [q, k, v], setting, share, q_rows=rows, scores=False)


def _vsa(method: Method, setting: Setting, tensors: list[Tensor]) -> Layer:
    tiling, rule = setting.tiling, rule_of(method, setting)
    given: Any = dict(top_k=rule, query_tiles=method.query_tiles)

    def attend(q: Tensor, k: Tensor, v: Tensor, *gates: Tensor) -> Tensor:
        options = given | dict(zip(("gate_coarse", "gate_fine"), gates))
        return vsa_attention(q, k, v, tiling, **options)

    share = vsa_tile_map(tensors[0], tensors[1], tiling, **given).float().mean()
    used = tensors if method.kind == "vsa" else tensors[:3]
    return _tiled(_compiled(attend, tensors[0]), used, setting, float(share))


def _bsa(method: Method, setting: Setting, tensors: list[Tensor]) -> Layer:
    tiling, rule = setting.tiling, rule_of(method, setting)
    pruned: Any = dict(keep=KEEP, window=window_of(setting))
    given: Any = dict(kv=rule, query_tiles=method.query_tiles)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return bsa_attention(q, k, v, tiling, **given, **pruned)

    kept = prune_queries(tensors[0], tiling, **pruned)
    share = float(bsa_tile_map(kept, tensors[1], tiling, **given).float().mean())
    rows = kept.q_rows
    return _tiled(_compiled(attend, tensors[0]), tensors[:3], setting, share, q_rows=rows)


def _fastvideo(method: Method, setting: Setting, tensors: list[Tensor]) -> Layer:
    """FastVideo's kernels, which choose and attend in one call, with a coarse gate."""
    compute = _imported("fastvideo_kernel").video_sparse_attn
    tiling = setting.tiling
    counts = tiling.counts(tensors[0].device)
    top_k = rule_of(method, setting).bounds(tiling.num_tiles)[0]
    block = 4, 4, 4  # of 64 rows; how many hold tokens is said by the counts
    sizes = dict(variable_block_sizes=counts, q_variable_block_sizes=counts, block_size=block)

    def attend(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
        return compute(q, k, v, topk=top_k, compress_attn_weight=gate, **sizes)

    return _tiled(attend, tensors[:4], setting, top_k / tiling.num_tiles)


def _tiled(
    attend: Callable[..., Tensor],
    tensors: list[Tensor],
    setting: Setting,
    share: float,
    *,
    q_rows: int | None = None,
    scores: bool = True,
) -> Layer:
    tiling = setting.tiling
    top_k = share * tiling.num_tiles
    sizes = tiling.tokens, setting.heads, setting.dim
    flops = attention_flops(*sizes, tiling=tiling, top_k=top_k, q_rows=q_rows)
    if not scores:
        per_pair = 4 if q_rows is None else 2
        flops -= per_pair * tiling.num_tiles**2 * setting.heads * setting.dim
    sparsity = 1 - share * (1 if q_rows is None else q_rows / tiling.rows)
    return Layer(attend, _leaves(tensors), flops, sparsity)


KINDS: dict[str, Callable[..., Layer]] = {
    "dense_math": _sdpa(SDPBackend.MATH),
    "dense_cudnn": _sdpa(SDPBackend.CUDNN_ATTENTION),
    "dense_flash": _sdpa(SDPBackend.FLASH_ATTENTION),
    "dense_flex": _dense_flex,
    "dense_fa3": _package("flash_attn_interface"),
    "dense_fa4": _package("flash_attn.cute"),
    "flex_plain": _flex_plain,
    "fine": fine,
    "bsa_fine": fine,
    "vsa": _vsa,
    "vsa_ungated": _vsa,
    "bsa": _bsa,
    "bsa_top": _bsa,
    "fastvideo": _fastvideo,
}
