"""Wan 2.1 and 2.2 (WanTransformer3DModel), and VACE, whose control has blocks of its own."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor

from flexsparse.diffusers.call import Grid, Processor, split_heads
from flexsparse.diffusers.families import Family, layers_of, register


class WanProcessor(Processor):
    """In place of diffusers' WanAttnProcessor, in self-attention."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        given = dict(encoder_hidden_states=encoder_hidden_states, attention_mask=attention_mask)
        self.refuse(**given)
        tiling = self.call.tiling(hidden_states.shape[1], rotary=rotary_emb)
        x = tiling.to_tiles(hidden_states)
        if attn.fused_projections:
            q, k, v = attn.to_qkv(x).chunk(3, -1)
        else:
            q, k, v = attn.to_q(x), attn.to_k(x), attn.to_v(x)
        q, k, v = (split_heads(y, attn.heads) for y in (attn.norm_q(q), attn.norm_k(k), v))
        if rotary_emb is not None:  # [1, tokens, 1, D], each angle twice
            rotary = self.call.rotary(rotary_emb, tiling)
            q, k = rotate_pairs(q, *rotary), rotate_pairs(k, *rotary)
        out = self.attend(attn, x, q, k, v, tiling)
        return attn.to_out[1](attn.to_out[0](out))


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channels (2i, 2i + 1) of x by angles that stand twice in cos and sin, computed in
    theirs, returned in x's dtype."""
    return turned_pairs(x, cos, sin).to(x.dtype)


def turned_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same in the dtype that it is computed in."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack((-odd, even), -1).flatten(-2) * sin


def wan_grid(model: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Grid:
    """The latent is ``[B, C, T, H, W]``."""
    t, h, w = (s // p for s, p in zip(hidden_states.shape[2:], model.config.patch_size))
    return t, h, w


_processors = {WanAttnProcessor: WanProcessor}
_layers = layers_of("blocks", attention="attn1")
register(Family("WanTransformer3DModel", wan_grid, _layers, _processors))
_layers = layers_of("vace_blocks", "blocks", attention="attn1")
register(Family("WanVACETransformer3DModel", wan_grid, _layers, _processors))
