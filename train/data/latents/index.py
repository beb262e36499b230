"""What is in the files of a folder of latents: read by all ranks together, each a share of them."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist

from train.data.latents.records import TENSOR_COLUMNS
from train.data.order.damaged import of_system
from train.data.progress import WorkProgress
from train.data.sources.decode import NO_VIDEOS

Kind = tuple[tuple[int, ...], tuple[int, ...]]
"""The shapes of a record's latent and of its text; () for one that has none."""


class Contents(NamedTuple):
    """Of a file: how many records each row group has, and of which kind each record is."""

    groups: list[int]
    kinds: list[Kind]
    kind: np.ndarray


@dataclass(frozen=True)
class LatentIndex:
    """The records of a folder, in the order of its files and their rows.

    Attributes:
        groups: each row group's file and its number there, int64 [groups, 2].
        records: each record's row group and row in it, int64 [records, 2].
        kinds: those that there are.
        kind: which of them each record is, int64 [records].
    """

    groups: np.ndarray
    records: np.ndarray
    kinds: list[Kind]
    kind: np.ndarray


_read: dict[tuple[Path, int, int], Contents] = {}  # this rank's share of the last folder


def read_index(folder: str | Path, files: Sequence[Path]) -> LatentIndex:
    """The index of these files of a folder, which ranks may have at different places.

    Under torch.distributed a collective: each rank opens a share of the files. Reading the same
    folder again, for its other split, opens those that have changed. Raises on all ranks, whichever
    of them it was: FileNotFoundError for no file, ValueError for a file that is none of latents,
    and where ranks do not have the same files, by their names and sizes.
    """
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    seen = _seen(folder, files)
    mine: list[Contents] | str
    try:
        mine = _read_files(files[rank::ranks])
    except ValueError as e:
        mine = str(e)
    gathered: list[Any] = [(seen, mine)]
    if ranks > 1:
        gathered *= ranks
        dist.all_gather_object(gathered, (seen, mine))
    for other, (there, _) in enumerate(gathered):
        if there != gathered[0][0]:
            raise ValueError(
                f"{folder} has {gathered[0][0]}, on rank 0, and {there}, on rank {other}: give all "
                "ranks the same files"
            )
    if not files:
        raise FileNotFoundError(f"{folder} holds no parquet file: set path to a folder of them")
    for _, found in gathered:
        if isinstance(found, str):
            raise ValueError(found)
    return _merged([gathered[i % ranks][1][i // ranks] for i in range(len(files))])


def _seen(folder: str | Path, files: Sequence[Path]) -> str:
    """Which files this rank has, in words."""
    sizes = [_size(file) for file in files]
    names = [str(file.relative_to(folder)) for file in files]
    digest = hashlib.sha256(repr([*zip(names, sizes, strict=True)]).encode()).hexdigest()[:8]
    return f"{len(files)} files, {sum(sizes):,} bytes ({digest} by their names and sizes)"


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0  # what is wrong with it is said where it is opened


def _read_files(files: Sequence[Path]) -> list[Contents]:
    keys = []
    with WorkProgress("reading the latents' shapes", len(files)) as progress:
        for i, file in enumerate(files):
            progress.show(i, file.name)
            with _named(file):
                found = file.stat()
                keys.append((file, found.st_size, found.st_mtime_ns))
                if keys[-1] not in _read:
                    _read[keys[-1]] = _contents(file)
    for key in _read.keys() - keys:
        del _read[key]
    return [_read[key] for key in keys]


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """ValueError, in a line, for what goes wrong with the file within."""
    try:
        yield
    except (pa.ArrowException, OSError) as e:
        said = " ".join(str(e).split())
        if of_system(e):
            raise ValueError(f"{file} cannot be read: {said}") from e
        with file.open("rb") as opened:
            start = opened.read(32)
        if what := next((what for x, what in NO_VIDEOS.items() if start.startswith(x)), None):
            raise ValueError(f"{file} is no Parquet file: {what}") from e
        raise ValueError(f"{file} is no Parquet file: {said}; remove it or write it again") from e


def _contents(file: Path) -> Contents:
    names = ["vae_latent_shape", "text_embedding_shape"]
    with pq.ParquetFile(file) as parquet:
        missing = [name for name in TENSOR_COLUMNS if name not in parquet.schema_arrow.names]
        if missing:
            raise ValueError(
                f"{file} lacks the columns {', '.join(missing)}: give a folder of latents"
            )
        shapes = parquet.read(columns=names)
        groups = [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]
    number: dict[Kind, int] = {}
    kind = [
        number.setdefault((tuple(latent or ()), tuple(text or ())), len(number))
        for latent, text in zip(*(shapes[name].to_pylist() for name in names), strict=True)
    ]
    return Contents(groups, list(number), np.array(kind, np.int32))


def _merged(contents: Sequence[Contents]) -> LatentIndex:
    number: dict[Kind, int] = {}
    groups, records, kind, before = [], [], [], 0
    for file, found in enumerate(contents):
        sizes = np.array(found.groups, np.int64)
        own = np.arange(len(sizes))
        rows = np.arange(len(found.kind)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        groups.append(np.stack([np.full_like(own, file), own], 1))
        records.append(np.stack([before + np.repeat(own, sizes), rows], 1))
        of = [number.setdefault(shapes, len(number)) for shapes in found.kinds]
        kind.append(np.array(of, np.int64)[found.kind])
        before += len(own)
    return LatentIndex(
        np.concatenate(groups), np.concatenate(records), list(number), np.concatenate(kind)
    )
