"""What the modules of attention slots have in common: gates row by row, attention over all rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from flexsparse.checks import as_autocast
from flexsparse.tiling import VideoTiling

if TYPE_CHECKING:
    from flexsparse.nn.ulysses import Ulysses


class AttentionLayer(nn.Module):
    """A slot's module. Derive one of your own from it, and it runs under sequence parallelism too.

    What it makes of the block's input is made row by row, in :meth:`gates`; all else sees whole
    sequences of some or all heads, in :meth:`attend`.
    """

    def gates(
        self,
        x: Tensor,
        tiling: VideoTiling | None,
        text_lengths: Tensor | None,
        shards: Ulysses | None,
    ) -> tuple[Tensor, ...]:
        """What :meth:`attend` wants beside q, k and v: ``[B, H, L, D]`` each, from ``[B, L, dim]``.

        Nothing by default. x is this rank's rows of what ``tiling`` and ``text_lengths`` describe,
        where there are ``shards``, and the gates are theirs.
        """
        return ()

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *gates: Tensor,
        tiling: VideoTiling | None,
        text_lengths: Tensor | None,
    ) -> Tensor:
        """Attention of whole sequences, ``[B, H, L, D]`` each: ``[B, H, L, D]``.

        With a ``band: str`` as well where the slot is a ByNoise.
        """
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """(Re-)initialise the parameters; by default there are none."""

    def forward(
        self,
        x: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        tiling: VideoTiling | None,
        text_lengths: Tensor | None = None,
        *,
        shards: Ulysses | None = None,
        band: str | None = None,
    ) -> Tensor:
        """Attend; everything tile-major (in raster order where ``tiling`` is None).

        Args:
            x: ``[B, L, dim]``, the block's (normed) input, from which gates are made.
            q: ``[B, H, L, D]``.
            k, v: likewise; where the layer allows it, with a divisor of the heads.
            tiling: the shape; L is its ``padded_tokens``.
            text_lengths: where texts of the batch differ in length, int ``[B]``.
            shards: how ranks share the rows, where they do; x, q, k and v are then this rank's.
                q, k, v and the gates travel in one all-to-all, the output in another.
            band: of noise levels, by which :class:`flexsparse.by_noise.ByNoise` chooses.

        Returns:
            ``[B, H, L, D]``, with ``shards`` this rank's rows of it.
        """
        gates = self.gates(x, tiling, text_lengths, shards)
        q, k, v = as_autocast(q, k, v)
        given = q, k, v, *(gate.to(v.dtype) for gate in gates)
        options: Any = {} if band is None else dict(band=band)
        if shards is None:
            return self.attend(*given, tiling=tiling, text_lengths=text_lengths, **options)
        whole = shards.to_heads(*given)
        out = self.attend(*whole, tiling=tiling, text_lengths=text_lengths, **options)
        return shards.to_sequence(out)
