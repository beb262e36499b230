"""The demo's model: a VideoDiT, made quick to train on pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.video_dit import VideoDiTConfig

WAVES = 4  # frequencies along each axis, from half a wave to four
PLACES = 3 + 6 * WAVES  # channels that say where a pixel is
LEAST_TIME = 0.2  # of training and sampling: 20 steps with a shift of 5 end with 0.208
SPREAD = 0.5  # standard deviation of a clip's pixels, about


@dataclass(frozen=True)
class PixelDiTConfig:
    """A VideoDiT of three colours with three additions, for a training of minutes.

    - Each pixel comes with its place in the clip, in PLACES more channels: rotary embedding alone
      tells how far apart tokens are, and it takes long to learn the layout of a scene from that.
    - It predicts the clean clip x0, and the velocity is made of it, (x_t - x0) / t: in pixels, a
      clip is easier to predict than noise (Li and He, "Back to Basics: Let Denoising Generative
      Models Denoise", arXiv 2511.13720). It is for times from LEAST_TIME on alone, lest the few
      nearly clean clips drown the others in the loss.
    - It sees x_t scaled to the best linear guess at x0, which fades as noise takes over: else it
      would first have to learn not to look at noise.

    `dit.channels` is 3.
    """

    dit: VideoDiTConfig

    @property
    def core(self) -> VideoDiTConfig:
        """The model inside, which does all that multiplies."""
        return replace(self.dit, channels=self.dit.channels + PLACES)

    def build(self) -> PixelDiT:
        return PixelDiT(self)


class PixelDiT(nn.Module):
    """See PixelDiTConfig; called and looked into as a VideoDiT."""

    def __init__(self, config: PixelDiTConfig) -> None:
        super().__init__()
        self.config, self.dit = config.dit, config.core.build()
        self.tokens, self.tiling = self.dit.tokens, self.dit.tiling
        self.top_k, self.q_rows = self.dit.top_k, self.dit.q_rows

    @property
    def layers(self) -> nn.ModuleDict:
        return self.dit.layers

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        where = places(self.config.video, x.device).to(x.dtype).expand(len(x), -1, -1, -1, -1)
        s = t.view(-1, 1, 1, 1, 1)
        guess = (1 - s) * SPREAD**2 / (((1 - s) * SPREAD) ** 2 + s**2)
        seen = torch.cat([x * guess.to(x.dtype), where], dim=1)
        x0 = self.dit(seen, t, context)[:, : x.shape[1]]
        return (x - x0) / s.clamp(min=LEAST_TIME).to(x.dtype)


def places(video: tuple[int, int, int], device: torch.device) -> Tensor:
    """Time, height and width from -1 to 1, and WAVES waves along each: [PLACES, T, H, W]."""
    axes = [torch.linspace(-1, 1, size, device=device) for size in video]
    axes = torch.meshgrid(axes, indexing="ij")
    waves = [
        wave(2**i * math.pi / 2 * axis)
        for i in range(WAVES)
        for axis in axes
        for wave in (torch.sin, torch.cos)
    ]
    return torch.stack([*axes, *waves])
