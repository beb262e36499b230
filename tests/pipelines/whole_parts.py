"""What the small random pipelines of whole_pipelines.py are made of: VAEs, encoders of pictures,
samplers and what stands for a prompt."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler as Euler
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from small_models import SMALL, randn
from small_pipelines import positive_and_negative, wan_vae
from torch import Tensor, nn

Parts = dict[str, Any]
Texts = dict[str, Tensor]


def sized(name: str, **changes: Any) -> Callable[[], nn.Module]:
    """A small model with every weight awake, of the sizes that its pipeline wants."""

    def build() -> nn.Module:
        model = SMALL[name].build()
        config = {n: x for n, x in model.config.items() if not n.startswith("_")}
        return type(model)(**config | changes)

    return lambda: replace(SMALL[name], build=build).model(0)


def parts(vae: Callable[[], nn.Module], scheduler: Any = Euler, **more: Any) -> Callable[[], Parts]:
    made = more | dict(vae=vae, scheduler=scheduler)
    return lambda: {name: part() for name, part in made.items()}


def none() -> None:
    return None


def unipc(**changes: Any) -> Callable[[], Any]:
    flow = dict(prediction_type="flow_prediction", use_flow_sigmas=True)
    return lambda: diffusers.UniPCMultistepScheduler(**flow | changes)


def edm() -> Any:
    return diffusers.EDMEulerScheduler(sigma_max=80, prediction_type="epsilon")


def ltx2_vae() -> nn.Module:
    sizes = dict(block_out_channels=(8,), decoder_block_out_channels=(8,), layers_per_block=(1,))
    kinds = dict(down_block_types=("LTX2VideoDownBlock3D",), decoder_inject_noise=(False, False))
    steps = dict(downsample_type=("spatiotemporal",), upsample_type=("spatiotemporal",))
    steps |= dict(spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,))
    steps |= dict(upsample_residual=(False,), upsample_factor=(1,), decoder_layers_per_block=(1, 1))
    return diffusers.AutoencoderKLLTX2Video(**sizes, **kinds, **steps, latent_channels=8)


def ltx2_audio_vae() -> nn.Module:
    sizes = dict(base_channels=4, ch_mult=(1,), num_res_blocks=1, latent_channels=2)
    return diffusers.AutoencoderKLLTX2Audio(**sizes, mel_bins=8, resolution=32)


def ltx2_connectors() -> nn.Module:
    sizes = dict(num_attention_heads=2, attention_head_dim=4, num_layers=1)
    sizes |= dict(num_learnable_registers=None)
    both = {f"{x}_connector_{name}": n for x in ("video", "audio") for name, n in sizes.items()}
    return LTX2TextConnectors(caption_channels=8, text_proj_in_factor=1, **both)


def ltx2_vocoder() -> nn.Module:
    up = dict(upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2])
    resnet = dict(resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]])
    return LTX2Vocoder(in_channels=16, hidden_channels=8, **up, **resnet)


def hunyuan15_vae() -> nn.Module:
    sizes = dict(latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1)
    return diffusers.AutoencoderKLHunyuanVideo15(**sizes, spatial_compression_ratio=8)


def mochi_vae() -> nn.Module:
    return diffusers.AutoencoderKLMochi(
        encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5,
        add_attention_block=(False,) * 5,
    )


def cosmos_vae() -> nn.Module:
    channels = dict(encoder_block_out_channels=(8,) * 4, decode_block_out_channels=(8,) * 4)
    sizes = dict(latent_channels=4, attention_resolutions=(8,), resolution=64, num_layers=1)
    unscaled = dict(latents_mean=None, latents_std=None)
    return diffusers.AutoencoderKLCosmos(**channels, **sizes, **unscaled)


def allegro_vae() -> nn.Module:
    sizes = dict(block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=2)
    return diffusers.AutoencoderKLAllegro(**sizes, sample_size=128)


def magvit_vae() -> nn.Module:
    sizes = dict(block_out_channels=[8] * 4, layers_per_block=1, norm_num_groups=2)
    return diffusers.AutoencoderKLMagvit(**sizes, latent_channels=4)


def seeing(kind: str, dim: int) -> Callable[[], Any]:
    """An encoder of pictures of 8x8."""
    sizes = dict(hidden_size=dim, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
    config = getattr(transformers, f"{kind}VisionConfig")
    model = getattr(transformers, f"{kind}VisionModel")
    return lambda: model(config(**sizes, image_size=8, patch_size=4))


def clip() -> dict[str, Callable[[], Any]]:
    size = dict(height=8, width=8)
    processor = transformers.CLIPImageProcessorPil
    return dict(
        image_encoder=seeing("CLIP", 8),
        image_processor=lambda: processor(size=size, crop_size=size),
    )


def siglip() -> dict[str, Callable[[], Any]]:
    size = dict(height=8, width=8)
    processor = transformers.SiglipImageProcessorPil
    return dict(image_encoder=seeing("Siglip", 10), feature_extractor=lambda: processor(size=size))


def speaking() -> Any:
    """A tokenizer that writes chats down, as Cosmos 3's."""
    from folders import tokenizer

    found = tokenizer()
    found.add_special_tokens({"additional_special_tokens": ["<|vision_start|>"]})
    found.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return found


def cosmos3_parts() -> Parts:
    own = dict(sound_tokenizer=None, enable_safety_checker=False)
    return dict(vae=wan_vae(), scheduler=unipc()(), text_tokenizer=speaking(), **own)


def plain(tokens: int = 6) -> Callable[[], Texts]:
    return lambda: {name: x[:1] for name, x in positive_and_negative(tokens).items()}


def masked() -> Texts:
    """Nine tokens, of which the first five are text."""
    mask = (torch.arange(9) < 5).long()[None]
    both = dict(prompt_attention_mask=mask, negative_prompt_attention_mask=mask.clone())
    return plain(9)() | both


def kandinsky5_texts() -> Texts:
    found = {}
    for sign, tokens in (("", 6), ("negative_", 5)):
        found |= {
            f"{sign}prompt_embeds_qwen": randn(tokens, 1, tokens, 8),
            f"{sign}prompt_embeds_clip": randn(tokens + 1, 1, 8),
            f"{sign}prompt_cu_seqlens": torch.tensor([0, tokens], dtype=torch.int32),
        }
    return found


def kandinsky6_texts() -> Texts:
    pooled = dict(pooled_prompt_embeds=randn(4, 1, 8), negative_pooled_prompt_embeds=randn(5, 1, 8))
    return plain()() | pooled


def hunyuan15_texts() -> Texts:
    found = {}
    for seed, sign in enumerate(("", "negative_")):
        found |= {
            f"{sign}prompt_embeds": randn(seed, 1, 9, 8),
            f"{sign}prompt_embeds_mask": torch.ones(1, 9, dtype=torch.long),
            f"{sign}prompt_embeds_2": randn(seed + 2, 1, 4, 6),
            f"{sign}prompt_embeds_mask_2": torch.tensor([[1, 1, 0, 0]]),
        }
    return found
