"""A process that is gone or stuck, named by those that waited for it."""

import os
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.distributed_c10d import _world

_set_timeout: Any = getattr(dist, "set_timeout", None) or distributed_c10d._set_pg_timeout


class LostPeerError(RuntimeError):
    """Another process of the run is gone, or did not answer in parallel.timeout_seconds."""


class Waiting:
    """Within it, what the communication failed at becomes LostPeerError, in one line.

    Gloo fails at once when a process is gone, and after the timeout when one is stuck. NCCL ends
    the process itself, after the timeout, with a report of its own.

    Attributes:
        what: that the processes do together now, for the line to name.
    """

    def __init__(self, timeout_seconds: int, what: str = "") -> None:
        self.what = what
        self.timeout_seconds = timeout_seconds

    def __enter__(self) -> Self:
        self.limit()
        return self

    def limit(self) -> None:
        """Bound the waiting in the groups that there are by now."""
        # a mesh makes its groups with torch's own timeouts: 10 minutes of NCCL, 30 of gloo
        for group in _world.pg_map:
            if dist.get_backend(group) != "fake":
                _set_timeout(timedelta(seconds=self.timeout_seconds), group)

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failure = communication_error(error)
        if failure is not None:
            rank, world = os.environ.get("RANK", 0), os.environ.get("WORLD_SIZE", 1)
            said = " ".join(str(failure).splitlines()[0].split())
            raise LostPeerError(
                f"rank {rank} of {world} waited for the others in {self.what}, and one of them is "
                "gone, or was silent for "
                f"parallel.timeout_seconds, {self.timeout_seconds}: {said}; start again to go on "
                "from the last checkpoint (torchrun --max-restarts does it by itself)"
            ) from error


def communication_error(error: BaseException | None) -> BaseException | None:
    """What a backend said of the other processes; None if this is another error."""
    if isinstance(error, CheckpointException):
        causes = (communication_error(cause) for cause, _ in error.failures.values())
        return next((cause for cause in causes if cause is not None), None)
    spoken = isinstance(error, RuntimeError) and "gloo" in str(error)
    return error if spoken or isinstance(error, dist.DistError) else None
