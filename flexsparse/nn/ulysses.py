"""Ulysses sequence parallelism (DeepSpeed-Ulysses, arXiv 2309.14509).

Each of P ranks has some rows of every sequence; in attention each has all rows of some heads. One
all-to-all leads there and another one back:

    q, k, v and gates [B, H, rows, D]  ->  [B, H / P, L, D]  ->  attention  ->  [B, H, rows, D]

A head neither chooses nor attends by what other heads do: whatever attention computes on whole
sequences it computes on whole sequences of fewer heads, tiles, text and masks included:

    shards = Ulysses.even(group, tiling.padded_tokens)
    q, k, v = shards.to_heads(q, k, v)  # from this rank's rows of them
    out = shards.to_sequence(vsa_attention(q, k, v, tiling, top_k=64))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed._functional_collectives as collectives
from torch import Tensor
from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Ulysses:
    """How P ranks share the L rows of every sequence: one after the other, rank r ``rows[r]``.

    A rank's rows may begin and end anywhere, within a tile or between video and text. All ranks of
    the group call the methods together, with tensors that agree in all but their rows. Works under
    ``torch.compile(fullgraph=True)``.

    Args:
        group: name of the process group (``ProcessGroup.group_name``).
        rank: this process's place in it.
        rows: of each rank, at least 1; their sum is L, ``tiling.padded_tokens`` for what is
            tile-major.

    Raises:
        ValueError: a rank without rows, or one that is not among them.

    >>> Ulysses("group", rank=1, rows=(3, 4, 3)).shard(torch.arange(10), 0)
    tensor([3, 4, 5, 6])
    """

    group: str
    rank: int
    rows: tuple[int, ...]

    def __post_init__(self) -> None:
        if not all(type(n) is int and n > 0 for n in self.rows):
            raise ValueError(f"rows are {self.rows}: give each rank at least one")
        if not 0 <= self.rank < self.degree:
            raise ValueError(f"rank {self.rank} has none of the {self.degree} rows {self.rows}")

    @classmethod
    def even(cls, group: ProcessGroup, length: int) -> Ulysses:
        """``length`` rows among the ranks of ``group``, as evenly as they go, the first ones more.

        Raises:
            ValueError: fewer rows than ranks.
        """
        degree = group.size()
        if length < degree:
            raise ValueError(
                f"{length} rows cannot be shared by {degree} ranks: lower the degree of sequence "
                f"parallelism to {length} or less"
            )
        rows = tuple(length // degree + (rank < length % degree) for rank in range(degree))
        return cls(group.group_name, group.rank(), rows)

    @property
    def degree(self) -> int:
        """Ranks, P."""
        return len(self.rows)

    @property
    def length(self) -> int:
        """Rows of all ranks, L."""
        return sum(self.rows)

    def shard(self, x: Tensor, dim: int) -> Tensor:
        """This rank's rows of x, which has all of them along ``dim``; a view."""
        if x.shape[dim] != self.length:
            raise ValueError(
                f"x is {list(x.shape)}, with {x.shape[dim]} rows, but the ranks share "
                f"{self.length}: {self.rows}"
            )
        return x.narrow(dim, sum(self.rows[: self.rank]), self.rows[self.rank])

    def gather(self, x: Tensor, dim: int) -> Tensor:
        """All rows, on every rank, from this rank's along ``dim``; sends P - 1 times x.

        The gradient of x is that of this rank's rows. Where all ranks go on alike, to a loss say,
        the gradients of the parameters before are then the part that this rank's rows have in
        them: their sum over the ranks is the whole.
        """
        if x.shape[dim] != self.rows[self.rank]:
            raise ValueError(
                f"x is {list(x.shape)}, with {x.shape[dim]} rows, but rank {self.rank} has "
                f"{self.rows[self.rank]} of {self.rows}"
            )
        everything = self._gathered(x, dim, self.rows)
        start = sum(self.rows[: self.rank])
        end = start + self.rows[self.rank]
        before = everything.narrow(dim, 0, start)
        after = everything.narrow(dim, end, self.length - end)
        return torch.cat((before, x, after), dim)

    def gather_heads(self, x: Tensor) -> Tensor:
        """``[B, H, ...]`` on every rank, of its own heads ``[B, H / P, ...]``; no gradient."""
        return self._gathered(x, 1, (x.shape[1],) * self.degree)

    def to_heads(self, *sequences: Tensor) -> tuple[Tensor, ...]:
        """All rows of this rank's heads, the ``rank``-th H / P of each: one all-to-all.

        Of each tensor a rank sends ``B * rows[rank] * D * H * (P - 1) / P`` numbers, as many as the
        other ranks' heads have in its rows. They are copied once, into the order in which they
        are sent. What arrives is not copied: results are views, in memory ``[L, B, heads, D]``.

        Args:
            sequences: ``[B, H, rows[rank], D]`` each, alike but for H, which P divides: q, k, v
                and gates; k and v may have fewer heads than q.

        Returns:
            ``[B, H / P, L, D]`` each. Differentiable; the backward is one all-to-all as well.

        Raises:
            ValueError: heads that P does not divide, other rows than this rank's, mixed dtypes or
                devices.
        """
        self._check_alike(sequences)
        heads = [x.shape[1] // self.degree for x in sequences]
        # [P, rows, B, heads, D]
        parts = [x.unflatten(1, (self.degree, -1)).permute(1, 3, 0, 2, 4) for x in sequences]
        sent = torch.cat(parts, 3).flatten(0, 1).contiguous()
        mine = [self.rows[self.rank]] * self.degree
        received = self._all_to_all(sent, list(self.rows), mine)
        return tuple(x.permute(1, 2, 0, 3) for x in received.split(heads, 2))

    def to_sequence(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`to_heads`, for one tensor: this rank's rows of all heads.

        A rank sends ``B * (L - rows[rank]) * D * H / P`` numbers.

        Args:
            x: ``[B, H / P, L, D]``.

        Returns:
            ``[B, H, rows[rank], D]``, in memory ``[B, rows[rank], H, D]``, so that merging heads
            copies nothing. Differentiable; the backward is one all-to-all as well.
        """
        if x.dim() != 4 or x.shape[2] != self.length:
            raise ValueError(f"x is {list(x.shape)}: [B, heads, {self.length}, D] is due")
        mine = [self.rows[self.rank]] * self.degree
        received = self._all_to_all(x.permute(2, 0, 1, 3).contiguous(), mine, list(self.rows))
        parts = received.unflatten(0, (self.degree, -1))  # [P, rows, B, heads, D]
        return parts.permute(2, 1, 0, 3, 4).flatten(2, 3).transpose(1, 2)

    def _gathered(self, x: Tensor, dim: int, sizes: tuple[int, ...]) -> Tensor:
        """What the ranks have along ``dim``, ``sizes`` of it, one after the other; no gradient."""
        mine = x.detach().movedim(dim, 0)
        copies = mine.expand(self.degree, *mine.shape).flatten(0, 1).contiguous()
        received = self._all_to_all(copies, list(sizes), [sizes[self.rank]] * self.degree)
        return received.movedim(0, dim)

    def _all_to_all(self, x: Tensor, received: list[int], sent: list[int]) -> Tensor:
        # eager code would hand on a tensor subclass that has no memory of its own for a kernel
        group = cast(Any, self.group)
        arriving = collectives.all_to_all_single_autograd(x, received, sent, group)
        return collectives.wait_tensor(arriving)

    def _check_alike(self, sequences: tuple[Tensor, ...]) -> None:
        first = sequences[0]
        for x in sequences:
            if x.dim() != 4 or x.shape[2] != self.rows[self.rank]:
                raise ValueError(
                    f"sequences are {[list(x.shape) for x in sequences]}: "
                    f"[B, H, {self.rows[self.rank]}, D] is due of rank {self.rank} of {self.rows}"
                )
            check_heads(x.shape[1], self.degree)
            kind, due = ((y.shape[0], y.shape[3], y.dtype, y.device) for y in (x, first))
            if kind != due:
                raise ValueError(
                    f"sequences must agree in batch, dim, dtype and device, to travel together: "
                    f"{', '.join(f'{list(y.shape)} {y.dtype} {y.device}' for y in sequences)}"
                )


def check_heads(heads: int, degree: int) -> None:
    """Raise ValueError unless ``degree`` ranks can have equally many of the heads."""
    if heads % degree:
        fits = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise ValueError(
            f"{heads} heads cannot be shared by {degree} ranks, as Ulysses sequence parallelism "
            f"does: give a degree that divides them: {fits}"
        )
