"""Kandinsky 5 and 6: layers with projections named ``to_query``, and NABLA as a rule of ours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers.models.transformers.transformer_kandinsky import Kandinsky5AttnProcessor
from diffusers.models.transformers.transformer_kandinsky6 import Kandinsky6AttnProcessor
from torch import Tensor

from flexsparse.choice.places import Neighbourhood
from flexsparse.choice.rules import Mass
from flexsparse.choice.union import Union, Unites
from flexsparse.diffusers.call import Grid, Packed, Processor, split_heads, to_tiles
from flexsparse.diffusers.families import Family, layers_of, register
from flexsparse.diffusers.wan import turned_pairs
from flexsparse.slots import VSA
from flexsparse.tiling import VideoTiling

_TILE = 1, 8, 8  # of NABLA


class _KandinskyProcessor(Processor):
    def project(self, attn: Any, x: Tensor) -> list[Tensor]:
        linears = attn.to_query, attn.to_key, attn.to_value
        return [split_heads(linear(x), attn.num_heads) for linear in linears]


class Kandinsky5Processor(_KandinskyProcessor):
    """In place of diffusers' Kandinsky5AttnProcessor, in self-attention over the video.

    It obeys ``sparse_params`` where they ask for what the layer's rule is, see :func:`nabla`.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        rotary_emb: Tensor | None = None,
        sparse_params: dict[str, Any] | None = None,
    ) -> Tensor:
        self.refuse(encoder_hidden_states=encoder_hidden_states)
        tiling = self.call.tiling(hidden_states.shape[1], rotary=rotary_emb)
        order = self.call.order(tiling, rotary_emb)
        if sparse_params is not None:
            _check_nabla(sparse_params, attn.slot, self.call.band, tiling)
        x = to_tiles(hidden_states, tiling, order)
        q, k, v = self.project(attn, x)
        q, k = attn.query_norm(q.float()).type_as(q), attn.key_norm(k.float()).type_as(k)
        if rotary_emb is not None:
            rotary = self.call.rotary(rotary_emb, tiling, _pair)
            q, k = (_rotate(y, rotary).to(torch.bfloat16).to(y.dtype) for y in (q, k))
        return attn.out_layer(self.attend(attn, x, q, k, v, tiling, order=order))


class Kandinsky6Processor(_KandinskyProcessor):
    """In place of diffusers' Kandinsky6AttnProcessor, in self-attention over the video."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        rotary_emb: Tensor | None = None,
        rotary_emb_kv: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        self.refuse(encoder_hidden_states=encoder_hidden_states, attn_mask=attn_mask)
        tiling = self.call.tiling(hidden_states.shape[1], None, rotary_emb)
        x = tiling.to_tiles(hidden_states)
        q, k, v = self.project(attn, x)
        q, k = attn.query_norm(q), attn.key_norm(k)
        if rotary_emb is not None:
            q = _rotate(q, self.call.rotary(rotary_emb, tiling, _single_pair)).to(q.dtype)
        if rotary_emb_kv is not None:
            k = _rotate(k, self.call.rotary(rotary_emb_kv, tiling, _single_pair)).to(k.dtype)
        return attn.out_layer(self.attend(attn, x, q, k, v, tiling))


def _pair(rope: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each twice, ``[B or 1, 1, tokens, D]``, of the matrices ``[..., tokens, 1,
    D / 2, 2, 2]``."""
    cos, sin = rope[..., 0, :, 0, 0], rope[..., 0, :, 1, 0]
    cos, sin = (x.repeat_interleave(2, -1)[..., None, :, :] for x in (cos, sin))
    return cos, sin


def _single_pair(rope: Tensor) -> tuple[Tensor, Tensor]:
    return _pair(rope.float())


def _rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    return turned_pairs(x.float(), *rotary)


