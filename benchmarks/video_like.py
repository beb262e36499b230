"""Queries, keys and values that choose tiles much as those of a trained video DiT do.

White noise chooses every key tile about equally often, and a threshold then admits about as many
in every row: kernels timed on it never meet a popular key tile or an uneven row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flexsparse import VideoTiling

FIELDS = 12  # of the content of a clip
FADING = 0.5  # what a head makes of each of them, over what it makes of the one before
SKEW = 0.5  # deviation of the logarithm of a field
MOST = 2.5  # of a field, in deviations, or a few tokens' keys would be far longer than others
CONTENT = (0.5, 0.8)  # the share of content in q k, between these from head to head
POPULARITY = (0.0, 0.2)  # likewise of what a key has for every query; place has the rest
SIGNAL = 0.6  # share of a token's square that is not its own noise


def video_like(
    tiling: VideoTiling,
    heads: int,
    dim: int,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    batch: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tile-major q, k and v ``[batch, heads, padded_tokens, dim]``, zeros in padding.

    Content is smooth fields over time, height and width that drift with a motion, new ones for each
    clip of the batch. A head heeds a few of them, where a token is, and regions whose keys draw all
    queries, each as much as it happens to. Channels have a variance of about 1, as RMSNorm leaves
    them. Equal arguments give equal tensors; the noise is the device's own.

    The constants are set by what the demo's trained VSA model chooses on 32 x 32 x 48 tokens of
    held-out clips, at top 96 of 768 (``studies/selections.py``): by the unevenness of its columns,
    and, of the scores between its tiles, by how few fields matter to a head (one alone makes half
    of their variance or more) and that some rows are skewed to either side.
    """
    drawn = torch.Generator().manual_seed(seed)
    noise = torch.Generator(device).manual_seed(seed)
    shape = (batch, heads, tiling.padded_tokens, dim)
    q, k, v = (torch.empty(shape, device=device, dtype=dtype) for _ in range(3))
    at = _coordinates(tiling, device)
    place = _place(at)
    for b in range(batch):
        content = _content(at, drawn)
        for h in range(heads):  # one at a time, so that only results are of the results' size
            for x, mixed in zip((q, k, v), _head(content, place, dim, drawn, noise)):
                x[b, h] = tiling.to_tiles(mixed.to(dtype))
    return q, k, v


def _coordinates(tiling: VideoTiling, device: torch.device | str) -> Tensor:
    """Time, height and width of each token in raster order, from 0 to 1: [tokens, 3]."""
    axes = [torch.linspace(0, 1, size, device=device) for size in tiling.video]
    return torch.stack(torch.meshgrid(axes, indexing="ij"), -1).flatten(0, 2)


def _place(at: Tensor) -> Tensor:
    """Unit vectors, the more alike the closer two tokens are: [tokens, 12]."""
    angles = torch.cat([math.pi * at, 2 * math.pi * at], -1)
    return torch.cat([angles.cos(), angles.sin()], -1) / math.sqrt(6)


def _content(at: Tensor, drawn: torch.Generator) -> Tensor:
    """Fields of mean 0 and variance 1, four waves each, all with one motion: [tokens, FIELDS]."""
    across = 1.5 * torch.randn(2, 4 * FIELDS, generator=drawn)  # waves in the height and the width
    motion = 0.5 * torch.randn(2, generator=drawn)  # of the frame in the time of the clip
    change = 0.3 * torch.randn(4 * FIELDS, generator=drawn)
    waves = torch.cat([(change - motion @ across)[None], across]).to(at.device)
    phases = torch.rand(4 * FIELDS, generator=drawn).to(at.device)
    sums = (2 * math.pi * (at @ waves + phases)).cos().unflatten(-1, (FIELDS, 4)).sum(-1)
    fields = (SKEW / math.sqrt(2) * sums).exp()
    return ((fields - fields.mean(0)) / fields.std(0)).clamp_(-MOST, MOST)


def _head(
    content: Tensor, place: Tensor, dim: int, drawn: torch.Generator, noise: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of one head, [tokens, dim] in raster order."""
    device = content.device
    for_content, for_all = (
        low + (high - low) * torch.rand((), generator=drawn).item()
        for low, high in (CONTENT, POPULARITY)
    )
    heeds = FADING ** torch.randperm(FIELDS, generator=drawn)
    shown = content * (heeds / heeds.sum()).sqrt().to(device)
    popular = content @ torch.randn(FIELDS, 1, generator=drawn).to(device)
    popular = popular / popular.std()
    common = for_content**0.5 * shown, (1 - for_content - for_all) ** 0.5 * place
    of_q = torch.cat([*common, for_all**0.5 * torch.ones_like(popular)], -1)
    of_k = torch.cat([*common, for_all**0.5 * popular], -1)
    # q and k are carried to channels alike, or their product would not be that of the parts.
    carry, carry_v = (torch.randn(x.shape[1], dim, generator=drawn) for x in (of_k, shown))
    signals = (of_q, carry), (of_k, carry), (shown, carry_v)
    q, k, v = (_with_noise(x @ by.to(device), noise) for x, by in signals)
    return q, k, v


def _with_noise(signal: Tensor, noise: torch.Generator) -> Tensor:
    own = torch.randn(signal.shape, generator=noise, device=signal.device)
    return own.mul_((1 - SIGNAL) ** 0.5).add_(signal, alpha=SIGNAL**0.5)
