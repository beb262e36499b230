"""``flex_attention`` on every device: torch's on CUDA, our operator on CPU."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest, BlockMask, create_mask
from torch.nn.attention.flex_attention import flex_attention as torch_flex_attention

from flexsparse.checks import as_autocast, check_alike, check_heads
from flexsparse.choice.block_mask import ChosenTiles, TileBlockMask
from flexsparse.choice.lists import has_partial_tiles
from flexsparse.derivatives import has_tangent, refuse_tangents
from flexsparse.engines import kernel_options as configs
from flexsparse.engines.cpu import block_sparse_attention
from flexsparse.engines.cpu_scores import score_mod_attention
from flexsparse.torch_names import get_unwrapped, is_batchedtensor

if torch.version.cuda and not configs.TAKES_OPTIONS:
    from flexsparse.engines import inductor_choices

    inductor_choices.install()

_RECOMPILE_LIMIT = 64  # shapes that eager code may ask for before torch refuses to compile more


def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Any = None,
    block_mask: BlockMask | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: Any = None,
    *,
    return_aux: AuxRequest | None = None,
) -> Any:
    """torch's ``flex_attention``, compiled on CUDA and trainable on CPU.

    On CUDA this is torch's own, compiled even when it is called from eager code, with kernel
    configs for small blocks. On CPU it is ours, forward and backward, for any BlockMask: an
    operator, or, with ``score_mod`` or ``max_scores``, differentiable PyTorch in chunks, where what
    ``score_mod`` captures has gradients too. With a mask from :func:`tile_block_mask`, nothing that
    stands in padding, NaN included, reaches a valid output or a gradient.

    Derivatives are first ones, on CUDA backward alone, on CPU forward as well (``torch.func.jvp``,
    forward_ad), with ``score_mod`` one or the other; others are refused.

    Args:
        query, key, value: ``[B, Hq, Lq, D]``, ``[B, Hkv, Lk, D]``, ``[B, Hkv, Lk, Dv]``, one device
            and dtype; mixed dtypes under autocast are cast to its own.
        score_mod, block_mask, scale, enable_gqa, return_lse, return_aux: as in
            ``torch.nn.attention.flex_attention.flex_attention``.
        kernel_options: of torch's, which go before our own (compute blocks by
            ``flexsparse.engines.kernel_configs``, say). ``{"BACKEND": "FLASH"}`` asks for
            FlashAttention 4 in place of Triton, if it is installed and the blocks are those that it
            takes.

    Returns:
        ``[B, Hq, Lq, Dv]``; with ``return_lse``, also the natural log-sum-exp ``[B, Hq, Lq]``; with
        ``return_aux``, also an AuxOutput.

    Raises:
        ValueError: mixed devices or dtypes, lengths that are not the mask's, head dims that CUDA
            kernels cannot take, a BACKEND that cannot compute this.
    """
    if return_lse and return_aux is not None:
        raise ValueError("give return_lse or return_aux, not both")
    aux = AuxRequest(lse=True) if return_lse else return_aux
    tiling = q_tiling = lengths = None
    if isinstance(block_mask, TileBlockMask):
        tiling, lengths = block_mask.tiling, block_mask.text_lengths
        q_tiling = tiling if block_mask.all_queries else None
    query, key, value = as_autocast(query, key, value)
    _check(query, key, value, block_mask, enable_gqa)
    if tiling is not None:
        key, value = tiling.zero_each((key, value), lengths)
    if q_tiling is not None:
        query = q_tiling.zero_padding(query, lengths)
    given = score_mod, block_mask, scale, enable_gqa, kernel_options, aux
    out, extra = _attention(query, key, value, *given)
    if q_tiling is not None:
        out = q_tiling.zero_padding(out, lengths)
    if return_lse:
        return out, extra.lse
    return out if return_aux is None else (out, extra)


def attend_zeroed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    chosen: ChosenTiles,
    *,
    enable_gqa: bool = False,
    kernel_options: Any = None,
    factor: float = 1.0,
) -> Tensor:
    """:func:`flex_attention` of tensors that hold zeros in padding, without another pass over them.

    What stands in the padding of its output is finite, and of no meaning; so must its gradient be.
    On CUDA q is multiplied by :func:`query_factor`, rather than each score: here, which
    ``torch.compile`` fuses into what writes q, unless what has written it did so (``factor``).
    """
    of_bits = _keeps_bits(query, key, value, kernel_options)  # then that graph makes the lists
    mask = chosen if of_bits else chosen.mask()
    _check(query, key, value, mask, enable_gqa)
    scale = None
    if query.is_cuda:
        due = query_factor(query, key, value, kernel_options)
        query = query * due if factor == 1 and due != 1 else query
        scale, kernel_options = configs.folded_scale(
            query.shape[-1], _trains(query, key, value), kernel_options
        )
    given = None, mask, scale, enable_gqa, kernel_options, None
    return _attention(query, key, value, *given)[0]


def query_factor(query: Tensor, key: Tensor, value: Tensor, kernel_options: Any = None) -> float:
    """What :func:`attend_zeroed` has q multiplied by, so that the ``scale`` it hands over is
    what is left of ``1 / sqrt(D)``; 1 where the scale is taken itself, on CPU and by FLASH."""
    if not query.is_cuda or (kernel_options or {}).get("BACKEND") == "FLASH":
        return 1.0
    scale, _ = configs.folded_scale(query.shape[-1], _trains(query, key, value), kernel_options)
    return 1 / (math.sqrt(query.shape[-1]) * scale)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Any,
    block_mask: BlockMask | ChosenTiles | None,
    scale: float | None,
    enable_gqa: bool,
    kernel_options: Any,
    aux: AuxRequest | None,
) -> tuple[Tensor, Any]:
    """Output and AuxOutput; the device decides."""
    if query.device.type != "cpu":
        if has_tangent(query, key, value):  # which a compiled graph would drop
            refuse_tangents("flex_attention on CUDA")
        given = score_mod, block_mask, scale, enable_gqa, kernel_options, aux
        return _torch_attention(query, key, value, *given)
    engine = (kernel_options or {}).get("BACKEND", "AUTO")
    if engine != "AUTO":
        raise ValueError(f"BACKEND={engine!r} is an engine for CUDA; the tensors are on a CPU")
    assert not isinstance(block_mask, ChosenTiles), "whose lists are made in CUDA's graph"
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if score_mod is None and not (aux is not None and aux.max_scores):
        return _cpu_attention(query, key, value, block_mask, scale)
    vmapped = [] if torch.compiler.is_compiling() else filter(is_batchedtensor, (query, key, value))
    if _trains(*map(get_unwrapped, vmapped)):  # a chunk would be made again when vmap has ended
        raise NotImplementedError(
            "score_mod on a CPU has no backward under torch.func.vmap: make the dimension part of "
            "the batch"
        )
    given = score_mod or (lambda score, *_: score), block_mask, scale, aux or AuxRequest()
    return score_mod_attention(query, key, value, *given)


def _check(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | ChosenTiles | None, gqa: bool
) -> None:
    if isinstance(mask, TileBlockMask | ChosenTiles) and mask.tiling is not None:
        tiled = {"query": q} if mask.all_queries else {}
        for name, x in {**tiled, "key": k, "value": v}.items():
            mask.tiling.check_tiled(x, name)
    check_alike(query=q, key=k, value=v)
    check_heads(q, k, gqa, ("query", "key"))
    if q.is_cuda and (q.shape[-1] % 16 or v.shape[-1] % 16):
        raise ValueError(
            f"head dims {q.shape[-1]} and {v.shape[-1]} must be multiples of 16 on CUDA: pad them"
        )
    if mask is None:
        return
    if (q.shape[-2], k.shape[-2]) != tuple(mask.seq_lengths):
        raise ValueError(
            f"query and key have {q.shape[-2]} and {k.shape[-2]} rows; the block mask is for "
            f"{mask.seq_lengths[0]} and {mask.seq_lengths[1]}: make it for these lengths"
        )
    rows = mask.bits if isinstance(mask, ChosenTiles) else mask.kv_num_blocks
    if rows.device != q.device:
        raise ValueError(f"the block mask is on {rows.device}, query on {q.device}")
    for size, due, what in zip(rows.shape, q.shape, ("batch", "heads")):
        if size not in (1, due):
            raise ValueError(f"the block mask has {what} {size}, query {due}: give it 1 or {due}")
    has_lists = isinstance(mask, ChosenTiles) or mask.q_indices is not None
    if _trains(q, k, v) and q.is_cuda and not has_lists:
        raise ValueError(
            "the block mask has no query-side lists, which the backward reads: it was built under "
            "no_grad; build it with gradients enabled (none flows through it)"
        )


def _trains(*inputs: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def _keeps_bits(q: Tensor, k: Tensor, v: Tensor, kernel_options: Any) -> bool:
    """Whether :func:`_attend_to_bits` is for this call: eager code that trains on CUDA."""
    of_triton = q.is_cuda and (kernel_options or {}).get("BACKEND") != "FLASH"
    return of_triton and not torch.compiler.is_compiling() and _trains(q, k, v)


def _attend_to_bits(q: Tensor, k: Tensor, v: Tensor, chosen: ChosenTiles, **options: Any) -> Any:
    """Compiled, this keeps the bits of a choice for the backward, a thirtieth of its lists."""
    return torch_flex_attention(q, k, v, block_mask=chosen.mask().within_tiles(), **options)


_compiled_flex_attention = torch.compile(torch_flex_attention, dynamic=False, fullgraph=True)
_compiled_attend_to_bits = torch.compile(_attend_to_bits, dynamic=False, fullgraph=True)


def _torch_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    score_mod: Any,
    mask: BlockMask | ChosenTiles | None,
    scale: float | None,
    enable_gqa: bool,
    kernel_options: Any,
    aux: AuxRequest | None,
) -> tuple[Tensor, Any]:
    if q.is_cuda and (kernel_options or {}).get("BACKEND") == "FLASH":
        assert not isinstance(mask, ChosenTiles)
        configs.check_flash(q, mask, _trains(q, k, v))  # and keeps the whole mask_mod
    elif isinstance(mask, TileBlockMask | ChosenTiles) and mask.tiling is not None and q.is_cuda:
        of_bits = _keeps_bits(q, k, v, kernel_options)
        kernel_options = configs.options_for(q, mask, kernel_options or {}, score_mod is not None)
        if isinstance(mask, TileBlockMask):
            mask = mask.made_of if of_bits else mask.within_tiles()
    options: dict[str, Any] = dict(
        score_mod=score_mod,
        scale=scale,
        enable_gqa=enable_gqa,
        kernel_options=kernel_options,
        return_aux=aux,
    )
    if torch.compiler.is_compiling() and not isinstance(mask, ChosenTiles):
        result = torch_flex_attention(q, k, v, block_mask=mask, **options)
    else:
        with torch._dynamo.config.patch(recompile_limit=_RECOMPILE_LIMIT):
            if isinstance(mask, ChosenTiles):
                result = _compiled_attend_to_bits(q, k, v, mask, **options)
            else:
                result = _compiled_flex_attention(q, k, v, block_mask=mask, **options)
    return result if aux is not None else (result, None)


def _cpu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask | None,
    scale: float,
) -> tuple[Tensor, Any]:
    k, v = (x.expand(q.shape[0], *x.shape[1:]) for x in (k, v))
    if mask is None:
        q_block, kv_block = 64, k.shape[-2]
        full = torch.ones(1, 1, -(-q.shape[-2] // q_block), dtype=torch.int32)
        lists = full, torch.zeros_like(full)[..., None], None, None, None
    else:
        q_block, kv_block = mask.BLOCK_SIZE
        full = mask.full_kv_num_blocks, mask.full_kv_indices
        tiling = getattr(mask, "tiling", None)
        if tiling is not None and not has_partial_tiles(tiling):
            lists = *full, None, None, None
        else:
            partial = mask.kv_num_blocks, mask.kv_indices
            lists = *full, *partial, _partial_mask(mask, q, k)
    out, lse, *_ = block_sparse_attention(q, k, v, *lists, q_block, kv_block, scale)
    return out, AuxOutput(lse=lse)


def _partial_mask(mask: BlockMask, q: Tensor, k: Tensor) -> Tensor:
    """``mask_mod`` by blocks: bool, broadcastable to ``[B, H, nq, nk, q_block, kv_block]``.

    Between tiles only the padding of key tiles is masked; any other mask is evaluated densely,
    at ``Lq * Lk`` bytes for each of its own batches and heads.
    """
    (q_block, kv_block), tiling = mask.BLOCK_SIZE, getattr(mask, "tiling", None)
    if isinstance(mask, TileBlockMask) and tiling is not None:
        valid = tiling.valid(q.device, mask.text_lengths)
        return valid.view(-1, 1, 1, tiling.key_tiles, 1, tiling.rows)
    q_len, kv_len = q.shape[-2], k.shape[-2]
    batch, heads = mask.kv_num_blocks.shape[:2]
    dense = create_mask(mask.mask_mod, batch, heads, q_len, kv_len, "cpu")
    dense = F.pad(dense, (0, -kv_len % kv_block, 0, -q_len % q_block))
    return dense.unflatten(3, (-1, kv_block)).unflatten(2, (-1, q_block)).transpose(3, 4)
