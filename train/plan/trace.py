"""A training step on tensors without data: what it computes, and what it holds in memory meanwhile.

The trainer's own loss runs forward and backward over the model's own blocks, eagerly. Attention
takes the place of the slots' kernels with what those keep for the backward pass, which does not
depend on the device: q, k, v, the output, the log-sum-exp, gates, means of tiles, lists of tiles.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from flexsparse import VideoTiling
from flexsparse.lists import has_partial_tiles
from flexsparse.scaled import as_rule
from train.activation_checkpoint import Mode, apply_activation_checkpointing
from train.attention_stats import slots
from train.flow import flow_loss
from train.lora import add_lora


@dataclass(frozen=True)
class Trace:
    """Of one pass over a batch on one device, without self-attention's FLOPs.

    Attributes:
        forward: FLOPs by part of a block (`self_attn`, `ffn`, ...), and of all outside the blocks.
        total: FLOPs of forward and backward, with what is made again for the backward.
        kept: bytes that are held from the forward to the backward.
        peak: most bytes at once; weights and their gradients are in neither.
    """

    forward: dict[str, int]
    total: int
    kept: int
    peak: int


def trace(config: Any, mode: Mode, dtype: torch.dtype) -> Trace:
    """A pass of a config's model over its `local_batch_size` clips; blocks are all alike, so that
    two are enough to know any number of them."""
    layers = config.model.layers
    one, two = (_trace(config, n, mode, dtype) for n in (1, 2))

    def of_all(first: int, second: int) -> int:
        return first + (layers - 1) * (second - first)

    return Trace(
        {part: of_all(one.forward[part], two.forward[part]) for part in two.forward},
        of_all(one.total, two.total),
        of_all(one.kept, two.kept),
        of_all(one.peak, two.peak),
    )


def _trace(config: Any, layers: int, mode: Mode, dtype: torch.dtype) -> Trace:
    batch = config.training.local_batch_size
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = dataclasses.replace(config.model, layers=layers).build()
        add_lora(model, config.lora)
        for module in model.modules():  # nn.Module.to can't, with tensors without data
            for name, p in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(p.detach().to(dtype), p.requires_grad))
        for slot in slots(model):
            slot.forward = _Planned(slot)
        apply_activation_checkpointing(model, mode)
        for parameter in model.parameters():  # FSDP takes gradients away as they come
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        c = config.model
        x0 = torch.empty(batch, getattr(c, "in_channels", 0) or c.channels, *c.video)
        context = torch.empty(batch, context_tokens(config), c.context_dim)
        counter = FlopCounterMode(display=False, custom_mapping=ON_CPU)
        with _Live([*model.parameters(), x0, context]) as live, counter:
            loss = flow_loss(model, x0, context, torch.empty_like(x0), torch.rand(batch)).sum()
            forward, kept = _by_part(counter, model), live.bytes
            loss.backward()
        return Trace(forward, counter.get_total_flops(), kept, live.peak)


def context_tokens(config: Any) -> int:
    """Condition tokens of a clip, as the loader gives them."""
    loader = config.dataloader
    return getattr(loader, "text_tokens", 0) or loader.context_tokens


def _by_part(counter: FlopCounterMode, model: nn.Module) -> dict[str, int]:
    """Forward FLOPs of the children of all blocks together, by name, and of the rest."""
    found: dict[str, int] = {}
    for name, ops in counter.get_flop_counts().items():
        steps = [s for s in name.split(".") if s != "_checkpoint_wrapped_module"]
        if len(steps) == 4 and steps[1] == "layers":
            found[steps[3]] = found.get(steps[3], 0) + sum(ops.values())
    return found | {"outside the blocks": counter.get_total_flops() - sum(found.values())}


def _sdpa(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _sdpa_backward(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


ON_CPU = {  # by shapes; torch's counter does not know them
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _sdpa,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _sdpa_backward,
}


class _Live(TorchDispatchMode):
    """Bytes of what operators have made that is still held, now and at most."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self._known = {x.untyped_storage()._cdata for x in known}
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in self._known:
                storage = x.untyped_storage()
                self._held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        return out

    @property
    def bytes(self) -> int:
        self._held = {k: held for k, held in self._held.items() if not held[0].expired()}
        return sum(size for _, size in self._held.values())


class _Planned:
    """Stands in for a slot's forward."""

    def __init__(self, slot: Any) -> None:
        self.linears = [m for m in slot.modules() if isinstance(m, nn.Linear)]
        self.slot = slot

    def __call__(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, tiling: VideoTiling | None
    ) -> Tensor:
        gates = [linear(x) for linear in self.linears]
        extra = 0 if tiling is None else list_bytes(self.slot, q.shape[0], q.shape[1], tiling)
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


def list_bytes(slot: Any, batch: int, heads: int, tiling: VideoTiling) -> int:
    """Of the lists that a layer keeps in training: of query blocks, and of key tiles.

    int32, with a count of partial and one of full tiles for each, see docs/performance.md.
    """
    rule = getattr(slot, "kv_rule", None)
    if rule is None:
        return 0
    n = tiling.num_tiles
    blocks = math.ceil(n / min(slot.query_tiles, n))
    most = as_rule(rule, n).bounds(n)[1]
    kinds = has_partial_tiles(tiling) + (tiling.full_tiles > 0)
    return 4 * batch * heads * (blocks * (2 + kinds * most) + n * (2 + blocks))
