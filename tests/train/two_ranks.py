"""What test_trainer_ranks.py runs in two processes: python two_ranks.py FOLDER."""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from trainer_runs import WAN, tiny, weights

from models.attention import Dense
from train.distributed.parallelize import ParallelConfig
from train.losses import VelocityDistillation
from train.records.metrics import Metrics
from train.sparsity.annealing import SparsityConfig
from train.sparsity.schedules import FallingTiles
from train.trainer import Trainer
from train.validation import Validator


def train(config: Trainer.Config, out: Path) -> None:
    """Save this rank's first shards, and at the end what the steps measured and whole weights."""
    trainer = config.build()
    shards = {name: p.to_local().clone() for name, p in trainer.model.named_parameters()}
    numbers = [(record.loss, record.grad_norm) for record in trainer.train().steps]
    out.mkdir(exist_ok=True)
    result = {"shards": shards, "numbers": numbers, "weights": weights(trainer)}
    torch.save(result, out / f"rank{dist.get_rank()}.pt")
    trainer.close()


def stop_one_rank(trainer: Trainer, step: int) -> None:
    """Send SIGTERM to rank 1 alone, in the midst of this step."""
    real = trainer.train_step

    def train_step() -> None:
        if dist.get_rank() == 1 and trainer.step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        real()

    trainer.train_step = train_step


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    validated = Validator.Config(interval=3, clips=4, sample_steps=0)
    shown = Metrics.Config(log_freq=1)
    config = tiny(folder / "fsdp_run", local_batch_size=2, validation=validated, metrics=shown)
    train(config, folder / "fsdp")  # with VSA
    ddp = ParallelConfig(replicas=2)
    config = tiny(folder / "ddp_run", attention=Dense(), local_batch_size=2, parallel=ddp)
    train(config, folder / "ddp")
    falling = SparsityConfig(schedule=FallingTiles(dense_steps=1, by=1, every=1))
    annealed = tiny(folder / "annealed", local_batch_size=2, sparsity=falling).build()
    annealed.train()
    annealed.close()
    saved = annealed.annealing.break_even, [r.loss for r in annealed.history.steps]
    torch.save(saved, folder / f"annealed_{dist.get_rank()}.pt")
    loss = VelocityDistillation(weight=0.7)
    train(tiny(folder / "dit_run", local_batch_size=2, loss=loss), folder / "dit")
    train(tiny(folder / "wan_run", local_batch_size=2, loss=loss, model=WAN), folder / "wan")
    stopped = tiny(folder / "stopped", attention=Dense(), local_batch_size=2).build()
    stop_one_rank(stopped, step=2)
    stopped.train()
    stopped.close()
    torch.save(stopped.step, folder / f"stopped_at_{dist.get_rank()}.pt")
    dist.destroy_process_group()
