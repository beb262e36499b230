"""From a plain model to one that trains on many devices, in the order that matters."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from train.activation_checkpoint import Mode, apply_activation_checkpointing
from train.titan import ParallelDims, device_type


@dataclass(kw_only=True, slots=True)
class ParallelConfig:
    """The world is replicas x shards: (1, N) is FSDP, (N, 1) DDP, anything else HSDP."""

    replicas: int = 1
    shards: int = -1
    """-1: as many as there are processes for each replica."""
    timeout_seconds: int = 600
    """How long one process waits for the others."""


def init_process_group(timeout_seconds: int) -> torch.device:
    """Join the processes that torchrun started, or make a world of one; returns this one's device.

    Small tensors on the host travel by gloo, those on a GPU by NCCL.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cpu" if device_type == "cpu" else f"{device_type}:{local_rank}")
    if device.type != "cpu":
        torch.accelerator.set_device_index(local_rank)
    if not dist.is_initialized():
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        alone = {"store": store, "rank": 0, "world_size": 1}
        dist.init_process_group(
            "gloo" if device.type == "cpu" else f"cpu:gloo,{device_type}:nccl",
            timeout=timedelta(seconds=timeout_seconds),
            device_id=None if device.type == "cpu" else device,
            **({} if "RANK" in os.environ else alone),
        )
    return device


def parallel_dims(config: ParallelConfig) -> ParallelDims:
    """The mesh's sizes; ValueError where they do not make up the world."""
    world = dist.get_world_size()
    shards = world // config.replicas if config.shards == -1 else config.shards
    if config.replicas < 1 or config.replicas * shards != world:
        raise ValueError(
            f"parallel.replicas {config.replicas} x parallel.shards {config.shards} do not make up "
            f"the {world} processes of this run: give numbers whose product is {world}"
        )
    return ParallelDims(
        dp_replicate=config.replicas,
        dp_shard=shards,
        cp=1,
        tp=1,
        pp=1,
        ep=1,
        world_size=world,
        spmd_backend="partial_dtensor",
    )


def parallelize(
    model: nn.Module,
    dims: ParallelDims,
    *,
    activation_checkpoint: Mode = "none",
    compile: bool = False,
    param_dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Activation checkpointing, then torch.compile of each block, then FSDP2, in place.

    The model must be whole and the same on every rank: FSDP keeps a shard of what it finds.
    (Sharding first and initialising after is the usual order, but on CPU every rank would draw the
    same shard.)
    """
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
