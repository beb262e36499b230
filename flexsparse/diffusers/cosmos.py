"""Cosmos 1, 2 and 2.5 (CosmosTransformer3DModel): self-attention over the video alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_cosmos import CosmosAttnProcessor2_0
from torch import Tensor

from flexsparse.diffusers.call import Processor, split_heads
from flexsparse.diffusers.families import Family, layers_of, register
from flexsparse.diffusers.wan import wan_grid

rotate: Any = apply_rotary_emb  # whose annotations are those of another mode


class CosmosProcessor(Processor):
    """In place of diffusers' CosmosAttnProcessor2_0, in self-attention."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        given = dict(encoder_hidden_states=encoder_hidden_states, attention_mask=attention_mask)
        self.refuse(**given)
        tiling = self.call.tiling(hidden_states.shape[1], rotary=image_rotary_emb)
        x = tiling.to_tiles(hidden_states)
        q, k, v = (split_heads(y, attn.heads) for y in (attn.to_q(x), attn.to_k(x), attn.to_v(x)))
        q, k = attn.norm_q(q), attn.norm_k(k)
        if image_rotary_emb is not None:
            rotary: Any = self.call.rotary(image_rotary_emb, tiling)
            q, k = (rotate(y, rotary, use_real_unbind_dim=-2) for y in (q, k))
        out = self.attend(attn, x, q, k, v, tiling)
        return attn.to_out[1](attn.to_out[0](out))


def as_given(timestep: Tensor) -> Tensor:
    """The pipelines of Cosmos 2 and 2.5 hand over sigma / (sigma + 1), the noise level itself."""
    return timestep.double()


def of_log_sigma(timestep: Tensor) -> Tensor:
    """Those of Cosmos 1 log(sigma) / 4, as EDM."""
    return (4 * timestep.double()).sigmoid()


@dataclass(frozen=True)
class CosmosFamily(Family):
    def of(self, model: Any) -> Family:
        first = model.config.extra_pos_embed_type is not None
        return replace(self, noise=of_log_sigma) if first else self


_processors = {CosmosAttnProcessor2_0: CosmosProcessor}
_layers = layers_of("transformer_blocks", attention="attn1")
register(CosmosFamily("CosmosTransformer3DModel", wan_grid, _layers, _processors, as_given))
