"""A run that faults strike: python fault_runs.py FAULT, under torchrun or as one of its ranks.

FAULT is `kills` (by SIGKILL: at the first start rank 1 in step 4, at the second rank 0 while step 6
is being saved), `stuck` (the data worker of rank 1 hangs) or `none` (rank 0 keeps what it loaded in
loaded.pt); then options of `train`.
"""

import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed.checkpoint import FileSystemWriter
from trainer_runs import tiny, weights

from train import nonfinite, trainer
from train.__main__ import main
from train.data.sources.digits import MovingDigits
from train.distributed.parallelize import ParallelConfig
from train.trainer import Trainer
from train.weights.checkpoint import Checkpointer

TIMEOUT = 4  # seconds that a rank of a run with a stuck worker waits


def faulty(folder: Path | str = "out/faulty", **changes) -> Trainer.Config:
    """A global batch of 4 clips, at 1, 2 or 4 processes; each step is saved."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    changes = {"steps": 7, "checkpoint": Checkpointer.Config(interval=1)} | changes
    return tiny(folder, local_batch_size=4 // size, global_batch_size=4, **changes)


def run() -> Trainer.Config:
    return faulty()


def run_with_workers() -> Trainer.Config:
    config = faulty(parallel=ParallelConfig(timeout_seconds=TIMEOUT))
    config.dataloader.num_workers, config.dataloader.timeout_seconds = 1, 2 * TIMEOUT
    return config


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk on which no file grows beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def kill(*_, **__) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_step(step: int) -> None:
    """Between the forward and the backward pass."""
    passes = 0

    def backward(share):
        nonlocal passes
        passes += 1
        if passes == step:
            kill()
        nonfinite.backward(share)

    trainer.backward = backward


def die_while_saving(step: int) -> None:
    """When all data is written, and not the file that makes it a checkpoint."""
    finish = FileSystemWriter.finish

    def finish_or_die(self, *given, **named):
        if Path(self.path).name == f"step-{step}":
            kill()
        return finish(self, *given, **named)

    FileSystemWriter.finish = finish_or_die


def hang_in_reading(clip: int) -> None:
    """At the n-th clip that this rank's data worker reads."""
    real, read = MovingDigits.__getitem__, 0

    def read_or_hang(self, index):
        nonlocal read
        read += 1
        while read >= clip:
            time.sleep(60)
        return real(self, index)

    MovingDigits.__getitem__ = read_or_hang


def keep_what_is_loaded() -> None:
    """Whole weights and average as training begins."""
    train = Trainer.train

    def train_then(self, until=None):
        found = weights(self)
        if self.rank == 0:
            torch.save(found, Path(self.config.dump_folder, "loaded.pt"))
        return train(self, until)

    Trainer.train = train_then


if __name__ == "__main__":
    fault, *options = sys.argv[1:]
    rank, start = int(os.environ["RANK"]), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if fault == "kills" and (rank, start) == (1, "0"):
        die_in_step(4)
    if fault == "kills" and (rank, start) == (0, "1"):
        die_while_saving(6)
    if fault == "stuck" and rank == 1:
        hang_in_reading(5)
    if fault == "none":
        keep_what_is_loaded()
    sys.exit(main(["--module", "fault_runs", *options]))
