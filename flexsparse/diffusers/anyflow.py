"""AnyFlow, of Wan's shape, whose rotary table is complex."""

from __future__ import annotations

from typing import Any

from diffusers.models.transformers.transformer_anyflow import AnyFlowAttnProcessor
from torch import Tensor

from flexsparse.diffusers.call import Grid, Processor, split_heads
from flexsparse.diffusers.families import Family, layers_of, register
from flexsparse.diffusers.wan import rotate_pairs


class AnyFlowProcessor(Processor):
    """In place of diffusers' AnyFlowAttnProcessor, in self-attention."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: dict[str, Tensor] | None = None,
    ) -> Tensor:
        given = dict(encoder_hidden_states=encoder_hidden_states, attention_mask=attention_mask)
        self.refuse(**given)
        table = None if rotary_emb is None else rotary_emb["query"]  # the key's is the same
        tiling = self.call.tiling(hidden_states.shape[1], rotary=table)
        x = tiling.to_tiles(hidden_states)
        q, k, v = attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(x)), attn.to_v(x)
        q, k, v = (split_heads(y, attn.heads) for y in (q, k, v))
        if table is not None:
            rotary = self.call.rotary(table, tiling, of_complex)
            q, k = rotate_pairs(q, *rotary), rotate_pairs(k, *rotary)
        out = self.attend(attn, x, q, k, v, tiling)
        return attn.to_out[1](attn.to_out[0](out))


def of_complex(table: Tensor) -> tuple[Tensor, Tensor]:
    """``[1, 1, tokens, D / 2]``."""
    return table.real.repeat_interleave(2, -1), table.imag.repeat_interleave(2, -1)


def anyflow_grid(model: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Grid:
    """The latent is ``[B, T, C, H, W]``."""
    t, _, h, w = hidden_states.shape[1:]
    _, p, q = model.config.patch_size
    return t, h // p, w // q


_processors = {AnyFlowAttnProcessor: AnyFlowProcessor}
_layers = layers_of("blocks", attention="attn1")
register(Family("AnyFlowTransformer3DModel", anyflow_grid, _layers, _processors))
