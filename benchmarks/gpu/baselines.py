"""What ours is measured against: dense attention by every engine at hand, and other sparse ones."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask
from torch.nn.attention.flex_attention import flex_attention as torch_flex_attention

from benchmarks.gpu.cases import Method, Setting
from benchmarks.gpu.layers import Layer, Unavailable, compiled, leaves, rule_of, tiled
from flexsparse import flex_attention
from flexsparse.flops import attention_flops
from flexsparse.vsa import vsa_tile_map


def dense(attend: Callable[..., Tensor]) -> Callable[..., Layer]:
    def make(method: Method, setting: Setting, tensors: list[Tensor]) -> Layer:
        raster = leaves([setting.tiling.from_tiles(x) for x in tensors[:3]])
        flops = attention_flops(setting.tiling.tokens, setting.heads, setting.dim)
        return Layer(attend, raster, flops, 0.0)

    return make


def sdpa(backend: SDPBackend) -> Callable[..., Layer]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return dense(attend)


def dense_flex(method: Method, setting: Setting, tensors: list[Tensor]) -> Layer:
    return dense(compiled(torch_flex_attention, tensors[0]))(method, setting, tensors)


def package(module: str) -> Callable[..., Layer]:
    """FlashAttention's own packages, which want [batch, tokens, heads, dim]."""

    def make(method: Method, setting: Setting, tensors: list[Tensor]) -> Layer:
        compute = _imported(module).flash_attn_func

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = compute(*(x.transpose(1, 2) for x in (q, k, v)))
            return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

        return dense(attend)(method, setting, tensors)

    return make


def _imported(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise Unavailable(f"{module} is not installed") from error


def flex_plain(method: Method, setting: Setting, tensors: list[Tensor]) -> Layer:
    """As FlexAttention's documentation has it: a ``mask_mod``, and torch makes the lists of it."""
    q, k = tensors[:2]
    tiling, rule = setting.tiling, rule_of(method, setting)
    chosen, valid = vsa_tile_map(q, k, tiling, top_k=rule), tiling.valid(q.device)

    def mask_mod(b: Tensor, h: Tensor, q_: Tensor, kv: Tensor) -> Tensor:
        return chosen[b, h, q_ // tiling.rows, kv // tiling.rows] & valid[kv]

    size = tiling.padded_tokens
    options: Any = dict(device=q.device, BLOCK_SIZE=tiling.rows, _compile=q.is_cuda)
    mask = create_block_mask(mask_mod, 1, setting.heads, size, size, **options)
    compute = compiled(torch_flex_attention, q) if q.is_cuda else flex_attention

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return compute(q, k, v, block_mask=mask)

    return tiled(attend, tensors[:3], setting, float(chosen.float().mean()), scores=False)


def fastvideo(method: Method, setting: Setting, tensors: list[Tensor]) -> Layer:
    """FastVideo's kernels, which choose and attend in one call, with a coarse gate."""
    compute = _imported("fastvideo_kernel").video_sparse_attn
    tiling = setting.tiling
    counts = tiling.counts(tensors[0].device)
    top_k = rule_of(method, setting).bounds(tiling.num_tiles)[0]
    block = 4, 4, 4  # of 64 rows; how many hold tokens is said by the counts
    sizes = dict(variable_block_sizes=counts, q_variable_block_sizes=counts, block_size=block)

    def attend(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
        return compute(q, k, v, topk=top_k, compress_attn_weight=gate, **sizes)

    return tiled(attend, tensors[:4], setting, top_k / tiling.num_tiles)
