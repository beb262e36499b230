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
        sharing: this process and those with which it shares the tokens of each clip; None likewise.
    """

    size: int = 1
    rank: int = 0
    group: ProcessGroup | None = None
    sharing: ProcessGroup | None = None

    @classmethod
    def of(cls, dims: ParallelDims) -> "DataRanks":
        mesh, shared = (dims.get_optional_mesh(name) for name in ("batch", "cp"))
        sharing = None if shared is None else shared.get_group()
        if mesh is None:
            return cls(sharing=sharing)
        return cls(mesh.size(), mesh.get_local_rank(), mesh.get_group(), sharing)

    def alike(self, x: Tensor) -> Tensor:
        """x as the first of those that share a clip has it: a collective of theirs.

        Each reads the clip by itself, and a file may be damaged for one and not for another.
        """
        if self.sharing is not None:
            x = x.contiguous()
            dist.broadcast(x, group=self.sharing, group_src=0)
        return x

    def total(self, x: Tensor) -> Tensor:
        """The sum of x over the ranks, in place; the same on all processes."""
        if self.group is not None:
            dist.all_reduce(x, group=self.group)
        return x
