"""Parameters, tokens, FLOPs, memory and traffic of a run, put together; nothing is allocated."""

import dataclasses
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from flexsparse.flops import attention_flops
from train.activation_checkpoint import Mode
from train.lora import add_lora
from train.plan.memory import States, gathered, states
from train.plan.trace import Trace, slots_of, trace
from train.plan.traffic import Traffic, traffic


@dataclass(frozen=True)
class Plan:
    """What a run takes; FLOPs count a multiply and an add as two.

    Attributes:
        config: with training resolved for `processes`.
        processes, replicas, shards: the world, and what it is divided into.
        parameters: by part of the model.
        trained: parameters that have gradients.
        rows: of a clip inside the model, padding included.
        attention: FLOPs of self-attention for a clip, forward, and forward and backward, where the
            schedule of sparsity ends; its projections are not among them.
        traces: of a pass over a rank's clips at once, for each way of activation checkpointing.
        states: bytes that last from step to step, on a rank.
        gathered: bytes of whole weights and gradients at once, on a rank.
        traffic: bytes that a rank sends in a step.
    """

    config: Any
    processes: int
    replicas: int
    shards: int
    parameters: dict[str, int]
    trained: int
    tokens: int
    rows: int
    attention: tuple[int, int]
    traces: dict[Mode, Trace]
    states: States
    gathered: int
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

    def memory(self, mode: Mode) -> int:
        """Bytes of a rank at most, if blocks were checkpointed like this."""
        return self.states.total + self.gathered + self.traces[mode].peak


def plan(config: Any, processes: int, device_type: str = "cuda") -> Plan:
    """What a config takes on so many processes of a kind of device.

    Raises:
        ValueError: replicas, shards and batch sizes that do not make up the processes, or a model
            that does not fit its loader, as they would be named at the run's own start.
    """
    parallel = config.parallel
    if processes < 1:
        raise ValueError(f"--plan-gpus is {processes}: give at least 1")
    shards = processes // parallel.replicas if parallel.shards == -1 else parallel.shards
    if parallel.replicas < 1 or parallel.replicas * shards != processes:
        raise ValueError(
            f"parallel.replicas {parallel.replicas} x parallel.shards {parallel.shards} do not "
            f"make up {processes} processes: give numbers whose product is {processes}"
        )
    training = config.training.resolved(processes, torch.device(device_type))
    config = dataclasses.replace(config, training=training)
    dtype = getattr(torch, training.param_dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model: Any = config.model.build()
        add_lora(model, config.lora)
    passes = training.global_batch_size // (training.local_batch_size * processes)
    c, tiling = config.model, model.tiling
    sparse = {} if tiling is None else {"tiling": tiling, "top_k": model.top_k, "q_rows": model.q_rows}
    of_layer = (c.heads, c.head_dim)
    attention = [
        c.layers * attention_flops(model.tokens, *of_layer, **sparse, backward=backward)
        for backward in (False, True)
    ]
    in_blocks = sum(p.numel() for p in model.layers.parameters())
    every = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Plan(
        config=config,
        processes=processes,
        replicas=parallel.replicas,
        shards=shards,
        parameters=parameters_of(model),
        trained=trained,
        tokens=model.tokens,
        rows=model.tokens if tiling is None else tiling.padded_tokens,
        attention=(attention[0], attention[1]),
        traces={mode: trace(config, mode, dtype) for mode in get_args(Mode)},
        states=states(model, config, shards),
        gathered=gathered(model, dtype.itemsize),
        traffic=traffic(
            in_blocks=in_blocks,
            outside=every - in_blocks,
            trained=trained,
            itemsize=dtype.itemsize,
            shards=shards,
            replicas=parallel.replicas,
            passes=passes,
        ),
    )


def parameters_of(model: Any) -> dict[str, int]:
    """By part of a block, all blocks together, attention's gates by themselves; and of the rest."""
    found: dict[str, int] = {}
    for block in model.layers.children():
        for name, parameter in block.named_parameters():
            part = name.split(".")[0]
            found[part] = found.get(part, 0) + parameter.numel()
    gates = sum(p.numel() for slot in slots_of(model) for p in slot.parameters())
    rest = sum(p.numel() for p in model.parameters()) - sum(found.values())
    for name in found:
        if "self" in name:
            found[name] -= gates
    return found | ({"gates": gates} if gates else {}) | {"outside the blocks": rest}
