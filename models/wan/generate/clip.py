"""From a latent to a video file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from models.wan.generate.clock import Clock
from models.wan.generate.files import write_tensors, write_whole


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
    """``[B, C, T, H, W]`` normalised latents to uint8 frames ``[B, frames, height, width, 3]``.

    Raises:
        ValueError: pixels that are not finite, which would be black.
    """
    weight = next(vae.parameters())
    shape = 1, -1, 1, 1, 1
    mean = torch.tensor(vae.config.latents_mean, device=latent.device).view(shape)
    std = torch.tensor(vae.config.latents_std, device=latent.device).view(shape)
    z = (latent.float() * std + mean).to(weight.device, weight.dtype)
    pixels = vae.decode(z, return_dict=False)[0].float()
    if not pixels.isfinite().all():
        raise ValueError("the VAE's pixels are not finite: give another --vae")
    pixels = pixels.clamp(-1, 1)
    return ((pixels + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).cpu()


def write_clip(path: Path, latent: Tensor, vae: Any, fps: int, clock: Clock) -> Path:
    """Decode a latent ``[1, C, T, H, W]`` and write the clip; without a VAE, write the latent.

    What took long is not lost: until the clip is whole its latent lies beside it.

    Returns:
        Where it is: `path`, with a number where a file of that name appeared meanwhile.

    Raises:
        OSError: it could not be decoded or written; the message says where the latent is.
    """
    if vae is not None:
        clock.claim("VAE")  # the latent is written before it, the clip after it
    with clock.part("writing"):
        name = path if vae is None else path.with_suffix(".latent.safetensors")
        kept = write_latent(name, latent[0])
    if vae is None:
        return kept
    try:
        with clock.part("VAE"):
            frames = decode(vae, latent)[0]
        with clock.part("writing"):
            path = write_mp4(path, frames, fps)
    except (OSError, RuntimeError, ValueError, MemoryError) as e:
        raise OSError(f"{path} was not written ({_line(e)}); its latent is in {kept}") from e
    kept.unlink()
    return path


def write_mp4(path: Path, frames: Tensor, fps: int) -> Path:
    """H.264 of uint8 frames ``[frames, height, width, 3]``; the file appears when it is whole."""
    import av

    def write(draft: Path) -> None:
        with av.open(str(draft), "w", format="mp4") as container:
            stream: Any = container.add_stream("libx264", rate=fps, options={"crf": "18"})
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for image in frames.numpy():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())

    return write_whole(path, write)


def write_latent(path: Path, latent: Tensor) -> Path:
    """The tensor `latent` ``[C, T, H, W]``, normalised as the VAE's config says.

    Raises:
        OSError: no room at `path`; the message names a file in the folder for temporary ones.
    """
    tensors = {"latent": latent}
    try:
        return write_tensors(path, tensors)
    except OSError as e:
        spare = write_tensors(Path(tempfile.gettempdir(), path.name), tensors)
        raise OSError(f"{path} was not written ({_line(e)}); the latent is in {spare}") from e


def _line(e: Exception) -> str:
    return str(e).splitlines()[0] if str(e) else type(e).__name__
