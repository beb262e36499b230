"""From a latent to a video file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import av
import torch
from safetensors.torch import save_file
from torch import Tensor


def load_vae(folder: Path, device: torch.device, dtype: torch.dtype, channels: int = 16) -> Any:
    """A VAE with the interface of diffusers' AutoencoderKLWan, for latents of so many channels.

    Raises:
        FileNotFoundError: no VAE in the folder.
        ValueError: one that cannot be loaded.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"--vae {folder} has no config.json: give the folder of an AutoencoderKLWan, or --out "
            "LATENTS.safetensors to write the latent alone"
        )
    try:
        options: Any = dict(torch_dtype=dtype, low_cpu_mem_usage=False)
        loaded: Any = AutoencoderKLWan.from_pretrained(folder, **options, output_loading_info=True)
    except (OSError, RuntimeError, TypeError, ValueError) as e:
        raise ValueError(f"--vae {folder}: {str(e).splitlines()[0]}") from None
    vae, info = loaded
    if lacking := info["missing_keys"]:
        raise ValueError(f"--vae {folder} lacks {len(lacking)} weights, {sorted(lacking)[0]} first")
    c = vae.config
    strides = c.get("scale_factor_temporal", 4), c.get("scale_factor_spatial", 8)
    if c.z_dim != channels or len(c.latents_mean) != channels or strides != (4, 8):
        raise ValueError(
            f"--vae {folder} has {c.z_dim} channels and strides of {strides[0]} frames and "
            f"{strides[1]} pixels; this model's has {channels}, 4 and 8"
        )
    return cast(Any, vae).to(device).eval()


@torch.no_grad()
def decode(vae: Any, latent: Tensor) -> Tensor:
    """``[B, C, T, H, W]`` normalised latents to uint8 frames ``[B, frames, height, width, 3]``."""
    weight = next(vae.parameters())
    shape = 1, -1, 1, 1, 1
    mean = torch.tensor(vae.config.latents_mean, device=latent.device).view(shape)
    std = torch.tensor(vae.config.latents_std, device=latent.device).view(shape)
    z = (latent.float() * std + mean).to(weight.device, weight.dtype)
    pixels = vae.decode(z, return_dict=False)[0].float().clamp(-1, 1)
    return ((pixels + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).cpu()


def write_mp4(path: Path, frames: Tensor, fps: int) -> None:
    """H.264 of uint8 frames ``[frames, height, width, 3]``; the file appears when it is whole."""

    def write(draft: Path) -> None:
        with av.open(str(draft), "w", format="mp4") as container:
            stream: Any = container.add_stream("libx264", rate=fps, options={"crf": "18"})
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for image in frames.numpy():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())

    _whole(path, write)


def write_latent(path: Path, latent: Tensor) -> None:
    """The tensor `latent` ``[C, T, H, W]``, normalised as the VAE's config says."""
    _whole(path, lambda draft: save_file({"latent": latent.contiguous().cpu()}, draft))


def _whole(path: Path, write: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(draft)
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)
