"""Whether all ranks have the same clips: each finds its own by position, and asks no other."""

import hashlib
from pathlib import Path
from typing import Any

import torch.distributed as dist


def check_alike(folder: str | Path, clips: Any, said: str) -> None:
    """Raise ValueError on all ranks unless `clips` are on each what they are on the first.

    Under torch.distributed a collective. They are compared by their repr; `said` is what an error
    says of this rank's.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    mine = hashlib.sha256(repr(clips).encode()).digest(), said
    gathered: list[Any] = [mine] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    for rank, (digest, there) in enumerate(gathered):
        if digest != gathered[0][0]:
            raise ValueError(
                f"{folder} has {gathered[0][1]} on rank 0, and {there} on rank {rank}: give all "
                "ranks the same videos, that all of them can read"
            )
