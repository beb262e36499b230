"""Allegro: self-attention over the video; a rotary table for each axis, and each token's places."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import AllegroAttnProcessor2_0
from torch import Tensor

from flexsparse.diffusers.call import Processor, split_heads
from flexsparse.diffusers.families import Family, layers_of, register
from flexsparse.diffusers.hunyuan_video import hunyuan_video_grid


class AllegroProcessor(Processor):
    """In place of diffusers' AllegroAttnProcessor2_0, in self-attention."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        image_rotary_emb: tuple[Any, tuple[Tensor, ...]] | None = None,
    ) -> Tensor:
        given = dict(encoder_hidden_states=encoder_hidden_states, attention_mask=attention_mask)
        self.refuse(**given, temb=temb)
        tables, places = (None, None) if image_rotary_emb is None else image_rotary_emb
        tiling = self.call.tiling(hidden_states.shape[1], rotary=places)
        x = tiling.to_tiles(hidden_states)
        q, k, v = (split_heads(y, attn.heads) for y in (attn.to_q(x), attn.to_k(x), attn.to_v(x)))
        if places is not None:  # [1, tokens] along T, H and W
            rotary = self.call.rotary(places, tiling, lambda x: of_places(tables, x))
            q, k = (turn(y, *rotary) for y in (q, k))
        out = self.attend(attn, x, q, k, v, tiling)
        return attn.to_out[1](attn.to_out[0](out))


def of_places(tables: Any, places: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Cosines and sines ``[tokens, D]``, of each axis one after the other."""
    of_axes = zip(*([x[place[0]] for x in table] for table, place in zip(tables, places)))
    return tuple(torch.cat(x, -1) for x in of_axes)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of each axis' third of the channels."""
    a, b = x.unflatten(-1, (3, 2, -1)).unbind(-2)
    turned = torch.stack((-b, a), -2).flatten(-3)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)


_processors = {AllegroAttnProcessor2_0: AllegroProcessor}
_layers = layers_of("transformer_blocks", attention="attn1")
register(Family("AllegroTransformer3DModel", hunyuan_video_grid, _layers, _processors))
