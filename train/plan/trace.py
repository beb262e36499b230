"""A training step on tensors without data: what it computes, and what it holds in memory meanwhile.

The trainer's own loss runs forward and backward over the model's own blocks, eagerly; in the place
of attention's kernels stands what they keep for the backward pass, see `attention.py`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from flexsparse.by_noise import ByNoise
from train.distributed.activation_checkpoint import Mode, apply_activation_checkpointing
from train.plan.attention import PlannedAttention
from train.plan.live import Live
from train.sparsity.attention_stats import slots
from train.weights.lora import add_lora


@dataclass(frozen=True)
class Trace:
    """Of one pass over a batch on one device, without self-attention's FLOPs but a teacher's.

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
    (first, *ones), (second, *twos) = (
        (*_flops(config, n, mode, dtype), *_bytes(config, n, mode, dtype)) for n in (1, 2)
    )
    forward = {part: _of_all(config, first[part], second[part]) for part in second}
    return Trace(forward, *(_of_all(config, one, two) for one, two in zip(ones, twos)))


def total_flops(config: Any, mode: Mode, dtype: torch.dtype) -> int:
    """`trace(...).total` alone, in less than half of the time."""
    return _of_all(config, *(_flops(config, n, mode, dtype)[1] for n in (1, 2)))


def _of_all(config: Any, one: int, two: int) -> int:
    """Of all layers, by what one and two have."""
    return one + (config.model.layers - 1) * (two - one)


def _flops(config: Any, layers: int, mode: Mode, dtype: torch.dtype) -> tuple[dict[str, int], int]:
    """`Trace.forward` and `Trace.total`."""
    counter = FlopCounterMode(display=False, custom_mapping=ON_CPU)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model, given = _planned(config, layers, mode, dtype)
        with counter:
            loss = config.loss(model, *given).sum()
            forward = _by_part(counter)
            loss.backward()
    return forward, counter.get_total_flops()


def _bytes(config: Any, layers: int, mode: Mode, dtype: torch.dtype) -> tuple[int, int]:
    """`Trace.kept` and `Trace.peak`: a pass of its own, since what counts FLOPs by module holds on
    to tensors."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model, given = _planned(config, layers, mode, dtype)
        with Live([*model.parameters(), *given]) as live:
            loss = config.loss(model, *given).sum()
            kept = live.bytes
            loss.backward()
    return kept, live.peak


def _planned(
    config: Any, layers: int, mode: Mode, dtype: torch.dtype
) -> tuple[Any, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The model, with so many layers, and what its loss is computed of."""
    batch = config.training.local_batch_size
    model = dataclasses.replace(densest(config.model), layers=layers).build()
    add_lora(model, config.lora)
    for module in model.modules():  # nn.Module.to can't, with tensors without data
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(p.detach().to(dtype), p.requires_grad))
    for slot in slots(model):
        slot.forward = PlannedAttention(slot)
    apply_activation_checkpointing(model, mode)
    for parameter in model.parameters():  # FSDP takes gradients away as they come
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    c = config.model
    x0 = torch.empty(batch, getattr(c, "in_channels", 0) or c.channels, *c.video)
    context = torch.empty(batch, context_tokens(config), c.context_dim)
    return model, (x0, context, torch.empty_like(x0), torch.rand(batch))


def densest(model: Any) -> Any:
    """A model's config with the sparse method that admits the most, in place of several by noise
    level: without data none can be read."""
    slot = getattr(model, "attention", None)
    if not isinstance(slot, ByNoise):
        return model
    tiling = slot.tiling(model.grid)
    return dataclasses.replace(
        model, attention=max(slot.all_sparse, key=lambda m: m.top_k_for(tiling))
    )


def context_tokens(config: Any) -> int:
    """Condition tokens of a clip, as the loader gives them."""
    loader = config.dataloader
    return getattr(loader, "text_tokens", 0) or loader.context_tokens


def _by_part(counter: FlopCounterMode) -> dict[str, int]:
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
