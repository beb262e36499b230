"""Data loading processes that are stuck or gone, named with what they were reading."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch.utils.data import DataLoader

from train.data.order.damaged import DamagedDataError


class DataWorkerError(RuntimeError):
    """A data loading process gave nothing for too long, or ended."""


def watched(loader: DataLoader, reading: Callable[[int], str]) -> Iterator[Any]:
    """The loader's batches; DataWorkerError in one line where a process does not give its own.

    DamagedDataError keeps to its one line as well.

    The processes are then killed: one that hangs in a read does not hear that it should end, and
    Python would wait for it.

    Args:
        loader: with a `timeout` where it has processes.
        reading: what batch i, counted from 0, is made of, in words.
    """
    batches: Any = iter(loader)
    number = 0
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except DamagedDataError as error:  # torch puts a process's traceback before the line
            said = str(error).rpartition(f"{DamagedDataError.__name__}: ")[2].strip()
            raise DamagedDataError(said) from error
        except RuntimeError as error:
            said = str(error)
            if not said.startswith("DataLoader "):
                raise  # what a dataset raised
            processes = list(getattr(batches, "_workers", []))
            batches._shutdown_workers()  # or torch would report those killed as a failure, too
            for process in processes:
                process.kill()
            if "timed out" not in said:  # whichever it was: they read ahead
                ended = str(error.__cause__ or "") or said  # by which signal, where torch knows it
                raise _ended(ended, f" as it waited for {reading(number)}") from error
            raise DataWorkerError(
                f"data worker {number % max(1, len(processes))} of {len(processes)} on rank "
                f"{_rank()} is stuck at {reading(number)}: {said.splitlines()[0]} "
                "(dataloader.timeout_seconds)"
            ) from error
        yield batch
        number += 1


@contextmanager
def ends_named() -> Iterator[None]:
    """Within it, a data loading process that ends is DataWorkerError, in one line.

    Torch raises an error of its own then, in whatever its parent does at that moment.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise _ended(str(error)) from error


def _ended(said: str, when: str = "") -> DataWorkerError:
    return DataWorkerError(f"rank {_rank()} lost a data worker{when}: {said.splitlines()[0]}")


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
