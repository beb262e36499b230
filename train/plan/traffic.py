"""Bytes that a rank sends in a step, by formula; what it receives is as much.

A ring is assumed: an all-gather or reduce-scatter of S bytes over n ranks sends S (n - 1) / n from
each of them, an all-reduce twice that. So does an all-to-all of S bytes a rank, whatever the ring.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Traffic:
    """Bytes a step.

    Attributes:
        all_gather: whole weights to each rank, for the forward and again for the backward.
        reduce_scatter: gradients, in fp32, to the ranks that own them.
        all_reduce: those shards' sums over the replicas.
        all_to_all: of Ulysses, between shards of the sequence and of the heads.
    """

    all_gather: float
    reduce_scatter: float
    all_reduce: float
    all_to_all: float

    @property
    def total(self) -> float:
        return self.all_gather + self.reduce_scatter + self.all_reduce + self.all_to_all


def traffic(
    *,
    in_blocks: int,
    outside: int,
    trained: int,
    itemsize: int,
    shards: int,
    replicas: int,
    passes: int,
    ulysses: float = 0.0,
) -> Traffic:
    """Of one rank in a step.

    Args:
        in_blocks, outside: parameters in the blocks, which are gathered for the forward and again
            for the backward, and outside of them, which stay in between.
        trained: parameters that have gradients.
        itemsize: bytes of a weight as it is computed with.
        shards, replicas: how many ranks own a copy of the weights together, and how many copies.
        passes: of a step: micro-batches whose gradients are summed up, each sent.
        ulysses: bytes of `ulysses_bytes` for one pass.
    """
    of_others = (shards - 1) / shards
    return Traffic(
        all_gather=passes * itemsize * (2 * in_blocks + outside) * of_others,
        reduce_scatter=passes * 4 * trained * of_others,
        all_reduce=passes * 2 * 4 * (trained / shards) * (replicas - 1) / replicas,
        all_to_all=passes * ulysses,
    )


def ulysses_bytes(
    *,
    rows: int,
    dim: int,
    out: int,
    batch: int,
    itemsize: int,
    layers: int,
    gates: int,
    degree: int,
    again: bool,
) -> float:
    """Bytes that a rank sends in the all-to-alls of one forward and backward.

    Going in q, k, v and the gates, coming out the output, each `rows / degree` of `rows` on a rank;
    the backward sends the gradient of each back, and blocks made `again` for it send twice. After
    the last layer each rank sends its rows of the `out` numbers of a velocity to all others.
    """
    own = batch * rows / degree * itemsize
    ways = 3 if again else 2
    of_layers = layers * ways * (4 + gates) * own * dim * (degree - 1) / degree
    return of_layers + own * out * (degree - 1)
