"""Several processes for one piece of work that they share by claiming files."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.multiprocessing import get_context


def device_of(worker: int) -> torch.device:
    """The accelerator of this worker, in turn where there are several; else the CPU.

    Under torchrun it is that of the local rank.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", worker))
    return torch.device(accelerator.type, number % torch.accelerator.device_count())


@contextmanager
def shared_cores(processes: int) -> Iterator[None]:
    """Within it, this process uses its part of the cores, of `processes` on this machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // processes))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def beside(others: int, work: Callable[..., None], *args: Any) -> Iterator[None]:
    """Within it, `work(number, *args)` runs in other processes, numbered from 1; waits for them.

    Raises RuntimeError where one ended badly; they are ended where the block itself fails.
    """
    context = get_context("spawn")
    processes = [context.Process(target=work, args=(i + 1, *args)) for i in range(others)]
    for process in processes:
        process.start()
    try:
        yield
        for process in processes:
            process.join()
    except BaseException:
        for process in processes:
            process.terminate()
        raise
    codes = [process.exitcode for process in processes if process.exitcode]
    if codes:
        raise RuntimeError(
            f"{len(codes)} of {others} further processes ended with {codes[0]}: what is complete "
            "stays; start again to go on, with fewer processes if memory is short"
        )
