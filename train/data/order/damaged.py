"""Clips that cannot be read any more: others take their places, up to a number of damaged files."""

import errno
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch.distributed as dist

logger = logging.getLogger(__name__)

Note = tuple[int, str, str]
"""Position in the data, file, and what is wrong with it in words."""


class DamagedClipError(ValueError):
    """A clip is not there, or is not what it was when the files were listed."""

    def __init__(self, file: Path, said: str) -> None:
        super().__init__(said)
        self.file = file


class DamagedDataError(RuntimeError):
    """More of the data cannot be read than may be replaced."""


@contextmanager
def reading(file: Path, where: str, *kinds: type[Exception]) -> Iterator[None]:
    """Within it, a file that is missing, and errors of these kinds, become DamagedClipError.

    What the system failed at (see `of_system`) is not in the bytes, and may be gone the next time:
    DamagedDataError ends the run, to be started again with its data in order.
    """
    try:
        yield
    except (OSError, *kinds) as e:
        said = f"{file}{where}: {' '.join(str(e).split())}"
        if of_system(e) and getattr(e, "errno", None) != errno.ENOENT:
            raise DamagedDataError(f"{said}; start again to go on from the last checkpoint") from e
        raise DamagedClipError(file, said) from e


def of_system(error: Exception) -> bool:
    """Whether a file's reader failed at the machine (its disk, its memory), not at the bytes.

    Arrow has OSErrors without a number, and out of memory among its own errors, for either.
    """
    return isinstance(error, MemoryError) or getattr(error, "errno", None) is not None


@dataclass
class Damage:
    """What this process's clips were replaced for, since its start.

    Attributes:
        most: files that may be damaged.
        files: those that are.
        replaced: clips.
    """

    most: int
    files: list[str] = field(default_factory=list)
    replaced: int = 0

    def see(self, notes: Iterable[Note]) -> None:
        """Count these, each file in a line of the log; DamagedDataError when they are too many."""
        rank = dist.get_rank() if dist.is_initialized() else 0
        positions = set()
        for position, file, said in notes:
            positions.add(position)
            if file in self.files:
                continue
            self.files.append(file)
            logger.error(  # which the log shows of every rank
                "rank %d replaces damaged clips by others of their size, %d in %d files so far: %s",
                *(rank, self.replaced + len(positions), len(self.files), said),
            )
            if len(self.files) > self.most:
                raise DamagedDataError(
                    f"rank {rank} met {len(self.files)} files with damaged clips, and "
                    f"--dataloader.max-damaged is {self.most}: write them again, or raise it; "
                    f"they are {', '.join(self.files)}; the last one: {said}"
                )
        self.replaced += len(positions)
