"""From a plain model to one that trains on many devices, in the order that matters."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from flexsparse.nn.layer import AttentionLayer
from flexsparse.nn.ulysses import check_heads
from train.distributed.activation_checkpoint import Mode, apply_activation_checkpointing
from train.distributed.meeting import meeting_place
from train.sparsity.attention_stats import slots
from train.titan import ParallelDims, device_type


@dataclass(kw_only=True, slots=True)
class ParallelConfig:
    """The world is replicas x shards x context_parallel_degree.

    (1, N, 1) is FSDP, (N, 1, 1) DDP, (R, N, 1) HSDP; each rank has clips of its own. With a degree
    of P, P ranks work on the same clips, and each replica's weights are sharded over shards x P.
    """

    replicas: int = 1
    shards: int = -1
    """-1: as many as the processes allow."""
    context_parallel_degree: int = 1
    """Ranks that share the tokens of each clip; a divisor of the model's attention heads."""
    context_parallel_method: str = "ulysses"
    """How they do: "ulysses" (flexsparse/nn/ulysses.py)."""
    timeout_seconds: int = 600
    """How long one process waits for the others."""

    def __post_init__(self) -> None:
        if self.context_parallel_method != "ulysses":
            raise ValueError(
                f'parallel.context_parallel_method is "{self.context_parallel_method}": give '
                f'"ulysses". In a ring, keys and values would have to go past all ranks whatever '
                f"was chosen of them: a query tile's key tiles may be on any rank"
            )


def init_process_group(timeout_seconds: int) -> torch.device:
    """Join the processes that torchrun started, or make a world of one; returns this one's device.

    Small tensors on the host travel by gloo, those on a GPU by NCCL. ValueError on a node that has
    fewer GPUs than processes.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cpu" if device_type == "cpu" else f"{device_type}:{local_rank}")
    if device.type != "cpu":
        there = torch.accelerator.device_count()
        if local_rank >= there:
            raise ValueError(
                f"process {local_rank} of this node, counted from 0, finds {there} devices: start "
                f"no more than there are, --nproc-per-node {there}"
            )
        torch.accelerator.set_device_index(local_rank)
    if not dist.is_initialized():
        dist.init_process_group(
            "gloo" if device.type == "cpu" else f"cpu:gloo,{device_type}:nccl",
            timeout=timedelta(seconds=timeout_seconds),
            device_id=None if device.type == "cpu" else device,
            **meeting_place(timeout_seconds),
        )
    return device


def parallel_dims(config: ParallelConfig) -> ParallelDims:
    """The mesh's sizes; ValueError where they do not make up the world."""
    world, degree = dist.get_world_size(), config.context_parallel_degree
    rest = max(1, config.replicas * degree)
    shards = world // rest if config.shards == -1 else config.shards
    if min(config.replicas, degree) < 1 or rest * shards != world:
        raise ValueError(
            f"parallel.replicas {config.replicas} x parallel.shards {config.shards} x "
            f"parallel.context_parallel_degree {degree} do not make up the {world} processes of "
            f"this run: give numbers whose product is {world}"
        )
    return ParallelDims(
        dp_replicate=config.replicas,
        dp_shard=shards,
        cp=degree,
        tp=1,
        pp=1,
        ep=1,
        world_size=world,
        spmd_backend="partial_dtensor",
    )


def check_shared_sequences(config: Any, degree: int) -> None:
    """Raise ValueError unless so many ranks can share a clip's tokens in the model of a config."""
    if degree == 1:
        return
    with torch.device("meta"):
        model = config.build()
    name = f"parallel.context_parallel_degree is {degree}"
    if not hasattr(model, "sequence_group"):
        raise ValueError(f"{name}, but {type(model).__name__} has no sequence_group: set it to 1")
    try:
        check_heads(model.config.heads, degree)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    for slot in slots(model):
        if not isinstance(slot, AttentionLayer):
            raise ValueError(
                f"{name}, but {type(slot).__name__} is no flexsparse.nn.AttentionLayer, which "
                f"keeps apart what is made of a row and what of all: derive it from there"
            )


def parallelize(
    model: nn.Module,
    dims: ParallelDims,
    *,
    activation_checkpoint: Mode = "none",
    compile: bool = False,
    param_dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Shared sequences, activation checkpointing, torch.compile of each block, FSDP2; in place.

    The model may be on the meta device, to be filled when it is sharded (initial.py); a whole one
    must be the same on every rank, of which each keeps a shard.
    """
    if dims.cp_enabled:
        cast(Any, model).sequence_group = dims.get_mesh("cp").get_group()
    apply_activation_checkpointing(model, activation_checkpoint)
    layers = cast(nn.ModuleDict, model.layers)
    if compile:
        # clips of each size are a program, of static sizes, and another one without gradients
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        for block in layers.children():
            block.compile(fullgraph=True, dynamic=False)
    mesh = cast(DeviceMesh, dims.get_activated_mesh(["dp_replicate", "fsdp"]))
    policy = MixedPrecisionPolicy(
        param_dtype=param_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in layers.children():
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # the loss is a share of the global batch's mean
            module.set_force_sum_reduction_for_comms(device_type == "cpu")  # gloo has no PREMUL_SUM
    return model
