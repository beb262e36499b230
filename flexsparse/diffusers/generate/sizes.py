"""Which sizes a pipeline's VAE and patches can have, and how many tokens they make."""

from __future__ import annotations

import math
from typing import Any

from flexsparse.diffusers.generate.arguments import Size
from flexsparse.diffusers.generate.attention import text_of
from flexsparse.diffusers.generate.folder import Folder


def strides_of(folder: Folder) -> tuple[int, int] | None:
    """Frames and pixels of a side to one of the latent; None of a VAE that does not say."""
    vae = folder.vae
    if vae is None:
        return None
    said = vars(vae) | {name: x for name, x in vae.config.items() if x}
    t = said.get("temporal_compression_ratio") or said.get("scale_factor_temporal")
    s = said.get("spatial_compression_ratio") or said.get("scale_factor_spatial")
    if s is None and "block_out_channels" in said:  # each but the last halves
        s = 2 ** (len(said["block_out_channels"]) - 1)
    return None if t is None or s is None else (int(t), int(s))


def patch_of(folder: Folder) -> tuple[int, int]:
    """Frames and pixels of a latent's side to a token."""
    config = folder.first.config
    patch = config.get("patch_size") or 1
    if isinstance(patch, int):
        return config.get("patch_size_t") or 1, patch
    return patch[0], patch[-1]


def check_size(size: Size, folder: Folder) -> None:
    """ValueError, with the nearest that fits, for a video that the VAE or the patches cannot have.

    Some pipelines round such a size, with a warning, others fail at the first step.
    """
    if (strides := strides_of(folder)) is None:
        return
    tiles: list[Any] = [getattr(folder.vae, name, None) for name in ("kernel", "stride")]
    if all(isinstance(x, tuple) for x in tiles):
        return _check_tiles(size, *tiles)
    frames, *sides = size
    stride, side = strides[0], strides[1] * patch_of(folder)[1]
    fits = (
        1 + stride * max(0, round((frames - 1) / stride)),
        *(side * max(1, round(x / side)) for x in sides),
    )
    if fits != size:
        raise ValueError(
            f"--size {text_of(size)}: this VAE and transformer take {stride}k + 1 frames and "
            f"sides that are multiples of {side}; try {text_of(fits)}"
        )


def _check_tiles(size: Size, kernel: Size, stride: Size) -> None:
    """ValueError for a video that Allegro's VAE, which decodes tiles alone, would leave black where
    no whole one fits."""
    fits = tuple(k + s * max(0, round((x - k) / s)) for x, k, s in zip(size, kernel, stride))
    if fits != size:
        tiles = f"tiles of {text_of(kernel)}, {text_of(stride)} apart"
        raise ValueError(
            f"--size {text_of(size)}: this VAE decodes {tiles}, and leaves the rest black; try "
            f"{text_of((fits[0], fits[1], fits[2]))}"
        )


def tokens_of(size: Size, folder: Folder) -> int:
    """About how many a video of this size has; 0 where its VAE does not say."""
    if (strides := strides_of(folder)) is None:
        return 0
    of_time, of_side = patch_of(folder)
    frames = -(-(1 + (size[0] - 1) // strides[0]) // of_time)
    return frames * math.prod(x // strides[1] // of_side for x in size[1:])