def nabla(model: Any) -> VSA:
    """The attention that a Kandinsky 5 with ``attention_type="nabla"`` was trained with, as a
    method: ``sparsify(pipe.transformer, nabla(pipe.transformer))``.

    NABLA (arXiv 2507.13546) takes the tiles of 1x8x8 tokens that hold a share P of the coarse
    attention, and those of a window around the query's.

    Raises:
        ValueError: a model that was not.
    """
    config = getattr(model, "_orig_mod", model).config
    if (kind := config.get("attention_type")) != "nabla":
        raise ValueError(
            f"this {config.get('_class_name', type(model).__name__)} has attention_type={kind!r}, "
            f"not 'nabla': give sparsify a VSA(...) or BSA(...)"
        )
    names = "attention_P", "attention_wT", "attention_wH", "attention_wW"
    rule = _rule_of(*(config[name] for name in names))
    return VSA(top_k=rule, tile=_TILE, gates=False)


def _rule_of(share: float, *window: int) -> Unites:
    t, h, w = (size // 2 * 2 + 1 for size in window)
    return Mass(share) | Neighbourhood((t, h, w))


def _check_nabla(
    sparse_params: dict[str, Any], slot: Any, band: str | None, tiling: VideoTiling
) -> None:
    """Raise ValueError unless a layer's rule is what the call's ``sparse_params`` ask for, or it is
    dense by the noise level."""
    share, *window = (sparse_params[name] for name in ("P", "wT", "wH", "wW"))
    due, rule = _rule_of(share, *window), slot.rule(band)
    same = isinstance(rule, Union) and isinstance(due, Union) and {*rule.parts} == {*due.parts}
    if rule is None:
        return
    if not same or tiling.tile != _TILE or not hasattr(slot, "gate_coarse"):
        raise ValueError(
            f"sparse_params ask for NABLA with P={share} and a window of {window} tiles of {_TILE},"
            f" and this layer has another method, with tiles of {tiling.tile}: sparsify(model, "
            f"nabla(model)), or model.register_to_config(attention_type='regular'), after which "
            f"pipelines ask for nothing"
        )


def kandinsky5_grid(
    model: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Any = None,
    timestep: Any = None,
    pooled_projections: Any = None,
    visual_rope_pos: Any = None,
    text_rope_pos: Any = None,
    scale_factor: Any = None,
    sparse_params: dict[str, Any] | None = None,
    *args: Any,
    **kwargs: Any,
) -> Grid | Packed:
    """The latent is ``[B, T, H, W, C]``; with ``to_fractal`` its tokens come tile by tile."""
    grid = _grid(model, hidden_states)
    if sparse_params is None or not sparse_params["to_fractal"]:
        return grid
    tiling = VideoTiling(grid, _TILE)
    rows = torch.arange(tiling.padded_tokens, device=hidden_states.device)
    return Packed(grid, tiling.from_tiles(rows[:, None])[:, 0])


def kandinsky6_grid(
    model: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Any = None,
    pooled_projections: Any = None,
    timestep: Any = None,
    audio_hidden_states: Any = None,
    visual_rope_pos: tuple[Tensor, Tensor, Tensor] | None = None,
    *args: Any,
    **kwargs: Any,
) -> Grid:
    """The latent is ``[B, T, H, W, C]``. Of a reference frame that the pipeline appends, at a place
    in time that does not go on, the tokens are none of the video's: all attend to them."""
    t, h, w = _grid(model, hidden_states)
    return (t if visual_rope_pos is None else _frames_read(visual_rope_pos[0])), h, w


def _frames(places: Tensor) -> int:
    """Frames from the first on whose places in time rise."""
    stops = (places.cpu().diff() <= 0).nonzero()
    return int(stops[0]) + 1 if len(stops) else len(places)


_frames_read: Any = torch.compiler.disable(_frames)  # from the device


def _grid(model: Any, hidden_states: Tensor) -> Grid:
    t, h, w = (s // p for s, p in zip(hidden_states.shape[1:4], model.config.patch_size))
    return t, h, w


_family: Callable[..., Family] = partial(Family, query="to_query", heads="num_heads")
_processors: dict[type, type[Processor]] = {Kandinsky5AttnProcessor: Kandinsky5Processor}
_layers = layers_of("visual_transformer_blocks", attention="self_attention")
register(_family("Kandinsky5Transformer3DModel", kandinsky5_grid, _layers, _processors))
_processors = {Kandinsky6AttnProcessor: Kandinsky6Processor}
_layers = layers_of("visual_transformer_blocks", attention="video_dec_block.self_attention")
register(_family("Kandinsky6Transformer3DModel", kandinsky6_grid, _layers, _processors))
