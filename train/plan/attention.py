"""What stands for a slot's kernels in a plan: what they keep for the backward pass, on any device.

q, k, v, the output, the log-sum-exp, gates, means of tiles, and a bit for each pair of tiles.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flexsparse import VideoTiling


class PlannedAttention:
    """Stands in for a slot's forward."""

    def __init__(self, slot: Any) -> None:
        self.linears = [m for m in slot.modules() if isinstance(m, nn.Linear)]
        self.slot = slot

    def __call__(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, tiling: VideoTiling | None
    ) -> Tensor:
        if getattr(self.slot, "dense", False):  # a teacher, who keeps nothing
            tokens = None if tiling is None else tiling.tokens
            whole, keys, values = (y[:, :, :tokens] for y in (q, k, v))
            F.scaled_dot_product_attention(whole, keys, values)  # FLOPs beside the student's
            return torch.empty_like(q)
        gates = [linear(x) for linear in self.linears]
        extra = 0 if tiling is None else choice_bytes(self.slot, q.shape[0], q.shape[1], tiling)
        if gates and tiling is not None:  # the coarse stage: means of q, k and v, and its output
            extra += 4 * 4 * q.shape[0] * q.shape[1] * tiling.num_tiles * q.shape[3]
        return _Kept.apply(q, k, v, extra, *gates)


class _Kept(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, extra, *gates):
        lse = q.new_empty(q.shape[:3], dtype=torch.float32)
        out = torch.empty_like(q)
        lists = q.new_empty(extra, dtype=torch.uint8)
        ctx.save_for_backward(q, k, v, out, lse, lists, *gates)
        return out

    @staticmethod
    def backward(ctx, *grads):
        q, k, v, _, _, _, *gates = ctx.saved_tensors
        empty = [torch.empty_like(x) for x in (q, k, v, *gates)]
        return *empty[:3], None, *empty[3:]


def choice_bytes(slot: Any, batch: int, heads: int, tiling: VideoTiling) -> int:
    """Of the chosen tiles, as a layer keeps them in training: the bits of every query block."""
    rule = getattr(slot, "kv_rule", None)
    if rule is None:
        return 0
    n = tiling.num_tiles
    blocks = math.ceil(n / min(slot.query_tiles, n))
    return 4 * batch * heads * blocks * math.ceil(n / 32)
