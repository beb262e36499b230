"""Which clips are this process's, where there are many."""

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from train.titan import ParallelDims


@dataclass(frozen=True)
class DataRanks:
    """Ranks with clips of their own. Processes that share the tokens of a clip are one rank here.

    Attributes:
        size, rank: how many there are, and which one this process belongs to.
        group: this process and those of the other ranks; None where there are none.
    """

    size: int = 1
    rank: int = 0
    group: ProcessGroup | None = None

    @classmethod
    def of(cls, dims: ParallelDims) -> "DataRanks":
        mesh = dims.get_optional_mesh("batch")
        if mesh is None:
            return cls()
        return cls(mesh.size(), mesh.get_local_rank(), mesh.get_group())

    def total(self, x: Tensor) -> Tensor:
        """The sum of x over the ranks, in place; the same on all processes."""
        if self.group is not None:
            dist.all_reduce(x, group=self.group)
        return x
