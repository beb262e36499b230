"""Which clip comes when: for all ranks and workers, from one number, the position.

The position is how many clips all ranks together have been given. What stands at a position depends
on the seed (and, with several sizes, on the size of the global batch) alone, so a rank, a worker or
a resumed run needs to know nothing else to find its own.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from train.data.batch import Clips
from train.data.order.damaged import DamagedClipError, DamagedDataError, Note

Item = TypeVar("Item")
TRIES = 64  # clips, before none can be read


class ClipStream(IterableDataset[Item]):
    """One rank's share of an endless stream of clips; in a worker process, that worker's share.

    Epoch e is every clip once, in an order drawn from (seed, e) (shuffle=False: as they are), and
    epochs follow without a gap. From position `start` on, batches of `batch_size` go to the ranks
    in turn, and a rank's batches to its workers in turn, as DataLoader collects them.

    Clips of several sizes come in `buckets`, lists of indices that make up all clips: `group` clips
    in a row are of one bucket (its last group is filled up from its next epoch), and groups of all
    buckets are mixed anew in each round through them (shuffle=False: spread evenly). `group` must
    be a multiple of batch_size x world_size, and `start` of `group`, so that a batch is of one size
    and all ranks have the same size at the same time.

    A clip that is damaged is replaced by one of its bucket that depends on its place and the seed
    alone; `notes` has what was wrong.
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
        buckets: Sequence[Sequence[int]] = (),
        group: int = 1,
    ) -> None:
        self.clips, self.batch_size = clips, batch_size
        self.rank, self.world_size = rank, world_size
        self.seed, self.shuffle = seed, shuffle
        self.start = 0
        drawn = np.random.default_rng(seed).integers(2**62, size=TRIES - 1)
        self._further = [0, *map(int, drawn)]
        self._notes: list[Note] = []
        self.buckets = [np.asarray(b) for b in buckets if len(b)] or [np.arange(len(clips))]
        self.group = group if len(self.buckets) > 1 else 1
        if len(self.buckets) > 1 and group % (batch_size * world_size):
            raise ValueError(
                f"{group} clips of one size in a row are no multiple of {batch_size} clips on each "
                f"of {world_size} ranks: give a multiple of {batch_size * world_size}"
            )
        self._orders: dict[int, tuple[int, np.ndarray]] = {}
        self._round: tuple[int, np.ndarray, np.ndarray] | None = None

    def __iter__(self) -> Iterator[Item]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for batch in itertools.count(worker, workers):
            for position in self.positions(batch):
                yield self.read(position)

    def read(self, position: int) -> Item:
        """The clip at this position, or the one in its place; DamagedDataError if there is none."""
        for further in self._further:
            try:
                return self.clips[self.index(position, further)]
            except DamagedClipError as e:
                self._notes.append((position, str(e.file), str(e)))
        _, _, said = self._notes[-1]
        raise DamagedDataError(
            f"none of {TRIES} clips that were drawn for position {position} of the data can be "
            f"read: write the files again; the last one: {said}"
        )

    def notes(self) -> list[Note]:
        """Of each clip that was found damaged since this was last asked, in this process."""
        notes, self._notes = self._notes, []
        return notes

    def positions(self, batch: int) -> range:
        """Where in the stream this rank's batch i since `start` is."""
        first = self.start + (batch * self.world_size + self.rank) * self.batch_size
        return range(first, first + self.batch_size)

    def round_length(self) -> int:
        """Positions in which every clip comes once, groups being whole."""
        return sum(-(-len(bucket) // self.group) * self.group for bucket in self.buckets)

    def keep(self, indices: np.ndarray) -> None:
        """Of all clips these alone, from before the first is taken."""
        kept = [bucket[np.isin(bucket, indices)] for bucket in self.buckets]
        self.buckets = [bucket for bucket in kept if len(bucket)]

    def repeats(self, position: int) -> bool:
        """Whether the clip there has been before, in an earlier epoch."""
        bucket, place = self._place(position)
        return place >= len(self.buckets[bucket])

    def index(self, position: int, further: int = 0) -> int:
        """Which clip is at this position of the stream, or so many places further in its epoch.

        After the epoch's last place comes its first. What are neighbours, of one row group maybe,
        have neighbours further on.
        """
        bucket, place = self._place(position)
        clips = self.buckets[bucket]
        epoch, i = divmod(place, len(clips))
        i = (i + further) % len(clips)
        if not self.shuffle:
            return int(clips[i])
        held, order = self._orders.get(bucket, (-1, clips))
        if held != epoch:
            order = self.shuffled(np.random.default_rng((self.seed, epoch)), clips)
            self._orders[bucket] = epoch, order
        return int(order[i])

    def shuffled(self, rng: np.random.Generator, clips: np.ndarray) -> np.ndarray:
        """These indices in the order of an epoch."""
        return clips[rng.permutation(len(clips))]

    def _place(self, position: int) -> tuple[int, int]:
        """The bucket of a position, and how many of that bucket came before it."""
        if len(self.buckets) == 1:
            return 0, position
        group, within = divmod(position, self.group)
        bucket, before = self._bucket_of(group)
        return bucket, before * self.group + within

    def _bucket_of(self, group: int) -> tuple[int, int]:
        """A group's bucket, and how many groups of that bucket came before it."""
        counts = np.array([-(-len(bucket) // self.group) for bucket in self.buckets])
        number, i = divmod(group, int(counts.sum()))
        if self._round is None or self._round[0] != number:
            labels = np.repeat(np.arange(len(counts)), counts)
            within = np.concatenate([np.arange(n) for n in counts])
            if self.shuffle:
                order = np.random.default_rng((self.seed, number)).permutation(len(labels))
                labels = labels[order]
            else:
                labels = labels[np.argsort((within + 0.5) / counts[labels], kind="stable")]
            self._round = number, labels, _occurrences(labels, len(counts))
        _, labels, before = self._round
        bucket = int(labels[i])
        return bucket, number * int(counts[bucket]) + int(before[i])


def _occurrences(labels: np.ndarray, kinds: int) -> np.ndarray:
    """How often each label stood before in the list."""
    before = np.empty_like(labels)
    for kind in range(kinds):
        (places,) = np.nonzero(labels == kind)
        before[places] = np.arange(len(places))
    return before
