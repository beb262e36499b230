"""How the processes of a run are divided: replicas, shards, ranks that share a clip."""

from dataclasses import dataclass
from typing import Any

from flexsparse.nn.ulysses import check_heads
from train.settings import TrainingConfig


@dataclass(frozen=True)
class Layout:
    """processes = replicas x shards x degree.

    Attributes:
        replicas: copies of the weights.
        shards: ranks, or groups of `degree`, that share a copy and have clips of their own.
        degree: ranks that share each clip's rows (Ulysses).
    """

    processes: int
    replicas: int
    shards: int
    degree: int

    @classmethod
    def of(cls, config: Any, processes: int) -> "Layout":
        """ValueError where the sizes do not make up the processes, or heads do not divide."""
        parallel = config.parallel
        degree = parallel.context_parallel_degree
        if processes < 1:
            raise ValueError(f"--plan-gpus is {processes}: give at least 1")
        rest = max(1, parallel.replicas * degree)
        shards = processes // rest if parallel.shards == -1 else parallel.shards
        if min(parallel.replicas, degree) < 1 or rest * shards != processes:
            raise ValueError(
                f"parallel.replicas {parallel.replicas} x parallel.shards {parallel.shards} x "
                f"parallel.context_parallel_degree {degree} do not make up {processes} processes: "
                f"give numbers whose product is {processes}"
            )
        check_heads(config.model.heads, degree)
        return cls(processes, parallel.replicas, shards, degree)

    @property
    def owners(self) -> int:
        """Ranks that own a copy of the weights together."""
        return self.shards * self.degree

    def passes(self, training: TrainingConfig) -> int:
        """Micro-batches of a step."""
        at_once = training.local_batch_size * self.replicas * self.shards
        return training.global_batch_size // at_once
