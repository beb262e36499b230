"""A run on clips of three sizes; and what test_trainer_buckets.py runs of it in two processes:
python bucket_runs.py FOLDER."""

import sys
from pathlib import Path

import torch.distributed as dist
from trainer_runs import tiny

from models.attention import VSA
from models.wan import debug
from train.data import VideoDataLoader
from train.trainer import Trainer
from train.validation import Validator

SIZES = ((2, 32, 32), (3, 32, 48), (2, 48, 32))  # 32, 72 and 48 tokens


def bucketed(folder: Path | str, **changes) -> Trainer.Config:
    """`tiny`, but for a Wan of 3 channels, which takes any size."""
    slot = VSA(sparsity=0.5, tile=(1, 2, 2))
    size = dict(in_channels=3, out_channels=3, text_dim=64, patch=(1, 8, 8), video=SIZES[0])
    data = VideoDataLoader.Config(source="digits", buckets=SIZES)
    return tiny(folder, model=debug(attention=slot, **size), dataloader=data, **changes)


if __name__ == "__main__":
    validated = Validator.Config(interval=3, clips=7, sample_steps=2)
    config = bucketed(sys.argv[1], local_batch_size=1, global_batch_size=4, validation=validated)
    trainer = config.build()
    trainer.train(until=3)
    trainer.close()
    dist.destroy_process_group()
