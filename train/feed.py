"""What the steps train on: this rank's clips, with the noise and the times that they meet."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from train.data.batch import endless
from train.distributed.ranks import DataRanks
from train.flow import FlowConfig, draw
from train.settings import TrainingConfig


def open_split(config: Any, ranks: DataRanks, split: str) -> Any:
    """This rank's loader of a split, for a `Trainer.Config` whose training is resolved."""
    return config.dataloader.build(
        dp_world_size=ranks.size,
        dp_rank=ranks.rank,
        local_batch_size=config.training.local_batch_size,
        global_batch_size=config.training.global_batch_size,
        split=split,
    )


def clips_replaced(dataloader: Any, ranks: DataRanks, device: torch.device) -> Tensor:
    """How many clips of all ranks' loaders could not be read, since they began: a collective."""
    damage = getattr(dataloader, "damage", None)
    return ranks.total(torch.tensor(damage.replaced if damage else 0, device=device))


class Feed:
    """The passes that make up a step: a loader's batches, with noise and times from `draw`.

    A clip's place in the global batch decides what it meets, so the same global batch is the same
    training however it is split.

    Args:
        levels: noise levels at which the model's attention changes, as `draw` has them.

    Attributes:
        batches: what the loader gives, one for each pass.
        passes: in a step.
    """

    def __init__(
        self,
        dataloader: Any,
        *,
        training: TrainingConfig,
        flow: FlowConfig,
        ranks: DataRanks,
        device: torch.device,
        levels: Sequence[float] = (),
    ) -> None:
        self.training, self.flow, self.ranks, self.device = training, flow, ranks, device
        self.levels = levels
        self.passes = training.global_batch_size // (training.local_batch_size * ranks.size)
        self.dataloader, self.batches = dataloader, endless(dataloader)
        self._seconds = 0.0

    def step(self, step: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """This rank's x0, context, noise and t, pass by pass."""
        for part in range(self.passes):
            asked = time.perf_counter()
            batch = next(self.batches)
            self._seconds += time.perf_counter() - asked
            x0, context = (
                self.ranks.alike(batch[name].to(self.device, non_blocking=True))
                for name in ("video", "context")
            )
            first = (part * self.ranks.size + self.ranks.rank) * self.training.local_batch_size
            noise, t = draw(
                x0,
                seed=self.training.seed,
                step=step,
                positions=range(first, first + len(x0)),
                shift=self.flow.shift,
                least=self.flow.least,
                most=self.flow.most,
                levels=self.levels,
            )
            yield x0, context, noise, t

    def seconds_waited(self) -> float:
        """For the loader, since this was last asked."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def clips_replaced(self) -> Tensor:
        """How many clips of all ranks could not be read, since this start: a collective."""
        return clips_replaced(self.dataloader, self.ranks, self.device)

    def close(self) -> None:
        """Release the loader's files and workers."""
        self.batches.close()
