"""HunyuanVideo 1.5: pictures, glyphs and words join the video, behind it, with padding last."""

from __future__ import annotations

from diffusers.models.transformers.transformer_hunyuan_video15 import HunyuanVideo15AttnProcessor2_0
from torch import Tensor

from flexsparse.diffusers.families import Family, layers_of, register
from flexsparse.diffusers.hunyuan_video import HunyuanVideoProcessor, hunyuan_video_grid


class HunyuanVideo15Processor(HunyuanVideoProcessor):
    """In place of diffusers' HunyuanVideo15AttnProcessor2_0."""

    def text_lengths(self, mask: Tensor, tokens: int, text: int) -> Tensor:
        if mask.shape[1:] != (text,):
            self.refuse(attention_mask=mask)
        return mask.bool().sum(-1)


_processors = {HunyuanVideo15AttnProcessor2_0: HunyuanVideo15Processor}
_layers = layers_of("transformer_blocks", attention="attn")
register(Family("HunyuanVideo15Transformer3DModel", hunyuan_video_grid, _layers, _processors))
