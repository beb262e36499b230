"""What test_lora_runs.py runs in two processes: python lora_ranks.py FOLDER."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from trainer_runs import weights
from wan_runs import lora

from train.settings import TrainingConfig

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    config = lora("debug_bsa_adapt", folder / "two", (folder / "latents", folder / "weights"))
    config.training = TrainingConfig(steps=2, local_batch_size=1)
    trainer = config.build()
    start = weights(trainer)
    numbers = [(record.loss, record.grad_norm) for record in trainer.train().steps]
    trainer.close()
    result = {"start": start, "numbers": numbers, "end": weights(trainer)}
    torch.save(result, folder / f"rank{dist.get_rank()}.pt")
    dist.destroy_process_group()
