"""A folder of parquet files as a sequence of latents, held in memory a row group at a time."""

import itertools
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from train.data.latents.index import read_index
from train.data.latents.records import TENSOR_COLUMNS, read_tensor
from train.data.order.buckets import Size, check_sizes
from train.data.order.damaged import DamagedClipError, reading
from train.data.order.shots import Split
from train.data.sources.walk import files_below

logger = logging.getLogger(__name__)


class Latent(TypedDict):
    """A clip: video float [C, T, H, W], normalised, and context float [text_tokens, text_dim]."""

    video: Tensor
    context: Tensor


class LatentFolder:
    """The clips of one split of a folder of FastVideo's parquet records, at any depth,
    behind links too (`files_below`).

    A clip is `Latent`: (the latent - mean) / std for each channel (as stored where both are empty),
    and the text embedding, padded with zeros to text_tokens; a record without text is all zeros.
    Latents of other shapes than `latent` (C, T, H, W) are left out and counted in the log. With
    `buckets`, sizes (T, H, W) in place of that one, `self.buckets` are the clips of each.

    The split "validation" is the last `holdout` of the clips in the order of files and rows, at
    least one if there are two; "train" is the rest. One video at most has clips in both. Of several
    sizes each is split so by itself.

    Row groups are read one at a time and whole, so clips are quick to read in the order of
    `shuffled`. Raises what `read_index` does, a collective under torch.distributed, and ValueError
    for no clip of the shape and for text that does not fit; a clip that cannot be read, or is not
    of the shape that it was listed with, is DamagedClipError.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        latent: tuple[int, int, int, int],
        buckets: Sequence[Size] = (),
        text_tokens: int,
        text_dim: int,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        split: Split = "train",
        holdout: float = 0.1,
    ) -> None:
        if not 0 <= holdout < 1 or min(*latent, text_tokens, text_dim) < 1:
            raise ValueError(
                f"latent={latent}, text_tokens={text_tokens} and text_dim={text_dim} must be "
                f"positive, and holdout={holdout} in [0, 1)"
            )
        if (len(mean), len(std)) not in ((latent[0],) * 2, (0, 0)) or not all(s > 0 for s in std):
            raise ValueError(
                f"{len(mean)} latents_mean and {len(std)} latents_std: give one of each, the std "
                f"above 0, for each of the {latent[0]} channels, or none for latents as stored"
            )
        self.sizes: list[Size] = [(t, h, w) for t, h, w in buckets or [latent[1:]]]
        check_sizes(self.sizes)
        self.channels = latent[0]
        self.text_tokens, self.text_dim = text_tokens, text_dim
        self.mean, self.std = (torch.tensor(x).view(-1, 1, 1, 1) for x in (mean, std))
        self.files = files_below(Path(path), (".parquet",))
        index = read_index(path, self.files)
        self.groups = index.groups
        shapes: list[tuple[int, ...]] = [(latent[0], *size) for size in self.sizes]
        others, texts = Counter(), Counter()
        for (shape, text), n in zip(index.kinds, np.bincount(index.kind).tolist(), strict=True):
            if shape in shapes:
                texts[text] += n
            else:
                others[shape] += n
        there = ", ".join(f"{n} of {list(shape)}" for shape, n in others.most_common(5))
        total = len(index.records)
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        if total == others.total():
            raise ValueError(
                f"{path} has no latent of [C, T, H, W] = {wanted} among {total}: it has "
                f"{there or 'none'}; set channels, num_frames, height and width to what there is"
            )
        self._check_texts(path, texts)
        size_of = np.array([shapes.index(k) if k in shapes else -1 for k, _ in index.kinds])
        size = size_of[index.kind]
        found = [index.records[size == i] for i in range(len(shapes))]
        mine = [_part(clips, split, holdout) for clips in found]
        borders = itertools.accumulate(map(len, mine), initial=0)
        self.buckets = [range(a, b) for a, b in itertools.pairwise(borders)]
        self.clips = np.concatenate(mine)
        if not len(self.clips):
            raise ValueError(
                f"{path} has {total - others.total()} clips, none of them for {split} with "
                f"holdout={holdout}: raise holdout, add clips, or do without validation"
            )
        if split == "train" and others:
            logger.warning(
                "%s: left out %d of %d latents, which are not of %s: %s",
                *(path, others.total(), total, wanted, there),
            )
        counts = ", ".join(f"{len(b)} of {t}x{h}x{w}" for b, (t, h, w) in zip(mine, self.sizes))
        logger.info(
            "%s: %d %s clips (%s) in %d files", path, len(self), split, counts, len(self.files)
        )
        self._held: dict[int, tuple[int, pa.Table]] = {}  # one for each bucket
        self._damaged: dict[int, str] = {}  # row groups: one reading in vain is enough

    def _check_texts(self, path: str | Path, texts: Counter[tuple]) -> None:
        empty = sum(n for shape, n in texts.items() if 0 in shape or not shape)
        for shape in texts:
            if 0 in shape or not shape:
                continue
            *ones, tokens, dim = (1, *shape)
            if tokens > self.text_tokens or dim != self.text_dim or set(ones) != {1}:
                raise ValueError(
                    f"{path}: {texts[shape]} text embeddings are {list(shape)}, "
                    f"[text_tokens, text_dim] is [{self.text_tokens}, {self.text_dim}]: set "
                    "text_dim to the last number, and text_tokens to the one before it or more"
                )
        if empty:
            logger.warning("%s: %d clips have no text: their context is zeros", path, empty)

    def __len__(self) -> int:
        return len(self.clips)

    def name(self, index: int) -> str:
        """Where clip i comes from."""
        group, row = (int(x) for x in self.clips[index])
        file, where = self._place(group)
        return f"{file}{where}, row {row}"

    def __getitem__(self, index: int) -> Latent:
        group, row = (int(x) for x in self.clips[index])
        bucket = next(i for i, clips in enumerate(self.buckets) if index in clips)
        table = self._table(group, bucket)
        file, where = self._place(group)
        with reading(file, f"{where}, row {row}", ValueError, LookupError):
            video = read_tensor(table, "vae_latent", row)
            text = read_tensor(table, "text_embedding", row)
            tokens = text.numel() // self.text_dim
            listed = self.channels, *self.sizes[bucket]
            fits = text.shape[-1] == self.text_dim and tokens <= self.text_tokens
            if tuple(video.shape) != listed or (text.numel() and not fits):
                raise ValueError(
                    f"it is {list(video.shape)} with text {list(text.shape)}, and was "
                    f"{list(listed)} with at most [{self.text_tokens}, {self.text_dim}] when the "
                    "files were listed"
                )
        if self.mean.numel():
            video = (video - self.mean) / self.std
        text = text.reshape(tokens, self.text_dim)
        return {"video": video, "context": F.pad(text, (0, 0, 0, self.text_tokens - tokens))}

    def shuffled(self, rng: np.random.Generator, clips: np.ndarray) -> np.ndarray:
        """These indices, row groups in a random order and the clips of each in a random order."""
        place = rng.permutation(len(self.groups))[self.clips[clips, 0]]
        return clips[np.lexsort((rng.random(len(clips)), place))]

    def _table(self, group: int, bucket: int) -> pa.Table:
        file, where = self._place(group)
        if group in self._damaged:
            raise DamagedClipError(file, self._damaged[group])
        held = self._held.get(bucket)
        if held is None or held[0] != group:
            del held
            self._held.pop(bucket, None)  # before the next is read: there is room for one
            try:
                with reading(file, where, pa.ArrowException), pq.ParquetFile(file) as parquet:
                    number = self.groups[group][1]
                    table = parquet.read_row_group(number, columns=TENSOR_COLUMNS)
            except DamagedClipError as e:
                self._damaged[group] = str(e)
                raise
            self._held[bucket] = group, table
        return self._held[bucket][1]

    def _place(self, group: int) -> tuple[Path, str]:
        """A row group's file, and which one of it in words."""
        file, number = self.groups[group]
        return self.files[file], f", row group {number}"


def _part(clips: np.ndarray, split: Split, holdout: float) -> np.ndarray:
    """Those of a split; the last ones are held out."""
    held = max(1, round(len(clips) * holdout)) if holdout and len(clips) > 1 else 0
    border = len(clips) - held
    return clips[:border] if split == "train" else clips[border:]
