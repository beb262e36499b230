"""The shape of a Wan 2.1 transformer, as one frozen value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from models.attention import Dense, Slot

TEXT_TOKENS = 512  # that Wan was trained on; those after the text's end are zero


@dataclass(frozen=True, kw_only=True)
class WanConfig:
    """Frozen and hashable; `dataclasses.replace` makes the variants.

    Args:
        dim, heads, layers, ffn: width, attention heads, blocks, hidden width of the feed-forward.
        in_channels: of the input latent; image-to-video has mask and picture beside the noise, 36.
        out_channels: of the velocity.
        patch: (frames, height, width) of the latent that make one token.
        text_dim: width of the text encoder's tokens.
        freq_dim: sinusoids of the timestep.
        image_dim: width of the picture encoder's tokens, for image-to-video; None for text alone.
        pos_embed_seq_len: number of picture tokens that have a position embedding, 2 x 257 in the
            model for first and last frame; None for no such embedding.
        eps: of all norms but those of the picture's embedding, which have 1e-5.
        video: (frames, height, width) of the latent that is trained on. The model takes any other,
            as `any_size` says.
        attention: the slot of the self-attention, see `models.attention`.
    """

    any_size: ClassVar[bool] = True

    dim: int
    heads: int
    layers: int
    ffn: int
    in_channels: int = 16
    out_channels: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)
    text_dim: int = 4096
    freq_dim: int = 256
    image_dim: int | None = None
    pos_embed_seq_len: int | None = None
    eps: float = 1e-6
    video: tuple[int, int, int] = (21, 60, 104)
    attention: Slot = Dense()

    model_class: ClassVar[Any]  # WanModel, which model.py enters

    def __post_init__(self) -> None:
        self.grid_of(self.video)
        if self.dim % (16 * self.heads):
            fits = max(1, round(self.head_dim / 16)) * 16 * self.heads
            raise ValueError(
                f"dim {self.dim} / {self.heads} heads = {self.dim / self.heads:g} channels a head, "
                f"which must be a multiple of 16: try dim {fits}"
            )
        if self.pos_embed_seq_len is not None and self.image_dim is None:
            raise ValueError(
                f"pos_embed_seq_len is {self.pos_embed_seq_len}, but there are no picture tokens: "
                f"give image_dim as well, 1280 in Wan's models"
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def context_dim(self) -> int:
        """What a trainer calls the width of the condition tokens: `text_dim`."""
        return self.text_dim

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along (T, H, W) of the latent that is trained on."""
        return self.grid_of(self.video)

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch of the velocity, over all channels."""
        return self.out_channels * math.prod(self.patch)

    def grid_of(self, video: tuple[int, int, int]) -> tuple[int, int, int]:
        """Tokens along (T, H, W) of a latent of this size; ValueError if patches do not divide it.

        >>> from models.wan import wan_1_3b
        >>> wan_1_3b().grid_of((21, 90, 160))
        (21, 45, 80)
        """
        if any(size % patch or size < patch for size, patch in zip(video, self.patch)):
            fits = tuple(max(s // p, 1) * p for s, p in zip(video, self.patch))
            raise ValueError(
                f"video {video} is not a multiple of patch {self.patch}: "
                f"crop or resize it to {fits}"
            )
        t, h, w = (size // patch for size, patch in zip(video, self.patch))
        return t, h, w

    def build(self) -> Any:  # WanModel
        """The model, initialised, on torch's default device."""
        return self.model_class(self)
