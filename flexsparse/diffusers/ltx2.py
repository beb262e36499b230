"""LTX-2: a stream of video beside one of audio, which stays dense, as what passes between them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_ltx2 import (
    LTX2AudioVideoAttnProcessor,
    LTX2PerturbedAttnProcessor,
    apply_interleaved_rotary_emb,
    apply_split_rotary_emb,
)
from torch import Tensor

from flexsparse.diffusers.call import Grid, Processor, split_heads
from flexsparse.diffusers.families import Family, layers_of, register

Rotary = tuple[Tensor, Tensor]


class LTX2Processor(Processor):
    """In place of diffusers' LTX2AudioVideoAttnProcessor, in self-attention over the video."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        query_rotary_emb: Rotary | None = None,
        key_rotary_emb: Rotary | None = None,
    ) -> Tensor:
        given = dict(encoder_hidden_states=encoder_hidden_states, attention_mask=attention_mask)
        self.refuse(**given)
        rotary = query_rotary_emb, key_rotary_emb
        return self.out(attn, hidden_states, self.attended(attn, hidden_states, *rotary))

    def attended(
        self, attn: Any, hidden_states: Tensor, of_query: Rotary | None, of_key: Rotary | None
    ) -> Tensor:
        tiling = self.call.tiling(hidden_states.shape[1], None, of_query)
        x = tiling.to_tiles(hidden_states)
        q, k, v = attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(x)), attn.to_v(x)
        if of_query is not None:
            split = attn.rope_type == "split"
            rotate: Any = apply_split_rotary_emb if split else apply_interleaved_rotary_emb
            of_key = of_query if of_key is None else of_key
            q = rotate(q, self.call.rotary(of_query, tiling, tuple))
            k = rotate(k, self.call.rotary(of_key, tiling, tuple))
        q, k, v = (split_heads(y, attn.heads) for y in (q, k, v))
        return self.attend(attn, x, q, k, v, tiling)

    def out(self, attn: Any, hidden_states: Tensor, attended: Tensor) -> Tensor:
        """The layer's output, with the gates of heads that LTX-2.3 has."""
        if attn.to_gate_logits is not None:
            gates = 2 * torch.sigmoid(attn.to_gate_logits(hidden_states))
            attended = (attended.unflatten(2, (attn.heads, -1)) * gates[..., None]).flatten(2)
        return attn.to_out[1](attn.to_out[0](attended))


class LTX2PerturbedProcessor(LTX2Processor):
    """In place of LTX2PerturbedAttnProcessor, whose guidance has values in place of attention in
    some layers, for those of a batch whose ``perturbation_mask`` is 0."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        query_rotary_emb: Rotary | None = None,
        key_rotary_emb: Rotary | None = None,
        perturbation_mask: Tensor | None = None,
        all_perturbed: bool | Tensor | None = None,
    ) -> Tensor:
        given = dict(encoder_hidden_states=encoder_hidden_states, attention_mask=attention_mask)
        self.refuse(**given)
        if all_perturbed is None:
            all_perturbed = perturbation_mask is not None and (perturbation_mask == 0).all()
        if all_perturbed:
            return self.out(attn, hidden_states, attn.to_v(hidden_states))
        out = self.attended(attn, hidden_states, query_rotary_emb, key_rotary_emb)
        if perturbation_mask is not None:
            out = torch.lerp(attn.to_v(hidden_states), out, perturbation_mask)
        return self.out(attn, hidden_states, out)


def ltx2_grid(
    model: Any,
    hidden_states: Tensor,
    audio_hidden_states: Any = None,
    encoder_hidden_states: Any = None,
    audio_encoder_hidden_states: Any = None,
    timestep: Any = None,
    audio_timestep: Any = None,
    sigma: Any = None,
    audio_sigma: Any = None,
    encoder_attention_mask: Any = None,
    audio_encoder_attention_mask: Any = None,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    *args: Any,
    **kwargs: Any,
) -> Grid:
    """Sizes of the latent in tokens, as LTX2Pipeline gives them. Tokens of conditions, which
    LTX2ConditionPipeline appends to those of the video, attend to all, and all to them."""
    if num_frames is None or height is None or width is None:
        raise ValueError(
            "LTX-2 was called without num_frames, height and width, so that its tokens have no "
            "grid: give them, as LTX2Pipeline and LTX2ConditionPipeline do"
        )
    return num_frames, height, width


_processors = {
    LTX2AudioVideoAttnProcessor: LTX2Processor,
    LTX2PerturbedAttnProcessor: LTX2PerturbedProcessor,
}
_layers = layers_of("transformer_blocks", attention="attn1")
register(Family("LTX2VideoTransformer3DModel", ltx2_grid, _layers, _processors))
