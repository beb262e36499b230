"""Clips -> batches: sharded over ranks and workers, shuffled, resumed exactly.

Everything hangs on one number, the position: how many clips all ranks together have been given. The
clip at a position depends on the seed alone, so a rank, a worker or a resumed run needs to know
nothing else to find its own.
"""

import itertools
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from train.data.batch import Batch, Clips, Sample, name_of
from train.data.captions import embed_caption
from train.data.digits import MovingDigits
from train.data.shots import Split
from train.data.video_folder import VideoFolder
from train.data.workers import watched

logger = logging.getLogger(__name__)
Item = TypeVar("Item")


class ClipStream(IterableDataset[Item]):
    """One rank's share of an endless stream of clips; in a worker process, that worker's share.

    Epoch e is every clip once, in an order drawn from (seed, e) (shuffle=False: as they are), and
    epochs follow without a gap. From position `start` on, batches of `batch_size` go to the ranks
    in turn, and a rank's batches to its workers in turn, as DataLoader collects them.
    """

    def __init__(
        self,
        clips: Clips[Item],
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        self.clips, self.batch_size = clips, batch_size
        self.rank, self.world_size = rank, world_size
        self.seed, self.shuffle = seed, shuffle
        self.start = 0
        self._epoch, self._order = -1, np.arange(len(clips))

    def __iter__(self) -> Iterator[Item]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for batch in itertools.count(worker, workers):
            for position in self.positions(batch):
                yield self.clips[self.index(position)]

    def positions(self, batch: int) -> range:
        """Where in the stream this rank's batch i since `start` is."""
        first = self.start + (batch * self.world_size + self.rank) * self.batch_size
        return range(first, first + self.batch_size)

    def index(self, position: int) -> int:
        """Which clip is at this position of the stream."""
        epoch, i = divmod(position, len(self.clips))
        if self.shuffle and epoch != self._epoch:
            self._order = np.random.default_rng((self.seed, epoch)).permutation(len(self.clips))
            self._epoch = epoch
        return int(self._order[i])


class VideoDataLoader:
    """Batches `dict(video=float [B, 3, T, H, W] in [-1, 1], context=float [B, N, context_dim])`.

    The split "train" has no end, and a new iterator goes on where the last one stopped. The split
    "validation" is the held-out clips in their order, `len(loader)` batches, the same number and
    size on every rank; where they do not come out even, the last batches begin again with the first
    clips. `state_dict` is the same on every rank and may be loaded by another number of them.
    """

    @dataclass(kw_only=True, slots=True)
    class Config:
        source: str = "folder"
        """Where clips come from: "folder" (videos under `path`) or "digits" (moving digits)."""
        path: str = ""
        """Folder of videos; its layout is detected (train/data/folder.py)."""
        num_frames: int = 17
        height: int = 64
        width: int = 64
        fps: float = 0
        """Frames for each second of video; 0 takes them as filmed."""
        stride: int = 0
        """Frames from the start of one clip to that of the next; 0: half a clip."""
        holdout: float = 0.1
        """Share of each shot, at its end, that is held out for validation."""
        cache_dir: str = ""
        """Where decoded frames are kept; empty: ~/.cache/flexsparse/frames."""
        seed: int = 0
        num_workers: int = 0
        timeout_seconds: int = 300
        """How long a worker may take for a batch; less than parallel.timeout_seconds."""
        context_tokens: int = 16
        """Words of a caption that count."""
        context_dim: int = 64

        def build(
            self,
            *,
            dp_world_size: int = 1,
            dp_rank: int = 0,
            local_batch_size: int = 1,
            split: Split = "train",
        ) -> "VideoDataLoader":
            return VideoDataLoader(
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
        self.config, self.split = config, split
        self.clips = open_clips(config, split)
        self.stream = ClipStream(
            self.clips,
            batch_size=local_batch_size,
            rank=dp_rank,
            world_size=dp_world_size,
            seed=config.seed,
            shuffle=split == "train",
        )
        self.clips_a_step = dp_world_size * local_batch_size
        self.position = 0

    def __len__(self) -> int:
        """Batches in one pass over the clips, the last one filled up."""
        return math.ceil(len(self.clips) / self.clips_a_step)

    def __iter__(self) -> Iterator[Batch]:
        if self.split == "validation":
            self.position = 0
        self.stream.start = self.position
        loader = DataLoader(
            self.stream,
            batch_size=self.stream.batch_size,
            num_workers=self.config.num_workers,
            timeout=self.config.timeout_seconds if self.config.num_workers else 0,
            collate_fn=self.collate,
            pin_memory=torch.cuda.is_available(),  # the trainer copies without waiting
        )
        batches = watched(loader, self.reading)
        for batch in itertools.islice(batches, len(self) if self.split == "validation" else None):
            self.position += self.clips_a_step
            yield batch

    def reading(self, batch: int) -> str:
        """What this rank's batch i since `start` is made of."""
        positions = self.stream.positions(batch)
        clips = [name_of(self.clips, self.stream.index(position)) for position in positions]
        return (
            f"positions {positions.start} to {positions.stop - 1} of the data: {', '.join(clips)}"
        )

    def collate(self, clips: list[Sample]) -> Batch:
        n, dim = self.config.context_tokens, self.config.context_dim
        return {
            "video": torch.stack([clip["video"] for clip in clips]).float().div_(127.5).sub_(1),
            "context": torch.stack([embed_caption(clip["caption"], n, dim) for clip in clips]),
        }

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position, "clips": len(self.clips)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if state["clips"] != len(self.clips):
            logger.warning(
                "the run to be resumed had %d clips, now there are %d: it goes on at position %d, "
                "in another order",
                *(state["clips"], len(self.clips), state["position"]),
            )
        self.position = state["position"]


def open_clips(config: VideoDataLoader.Config, split: Split) -> Clips[Sample]:
    """The clips of a split, as the config names them."""
    size = {"num_frames": config.num_frames, "height": config.height, "width": config.width}
    if config.source == "digits":
        train, validation = 1024, 64
        if split == "train":
            return MovingDigits(train, **size)
        return MovingDigits(validation, first=train, **size)
    if config.source != "folder":
        raise ValueError(f'source="{config.source}": it is "folder" or "digits"')
    if not config.path:  # Path("") is the current directory
        raise ValueError("give --dataloader.path, a folder of videos")
    return VideoFolder(
        config.path,
        **size,
        fps=config.fps,
        split=split,
        stride=config.stride,
        holdout=config.holdout,
        cache_dir=config.cache_dir,
    )
