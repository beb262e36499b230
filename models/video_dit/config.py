"""The shape of a VideoDiT, as one frozen value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from models.attention import Dense, Slot


@dataclass(frozen=True, kw_only=True)
class VideoDiTConfig:
    """Frozen and hashable; `dataclasses.replace` makes the variants.

    No weight depends on `video`, so a checkpoint fits every length and resolution.

    Args:
        channels: of the input video or latent.
        video: (frames, height, width) of the input.
        patch: (frames, height, width) of the input that make one token.
        dim, heads, layers, ffn: width, attention heads, blocks, hidden width of the MLP.
        context_dim: width of the condition tokens.
        attention: the slot of the self-attention, see `models.attention`.
        mimetic: queries and keys start from equal weights, so that from the first step tokens look
            at what is like themselves (mimetic initialisation, arXiv 2305.09828).
    """

    channels: int = 16
    video: tuple[int, int, int] = (16, 64, 64)
    patch: tuple[int, int, int] = (1, 2, 2)
    dim: int
    heads: int
    layers: int
    ffn: int
    context_dim: int = 64
    attention: Slot = Dense()
    mimetic: bool = False

    model_class: ClassVar[Any]  # VideoDiT, which model.py enters

    def __post_init__(self) -> None:
        if any(size % patch or size < patch for size, patch in zip(self.video, self.patch)):
            fits = tuple(max(s // p, 1) * p for s, p in zip(self.video, self.patch))
            raise ValueError(
                f"video {self.video} is not a multiple of patch {self.patch}: "
                f"crop or resize it to {fits}"
            )
        if self.dim % (16 * self.heads):
            fits = max(1, round(self.head_dim / 16)) * 16 * self.heads
            raise ValueError(
                f"dim {self.dim} / {self.heads} heads = {self.dim / self.heads:g} channels a head, "
                f"which must be a multiple of 16: try dim {fits}"
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along (T, H, W)."""
        t, h, w = (size // patch for size, patch in zip(self.video, self.patch))
        return t, h, w

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch, over all channels."""
        return self.channels * math.prod(self.patch)

    def build(self) -> Any:  # VideoDiT
        """The model, initialised, on torch's default device."""
        return self.model_class(self)
