"""Latents on disk -> batches, in the way of `loader.py`: by one position, resumed exactly.

They come from FastVideo's preprocessing as it is, or from `python -m train.data.cache_latents`.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch.utils.data import default_collate

from train.data.batch import Batch
from train.data.latents.folder import Latent, LatentFolder
from train.data.latents.records import WAN_LATENTS_MEAN, WAN_LATENTS_STD
from train.data.loader import VideoDataLoader
from train.data.order.shots import Split
from train.data.order.stream import ClipStream


class RowGroupStream(ClipStream[Latent]):
    """A stream whose epochs take one row group after another, each read once by every reader.

    With one clip to a row group, as `cache_latents` writes them, that is any order of the clips;
    with a whole file to a row group, as FastVideo does, neighbours in a batch are of one file.
    """

    clips: LatentFolder

    def shuffled(self, rng: np.random.Generator, clips: np.ndarray) -> np.ndarray:
        return self.clips.shuffled(rng, clips)


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
        buckets: tuple[tuple[int, int, int], ...] = ()
        """Several sizes (num_frames, height, width), of latents too, in place of that one."""
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
        max_damaged: int = 8
        """Files that a rank may find damaged; others replace their clips. One more ends the run."""
        num_workers: int = 0
        """Each holds one row group in memory (while it is read, about three times its size), and
        one for each of several sizes."""

        def build(
            self,
            *,
            dp_world_size: int = 1,
            dp_rank: int = 0,
            local_batch_size: int = 1,
            global_batch_size: int = 0,
            split: Split = "train",
        ) -> "LatentDataLoader":
            return LatentDataLoader(
                self,
                dp_world_size=dp_world_size,
                dp_rank=dp_rank,
                local_batch_size=local_batch_size,
                global_batch_size=global_batch_size,
                split=split,
            )

    def _open(self, **stream: Any) -> tuple[LatentFolder, RowGroupStream]:
        config: LatentDataLoader.Config = self.config
        if not config.path:  # Path("") is the current directory
            raise ValueError("give --dataloader.path, a folder of latents in parquet files")
        clips = LatentFolder(
            config.path,
            latent=(config.channels, config.num_frames, config.height, config.width),
            buckets=config.buckets,
            text_tokens=config.text_tokens,
            text_dim=config.text_dim,
            mean=config.latents_mean,
            std=config.latents_std,
            split=self.split,
            holdout=config.holdout,
        )
        return clips, RowGroupStream(clips, buckets=clips.buckets, **stream)

    def collate(self, clips: list[Latent]) -> Batch:
        return cast(Batch, default_collate(clips))
