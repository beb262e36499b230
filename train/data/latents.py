"""Latents on disk -> batches, in the way of `loader.py`: by one position, resumed exactly.

They come from FastVideo's preprocessing as it is, or from `python -m train.data.cache_latents`.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
from torch.utils.data import default_collate

from train.data.batch import Batch
from train.data.latent_folder import Latent, LatentFolder
from train.data.latent_records import WAN_LATENTS_MEAN, WAN_LATENTS_STD
from train.data.loader import ClipStream, VideoDataLoader
from train.data.shots import Split


class RowGroupStream(ClipStream[Latent]):
    """A stream whose epochs take one row group after another, each read once by every reader.

    With one clip to a row group, as `cache_latents` writes them, that is any order of the clips;
    with a whole file to a row group, as FastVideo does, neighbours in a batch are of one file.
    """

    clips: LatentFolder

    def index(self, position: int) -> int:
        epoch, i = divmod(position, len(self.clips))
        if self.shuffle and epoch != self._epoch:
            self._order = self.clips.shuffled(np.random.default_rng((self.seed, epoch)))
            self._epoch = epoch
        return int(self._order[i])


class LatentDataLoader(VideoDataLoader):
    """Batches `dict(video=float [B, C, T, H, W], context=float [B, text_tokens, text_dim])`.

    `video` is the latents, normalised. Splits, order, ranks and resume are VideoDataLoader's; what
    is held out, and what is refused: see `LatentFolder`.
    """

    @dataclass(kw_only=True, slots=True)
    class Config:
        path: str = ""
        """Folder of parquet files, FastVideo's or those of `python -m train.data.cache_latents`."""
        channels: int = 16
        """Of the latents, as are the next three: others are left out. Default: Wan, 480p, 5 s."""
        num_frames: int = 21
        height: int = 60
        width: int = 104
        latents_mean: tuple[float, ...] = WAN_LATENTS_MEAN
        """For each channel of the VAE, to take off; none, and no std: the latents as stored."""
        latents_std: tuple[float, ...] = WAN_LATENTS_STD
        """For each channel of the VAE, to divide by."""
        text_tokens: int = 512
        """Text embeddings are padded with zeros to so many tokens."""
        text_dim: int = 4096
        holdout: float = 0.1
        """Share of the clips, the last ones, that is held out for validation."""
        seed: int = 0
        timeout_seconds: int = 300
        """How long a worker may take for a batch; less than parallel.timeout_seconds."""
        num_workers: int = 0
        """Each holds one row group in memory (while it is read, about three times its size)."""

        def build(
            self,
            *,
            dp_world_size: int = 1,
            dp_rank: int = 0,
            local_batch_size: int = 1,
            split: Split = "train",
        ) -> "LatentDataLoader":
            return LatentDataLoader(
                self,
                dp_world_size=dp_world_size,
                dp_rank=dp_rank,
                local_batch_size=local_batch_size,
                split=split,
            )

    def __init__(
        self,
        config: Config,
        *,
        dp_world_size: int = 1,
        dp_rank: int = 0,
        local_batch_size: int = 1,
        split: Split = "train",
    ) -> None:
        if not config.path:  # Path("") is the current directory
            raise ValueError("give --dataloader.path, a folder of latents in parquet files")
        self.config, self.split = config, split
        self.clips = LatentFolder(
            config.path,
            latent=(config.channels, config.num_frames, config.height, config.width),
            text_tokens=config.text_tokens,
            text_dim=config.text_dim,
            mean=config.latents_mean,
            std=config.latents_std,
            split=split,
            holdout=config.holdout,
        )
        self.stream = RowGroupStream(
            self.clips,
            batch_size=local_batch_size,
            rank=dp_rank,
            world_size=dp_world_size,
            seed=config.seed,
            shuffle=split == "train",
        )
        self.clips_a_step = dp_world_size * local_batch_size
        self.position = 0

    def collate(self, clips: list[Latent]) -> Batch:
        return cast(Batch, default_collate(clips))
