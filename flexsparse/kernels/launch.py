"""Sizes of a launch: the blocks that a program holds, its warps and stages, by what a GPU has."""

import math

import torch
import triton
from torch import Tensor


def blocks_of(**sizes: int) -> dict[str, int]:
    """BLOCK_X for each X: the power of two that holds it."""
    return {f"BLOCK_{name}": triton.next_power_of_2(n) for name, n in sizes.items()}


def warps_of(*sizes: int) -> int:
    """Warps whose threads hold 64 numbers each of a block of such sizes."""
    block = math.prod(triton.next_power_of_2(n) for n in sizes)
    return min(max(block // (64 * 32), 1), 16)


def is_hopper(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.get_device_properties(x.device).major == 9


def stages(x: Tensor) -> int:
    """Two where shared memory holds the next block of what a loop reads: not on a GeForce."""
    if not x.is_cuda:
        return 1
    properties = torch.cuda.get_device_properties(x.device)
    return 2 if properties.shared_memory_per_block_optin >= 1 << 17 else 1
