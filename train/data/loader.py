"""Clips -> batches: sharded over ranks and workers, shuffled, resumed exactly (`stream.py`)."""

import itertools
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from train.data.batch import Batch, Sample, name_of
from train.data.copies.layouts import Copies
from train.data.order.damaged import Damage, Note
from train.data.order.shots import Split
from train.data.order.stream import ClipStream
from train.data.order.workers import watched
from train.data.sources.captions import embed_caption
from train.data.sources.open import open_clips

logger = logging.getLogger(__name__)


class VideoDataLoader:
    """Batches `dict(video=float [B, 3, T, H, W] in [-1, 1], context=float [B, N, context_dim])`.

    All clips of a batch have one size, and so have those of all ranks at the same time. With
    several sizes the clips of a global batch have one, `global_batch_size` in a row.

    The split "train" has no end, and a new iterator goes on where the last one stopped. The split
    "validation" is the held-out clips in their order, `len(loader)` batches, the same number and
    size on every rank; where they do not come out even, the last batches begin again with the first
    clips. `state_dict` is the same on every rank and may be loaded by another number of them.

    Clips that cannot be read any more are replaced, and counted in `damage`: all others come when
    they would have come (train/data/order/damaged.py).
    """

    @dataclass(kw_only=True, slots=True)
    class Config:
        source: str = "folder"
        """Where clips come from: "folder" (videos under `path`), "digits" (moving digits), "copies"
        (content that recurs far away) or the name of a recipe, "real-footage" (see
        train/data/fetch.py)."""
        path: str = ""
        """Folder of videos; its layout is detected (train/data/sources/folder.py)."""
        num_frames: int = 17
        height: int = 64
        width: int = 64
        buckets: tuple[tuple[int, int, int], ...] = ()
        """Several sizes (frames, height, width), in place of that one: each video goes to the one
        that fits it best (train/data/order/buckets.py). For models that take any size."""
        fps: float = 0
        """Frames for each second of video; 0 takes them as filmed."""
        stride: int = 0
        """Frames from the start of one clip to that of the next; 0: half a clip."""
        copies: Copies = field(default_factory=Copies)
        """What recurs, where, of "copies"."""
        holdout: float = 0.1
        """Share of each shot, at its end, that is held out for validation."""
        cache_dir: str = ""
        """Where decoded frames are kept; empty: ~/.cache/flexsparse/frames."""
        seed: int = 0
        num_workers: int = 0
        timeout_seconds: int = 300
        """How long a worker may take for a batch; less than parallel.timeout_seconds."""
        max_damaged: int = 8
        """Files that a rank may find damaged; others replace their clips. One more ends the run."""
        context_tokens: int = 16
        """Words of a caption that count."""
        context_dim: int = 64

        def build(
            self,
            *,
            dp_world_size: int = 1,
            dp_rank: int = 0,
            local_batch_size: int = 1,
            global_batch_size: int = 0,
            split: Split = "train",
        ) -> "VideoDataLoader":
            return VideoDataLoader(
                self,
                dp_world_size=dp_world_size,
                dp_rank=dp_rank,
                local_batch_size=local_batch_size,
                global_batch_size=global_batch_size,
                split=split,
            )

    def __init__(
        self,
        config: Any,
        *,
        dp_world_size: int = 1,
        dp_rank: int = 0,
        local_batch_size: int = 1,
        global_batch_size: int = 0,
        split: Split = "train",
    ) -> None:
        """`config` is a Config; `global_batch_size` of 0: the clips that all ranks take at once."""
        self.config = config
        self.split: Split = split
        self.clips_a_step = dp_world_size * local_batch_size
        self.position = 0
        self.damage = Damage(config.max_damaged)
        together = global_batch_size if split == "train" else 0
        self.clips, self.stream = self._open(
            batch_size=local_batch_size,
            rank=dp_rank,
            world_size=dp_world_size,
            seed=config.seed,
            shuffle=split == "train",
            group=together or self.clips_a_step,
        )
        self.kept = np.arange(len(self.clips))

    def _open(self, **stream: Any) -> tuple[Any, ClipStream[Any]]:
        clips = open_clips(self.config, self.split)
        return clips, ClipStream(clips, buckets=clips.buckets, **stream)

    def keep(self, clips: int) -> int:
        """Of the split "validation" so many clips alone, drawn by lot and the same for every run.

        Returns how many there are, all if there are no more. From before the first is taken.
        """
        order = np.random.default_rng(0).permutation(len(self.clips))
        self.kept = np.sort(order[:clips])
        self.stream.keep(self.kept)
        return len(self.kept)

    def numbers(self, batch: int) -> list[int | None]:
        """Of this rank's batch i of the split "validation", which of the clips that were kept each
        is, however they are divided; None for one that was there before, and fills up."""
        return [
            None
            if self.stream.repeats(position)
            else int(np.searchsorted(self.kept, self.stream.index(position)))
            for position in self.stream.positions(batch)
        ]

    def __len__(self) -> int:
        """Batches in one pass over the clips, the last one of each size filled up."""
        return math.ceil(self.stream.round_length() / self.clips_a_step)

    def __iter__(self) -> Iterator[Batch]:
        if self.split == "validation":
            self.position = 0
        self.stream.start = self.position
        loader = DataLoader(
            self.stream,
            batch_size=self.stream.batch_size,
            num_workers=self.config.num_workers,
            timeout=self.config.timeout_seconds if self.config.num_workers else 0,
            collate_fn=self._collate,
            pin_memory=torch.cuda.is_available(),  # the trainer copies without waiting
        )
        batches = watched(loader, self.reading)
        most = len(self) if self.split == "validation" else None
        for batch, notes in itertools.islice(batches, most):
            self.damage.see(notes)
            self.position += self.clips_a_step
            yield batch

    def reading(self, batch: int) -> str:
        """What this rank's batch i since `start` is made of."""
        positions = self.stream.positions(batch)
        clips = [name_of(self.clips, self.stream.index(position)) for position in positions]
        return (
            f"positions {positions.start} to {positions.stop - 1} of the data: {', '.join(clips)}"
        )

    def _collate(self, clips: list[Any]) -> tuple[Batch, list[Note]]:
        return self.collate(clips), self.stream.notes()

    def collate(self, clips: list[Sample]) -> Batch:
        n, dim = self.config.context_tokens, self.config.context_dim
        return {
            "video": _values(torch.stack([clip["video"] for clip in clips])),
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
        self.position = -(-state["position"] // self.stream.group) * self.stream.group
        if self.position != state["position"]:
            logger.warning(
                "position %d is amid %d clips of one size: the run goes on after them, at %d",
                *(state["position"], self.stream.group, self.position),
            )


def _values(video: Tensor) -> Tensor:
    """Pixels from -1 to 1; what is no uint8 is values already."""
    return video.float().div_(127.5).sub_(1) if video.dtype == torch.uint8 else video
