"""Parameters, tokens, FLOPs, memory and traffic of a run, put together; nothing is allocated."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from flexsparse.flops import attention_flops
from train.distributed.activation_checkpoint import Mode
from train.plan.layout import Layout
from train.plan.memory import States, gathered, states
from train.plan.trace import Trace, trace
from train.plan.traffic import Traffic, traffic, ulysses_bytes
from train.sparsity.attention_stats import slots
from train.weights.initial import check_sizes
from train.weights.lora import add_lora


class Traces(dict[Mode, Trace]):
    """Of each way of activation checkpointing, made where it is first asked for: in seconds."""

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self._given = config, dtype

    def __missing__(self, mode: Mode) -> Trace:
        config, dtype = self._given
        self[mode] = trace(config, mode, dtype)
        return self[mode]


@dataclass(frozen=True)
class Plan:
    """What a run takes; FLOPs count a multiply and an add as two.

    Where clips have several sizes, buckets, all is that of steps on the largest.

    Attributes:
        config: with training resolved for the layout, and the model for the largest clips.
        layout: the processes.
        parameters: by part of the model.
        trained: parameters that have gradients.
        tokens, rows: of a clip, and inside the model, padding included.
        attention: FLOPs of self-attention for a clip, forward, and forward and backward, where the
            schedule of sparsity ends; its projections are not among them.
        traces: of a pass over `local_batch_size` clips on one device, for each way of activation
            checkpointing.
        states: bytes that last from step to step, on a rank.
        gathered: bytes of whole weights and gradients at once, on a rank.
        host: bytes of the first process on its host at the start: all weights in fp32, of which it
            sends every process its shards.
        traffic: bytes that a rank sends in a step.
    """

    config: Any
    layout: Layout
    parameters: dict[str, int]
    trained: int
    tokens: int
    rows: int
    attention: tuple[int, int]
    traces: dict[Mode, Trace]
    states: States
    gathered: int
    host: int
    traffic: Traffic

    @property
    def batch(self) -> int:
        """Clips in a step."""
        return self.config.training.global_batch_size

    @property
    def mode(self) -> Mode:
        return self.config.activation_checkpoint

    def flops(self) -> int:
        """Of a step on all ranks, with what is made again for the backward."""
        forward, both = self.attention
        again = forward if self.mode == "full" else 0
        one = self.traces[self.mode].total / self.config.training.local_batch_size
        return round(self.batch * (one + both + again))

    def activations(self, mode: Mode) -> float:
        """Bytes of a rank at most: ranks that share a clip divide its rows, or its heads."""
        return self.traces[mode].peak / self.layout.degree

    def memory(self, mode: Mode) -> float:
        """Bytes of a rank at most, if blocks were checkpointed like this."""
        return self.states.total + self.gathered + self.activations(mode)


def plan(
    config: Any,
    processes: int,
    device_type: str = "cuda",
    traces: dict[Mode, Trace] | None = None,
) -> Plan:
    """What a config takes on so many processes of a kind of device.

    `traces` of another plan, if all but the processes is the same, spare the time to make them.

    Raises:
        ValueError: replicas, shards and batch sizes that do not make up the processes, or a model
            that does not fit its loader, as they would be named at the run's own start.
    """
    check_sizes(config)
    layout = Layout.of(config, processes)
    training = config.training.resolved(processes // layout.degree, torch.device(device_type))
    config = dataclasses.replace(config, training=training, model=of_largest_clips(config))
    dtype = getattr(torch, training.param_dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model: Any = config.model.build()
        add_lora(model, config.lora)
    c, tiling = config.model, model.tiling
    rows = model.tokens if tiling is None else tiling.padded_tokens
    of_layer: Any = dict(tokens=model.tokens, heads=c.heads, head_dim=c.head_dim)
    if tiling is not None:
        of_layer |= dict(tiling=tiling, top_k=model.top_k, q_rows=model.q_rows)
    forward, both = (c.layers * attention_flops(**of_layer, backward=x) for x in (False, True))
    gates = sum(isinstance(m, nn.Linear) for m in slots(model)[0].modules())
    in_blocks = sum(p.numel() for p in model.layers.parameters())
    every = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Plan(
        config=config,
        layout=layout,
        parameters=parameters_of(model),
        trained=trained,
        tokens=model.tokens,
        rows=rows,
        attention=(forward, both),
        traces=Traces(config, dtype) if traces is None else traces,
        states=states(model, config, layout.owners),
        gathered=gathered(model, dtype.itemsize),
        host=4 * every,
        traffic=traffic(
            in_blocks=in_blocks,
            outside=every - in_blocks,
            trained=trained,
            itemsize=dtype.itemsize,
            shards=layout.owners,
            replicas=layout.replicas,
            passes=layout.passes(training),
            ulysses=ulysses_bytes(
                rows=rows,
                dim=c.dim,
                out=c.patch_dim,
                batch=training.local_batch_size,
                itemsize=dtype.itemsize,
                layers=c.layers,
                gates=gates,
                degree=layout.degree,
                again=config.activation_checkpoint == "full",
            ),
        ),
    )


def of_largest_clips(config: Any) -> Any:
    """The model's config for the bucket whose clips have the most rows."""

    def rows(model: Any) -> int:
        tiling = model.attention.tiling(model.grid)
        return math.prod(model.grid) if tiling is None else tiling.padded_tokens

    buckets = getattr(config.dataloader, "buckets", ())
    models = [dataclasses.replace(config.model, video=tuple(bucket)) for bucket in buckets]
    return max(models, key=rows, default=config.model)


def parameters_of(model: Any) -> dict[str, int]:
    """By part of a block, all blocks together, attention's gates by themselves; and of the rest."""
    found: dict[str, int] = {}
    for block in model.layers.children():
        for name, parameter in block.named_parameters():
            part = name.split(".")[0]
            found[part] = found.get(part, 0) + parameter.numel()
    gates = sum(p.numel() for slot in slots(model) for p in slot.parameters())
    rest = sum(p.numel() for p in model.parameters()) - sum(found.values())
    for name in found:
        if "self" in name:
            found[name] -= gates
    return found | ({"gates": gates} if gates else {}) | {"outside the blocks": rest}
