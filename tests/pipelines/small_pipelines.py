"""Small random pipelines of diffusers around the small models, without text encoders."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    LTXPipeline,
    WanPipeline,
)
from small_models import as_dtype, randn
from torch import Tensor, nn

Size = tuple[int, int, int]
COMMON: dict[str, Any] = dict(latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1)


@dataclass(frozen=True)
class Pipeline:
    """A family's own pipeline; what stands for two prompts; frames, height and width of clips."""

    cls: type[DiffusionPipeline]
    vae: Callable[[], nn.Module]
    texts: Callable[[], dict[str, Any]]
    scheduler: Callable[[], Any] = FlowMatchEulerDiscreteScheduler
    encoders: tuple[str, ...] = ("text_encoder", "tokenizer")
    sizes: tuple[Size, Size] = ((9, 48, 80), (5, 64, 48))  # 3x3x5 and 2x4x3 tokens

    @property
    def no_text(self) -> dict[str, None]:
        return dict.fromkeys(self.encoders)

    def build(self, transformer: nn.Module) -> Any:
        torch.manual_seed(0)
        parts = dict(vae=self.vae().eval(), scheduler=self.scheduler())
        return self.cls(**self.no_text, **parts, transformer=transformer)

    def clip(self, pipe: Any, size: Size, output_type: str = "latent") -> Tensor:
        """Two steps from the same noise, in the transformer's dtype."""
        pipe.set_progress_bar_config(disable=True)
        size_of = dict(zip(("num_frames", "height", "width"), size))
        noise = pipe.prepare_latents(
            batch_size=2,
            num_channels_latents=pipe.transformer.config.in_channels,
            **size_of,
            dtype=torch.float32,
            device=torch.device("cpu"),
            generator=torch.Generator().manual_seed(1),
        )
        tensors = dict(latents=noise, **self.texts())
        given = {name: as_dtype(x, pipe.transformer.dtype) for name, x in tensors.items()}
        return pipe(**given, **size_of, num_inference_steps=2, output_type=output_type).frames


def wan_vae() -> nn.Module:
    sizes = dict(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, attn_scales=[])
    scale = dict(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    return AutoencoderKLWan(**sizes, **scale, temperal_downsample=[False, True, True])


def hunyuan_video_vae() -> nn.Module:
    blocks = dict(
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
    )
    return AutoencoderKLHunyuanVideo(**COMMON, **blocks, norm_num_groups=4)


def cogvideox_vae() -> nn.Module:
    blocks = dict(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
    )
    return AutoencoderKLCogVideoX(**COMMON, **blocks, norm_num_groups=2)


def ltx_vae() -> nn.Module:
    halvings = (True, True, True, False)
    decoder = dict(
        decoder_block_out_channels=(8,) * 4,
        decoder_layers_per_block=(1,) * 5,
        decoder_spatio_temporal_scaling=halvings,
    )
    encoder = dict(COMMON, latent_channels=8, layers_per_block=(1,) * 5)
    return AutoencoderKLLTXVideo(
        **encoder, **decoder, spatio_temporal_scaling=halvings, patch_size=1
    )


def positive_and_negative(tokens: int) -> dict[str, Any]:
    return dict(prompt_embeds=randn(2, 2, tokens, 8), negative_prompt_embeds=randn(3, 2, tokens, 8))


def hunyuan_video_texts() -> dict[str, Any]:
    return dict(
        prompt_embeds=randn(2, 2, 9, 8),
        pooled_prompt_embeds=randn(3, 2, 8),
        prompt_attention_mask=(torch.arange(9) < torch.tensor([[3], [9]])).long(),
    )


def ltx_texts() -> dict[str, Any]:
    masks = dict.fromkeys(("prompt_attention_mask", "negative_prompt_attention_mask"))
    return positive_and_negative(6) | {name: torch.ones(2, 6) for name in masks}


PIPELINES = {
    "wan": Pipeline(WanPipeline, wan_vae, lambda: positive_and_negative(6)),
    "hunyuan": Pipeline(
        HunyuanVideoPipeline,
        hunyuan_video_vae,
        hunyuan_video_texts,
        encoders=("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    ),
    "cogvideox": Pipeline(
        CogVideoXPipeline,
        cogvideox_vae,
        lambda: positive_and_negative(7),
        CogVideoXDDIMScheduler,
    ),
    # 2x4x12 and 3x8x4 tokens
    "ltx": Pipeline(LTXPipeline, ltx_vae, ltx_texts, sizes=((9, 32, 96), (17, 64, 32))),
}
