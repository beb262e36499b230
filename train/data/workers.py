"""Data loading processes that are stuck or gone, named with what they were reading."""

from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed as dist
from torch.utils.data import DataLoader

from train.data.damaged import DamagedDataError


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
            stuck, count = "timed out" in said, max(1, len(processes))
            dead = [i for i, process in enumerate(processes) if not process.is_alive()]
            turn = number % count  # whose batch was waited for, while another may have died
            worker = turn if stuck or not dead else dead[0]
            batch = number + (worker - turn) % count
            batches._shutdown_workers()  # or torch would report those killed as a failure, too
            for process in processes:
                process.kill()
            rank = dist.get_rank() if dist.is_initialized() else 0
            failure = "is stuck at" if stuck else "ended at or after"  # it reads ahead
            raise DataWorkerError(
                f"data worker {worker} of {len(processes)} on rank {rank} "
                f"{failure} {reading(batch)}: {said.splitlines()[0]} "
                "(dataloader.timeout_seconds)"
            ) from error
        yield batch
        number += 1
