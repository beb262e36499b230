"""What test_alike.py runs in two processes: python alike_ranks.py FOLDER."""

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from trainer_runs import tiny

from models.attention import Dense
from train.data.order.damaged import DamagedClipError
from train.data.sources.digits import MovingDigits
from train.data.sources.video_folder import VideoFolder
from train.distributed.parallelize import ParallelConfig
from train.distributed.peers import LostPeerError, Waiting
from train.validation import Validator
from train.weights.checkpoint import Checkpointer

SHARED = ParallelConfig(context_parallel_degree=2)
VALIDATED = Validator.Config(interval=2, clips=5, sample_steps=0)


def opened(folder: Path, videos: str) -> str:
    """How many clips there are, or the error."""
    size = {"num_frames": 10, "height": 32, "width": 32}
    try:
        return str(len(VideoFolder(folder / videos, **size, cache_dir=folder / videos)))
    except ValueError as e:
        return str(e)


def lose_a_third(rank: int) -> None:
    """Of the clips, for one of the two processes."""
    plain = MovingDigits.__getitem__

    def read(self, index):
        if index % 3 == 0 and dist.get_rank() == rank:
            raise DamagedClipError(Path(f"{index}.mp4"), "it is gone")
        return plain(self, index)

    MovingDigits.__getitem__ = read


def trained(folder: Path) -> list:
    """Losses of training and of validation, where two processes share each clip."""
    quiet = dict(checkpoint=Checkpointer.Config(enable=False), validation=VALIDATED)
    config = tiny(folder, attention=Dense(), steps=2, parallel=SHARED, **quiet)
    config.dataloader.max_damaged = 99
    trainer = config.build()
    trainer.train()
    trainer.close()
    return [[step.loss for step in trainer.history.steps], trainer.history.validation]


def waited() -> str:
    """What a process hears of a silent one in a group that was made like those of a mesh."""
    try:
        with Waiting(1, "a group") as waiting:
            group = dist.new_group([0, 1])
            waiting.limit()
            time.sleep(3 * dist.get_rank())
            dist.all_reduce(torch.zeros(()), group=group)
    except LostPeerError as e:
        return str(e)
    return ""


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    straight = trained(folder / "straight")
    rank = dist.get_rank()
    found = {
        "own": opened(folder, f"videos{rank}"),
        "other": opened(folder, f"other{rank}"),
        "same": opened(folder, "videos0"),
        "straight": straight,
    }
    lose_a_third(1)
    found["damaged"] = trained(folder / "damaged")
    found["waited"] = waited()
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
