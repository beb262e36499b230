"""VSA's gates: the coarse output, spread to the tokens of its tile, and the fine one, in a sum."""

from __future__ import annotations

import sys

from torch import Tensor

from flexsparse.tiling import VideoTiling

if sys.platform == "linux":  # where the package depends on triton
    from flexsparse.kernels import combine as kernels


def combine(
    fine: Tensor,
    coarse: Tensor,
    gate_coarse: Tensor,
    gate_fine: Tensor | None,
    tiling: VideoTiling,
) -> Tensor:
    """``fine * gate_fine + coarse * gate_coarse`` (VSA, arXiv 2505.13389, output).

    Args:
        fine: tile-major ``[B, H, padded_tokens, D]``.
        coarse: ``[B, H, num_tiles, D]`` in fp32 (fp64 for fp64), one row per tile.
        gate_coarse: as fine.
        gate_fine: as fine; None means 1.
        tiling: the shape. What stands in padding has no effect.

    Returns:
        ``[B, H, padded_tokens, D]``, zeros in padding, computed in the dtype of coarse and rounded
        once to that of fine. Differentiable in all four, with zeros in the padding of gradients. On
        CUDA its memory order is ``[B, padded_tokens, H, D]``, so that merging heads copies nothing.

    >>> tiling = VideoTiling((2, 4, 4), tile=(2, 2, 2))
    >>> fine = torch.ones(1, 1, tiling.padded_tokens, 16)
    >>> coarse = torch.arange(4.0)[:, None].expand(1, 1, 4, 16)
    >>> tiling.from_tiles(combine(fine, coarse, fine, None, tiling))[0, 0, :, 0].view(2, 4, 4)[0]
    tensor([[1., 1., 2., 2.],
            [1., 1., 2., 2.],
            [3., 3., 4., 4.],
            [3., 3., 4., 4.]])
    """
    if fine.is_cuda:
        shape = list(tiling.video), list(tiling.tile), tiling.rows
        return kernels.combine(fine, coarse, gate_coarse, gate_fine, *shape)
    return combine_twin(fine, coarse, gate_coarse, gate_fine, tiling)


def combine_twin(
    fine: Tensor,
    coarse: Tensor,
    gate_coarse: Tensor,
    gate_fine: Tensor | None,
    tiling: VideoTiling,
) -> Tensor:
    """:func:`combine` in plain PyTorch, on any device."""
    # The gates are factors in the gradients of coarse and fine: zeros from above stop no NaN there.
    gates = [gate_coarse] if gate_fine is None else [gate_coarse, gate_fine]
    gate, *of_fine = tiling.zero_each(gates)
    out = coarse.unsqueeze(-2) * gate.unflatten(-2, (tiling.num_tiles, tiling.rows))
    out = out.flatten(-3, -2) + (fine.to(coarse.dtype) * of_fine[0] if of_fine else fine)
    return tiling.zero_padding(out).to(fine.dtype)
