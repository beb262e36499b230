"""What test_faults.py runs in two processes: python faulty_ranks.py FOLDER."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from fault_runs import faulty, files_of_at_most
from test_nonfinite import poison
from trainer_runs import weights

from train import log
from train.trainer import Trainer
from train.weights.checkpoint import complete_steps


def undisturbed(folder: Path) -> dict:
    trainer = faulty(folder).build()
    trainer.train()
    trainer.close()
    return {"weights": weights(trainer), "losses": [r.loss for r in trainer.history.steps]}


def full_disk_on_one_rank(folder: Path) -> dict:
    trainer = faulty(folder, steps=4).build()
    trainer.train(until=2)
    if dist.get_rank() == 1:
        with files_of_at_most(2_000):
            trainer.train(until=3)
    else:
        trainer.train(until=3)
    after = complete_steps(folder / "checkpoint")
    trainer.train()
    trainer.close()
    return {"after": after, "end": complete_steps(folder / "checkpoint")}


def nan_on_one_rank(folder: Path) -> dict:
    trainer: Trainer = faulty(folder, steps=4).build()
    if dist.get_rank() == 1:
        poison(trainer, [2])
    trainer.train(until=1)
    before = weights(trainer)
    trainer.train(until=2)
    after = weights(trainer)
    trainer.train()
    trainer.close()
    stayed = all(torch.equal(before[name], after[name]) for name in before)
    return {"stayed": stayed, "skipped": [r.step for r in trainer.history.skipped]}


if __name__ == "__main__":
    log.to_console()
    runs = [undisturbed, full_disk_on_one_rank, nan_on_one_rank]
    found = {run.__name__: run(Path(sys.argv[1], run.__name__)) for run in runs}
    torch.save(found, Path(sys.argv[1], f"rank{dist.get_rank()}.pt"))
    dist.destroy_process_group()
