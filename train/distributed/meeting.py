"""How the processes of a start of a run find each other, and none of an earlier start.

torchrun keeps one store for all its restarts, with the addresses of processes that are gone. What
they agree on here tells starts apart: torchrun's own count of restarts is one of each node, and
goes up where a process failed alone. Each process says a word that was never said before; rank 0
answers every word that it sees with its own, also words of the dead; who got an answer says so
under rank 0's word, where nobody but the living writes.
"""

import os
import time
from datetime import timedelta
from typing import Any
from uuid import uuid4

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from train.distributed.peers import LostPeerError

POLL_SECONDS = 0.05
"""Between rank 0's looks at who is there."""


def meeting_place(timeout_seconds: int) -> dict[str, Any]:
    """Where this start's processes leave their addresses, as init_process_group takes it."""
    if "RANK" not in os.environ:
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        return {"store": store, "rank": 0, "world_size": 1}
    store, rank, world = next(rendezvous("env://", timeout=timedelta(seconds=timeout_seconds)))
    start = meet(PrefixStore("meeting", store), rank, world, timeout_seconds)
    return {"store": PrefixStore(start, store), "rank": rank, "world_size": world}


def meet(store: Store, rank: int, world: int, timeout_seconds: float) -> str:
    """A word that all processes of this start agree on, new to the store whatever it holds.

    Raises LostPeerError, in a line, where one of them does not come in timeout_seconds.
    """
    word = uuid4().hex
    if rank:
        return _answer(store, rank, world, word, timeout_seconds)
    deadline, answered = time.monotonic() + timeout_seconds, set[bytes]()
    missing = list(range(1, world))
    while missing:
        for other in missing:
            if store.check([f"rank_{other}"]) and (said := store.get(f"rank_{other}")):
                if said not in answered:
                    store.set(f"answer_{said.decode()}", word)
                    answered.add(said)
        missing = [other for other in missing if not store.check([f"{word}_{other}"])]
        if missing and time.monotonic() > deadline:
            raise LostPeerError(
                f"rank 0 of {world} waited for parallel.timeout_seconds, {timeout_seconds:g}, and "
                f"of the others {_some(missing)} did not come: look at their nodes, and start again"
            )
        time.sleep(POLL_SECONDS if missing else 0)
    return word


def _answer(store: Store, rank: int, world: int, word: str, timeout_seconds: float) -> str:
    store.set(f"rank_{rank}", word)
    try:
        store.wait([f"answer_{word}"], timedelta(seconds=timeout_seconds))
    except dist.DistStoreError as error:
        raise LostPeerError(
            f"rank {rank} of {world} waited for parallel.timeout_seconds, {timeout_seconds:g}, and "
            "rank 0 did not come: look at its node, and start again"
        ) from error
    found = store.get(f"answer_{word}").decode()
    store.set(f"{found}_{rank}", "here")
    return found


def _some(ranks: list[int], most: int = 8) -> str:
    """The first of them, and how many more."""
    said = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks[:most]))}"
    return said + (f" and {len(ranks) - most} more" if len(ranks) > most else "")
