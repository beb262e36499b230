"""Wan 2.1 and 2.2 (WanTransformer3DModel), VACE, whose control has blocks of its own, and Animate
and ChronoEdit, whose references are frames and channels of the latent."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers import (
    transformer_chronoedit,
    transformer_wan,
    transformer_wan_animate,
)
from torch import Tensor

from flexsparse.diffusers.call import Grid, Processor, heads_first, split_heads
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
        q, k, v = (split_heads(y, attn.heads) for y in project(attn, x))
        if rotary_emb is not None:  # [1, tokens, 1, D], each angle twice
            rotary = self.call.rotary(rotary_emb, tiling, lambda x: as_read(*heads_first(x)))
            q, k = rotate_pairs(q, *rotary), rotate_pairs(k, *rotary)
        out = self.attend(attn, x, q, k, v, tiling)
        return attn.to_out[1](attn.to_out[0](out))


def project(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normed q and k, and v, whether they are fused or not: ``[B, L, H * D]``."""
    if attn.fused_projections:
        q, k, v = attn.to_qkv(x).chunk(3, -1)
    else:
        q, k, v = attn.to_q(x), attn.to_k(x), attn.to_v(x)
    return attn.norm_q(q), attn.norm_k(k), v


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channels (2i, 2i + 1) of x by angles that stand twice in cos and sin, computed in
    theirs, returned in x's dtype."""
    return turned_pairs(x, cos, sin).to(x.dtype)


def turned_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same in the dtype that it is computed in."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack((-odd, even), -1).flatten(-2) * sin


def as_read(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """What diffusers reads of tables in which each angle stands twice, or should: ChronoEdit's are
    shifted by a channel where a third of a head is odd."""
    return cos[..., ::2].repeat_interleave(2, -1), sin[..., 1::2].repeat_interleave(2, -1)


def wan_grid(model: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Grid:
    """The latent is ``[B, C, T, H, W]``."""
    t, h, w = (s // p for s, p in zip(hidden_states.shape[2:], model.config.patch_size))
    return t, h, w


_modules = transformer_wan, transformer_wan_animate, transformer_chronoedit
_processors = {module.WanAttnProcessor: WanProcessor for module in _modules}
_layers = layers_of("blocks", attention="attn1")
register(Family("WanTransformer3DModel", wan_grid, _layers, _processors))
register(Family("WanAnimateTransformer3DModel", wan_grid, _layers, _processors))
register(Family("ChronoEditTransformer3DModel", wan_grid, _layers, _processors))
_layers = layers_of("vace_blocks", "blocks", attention="attn1")
register(Family("WanVACETransformer3DModel", wan_grid, _layers, _processors))
