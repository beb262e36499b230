"""Sizes of a launch: the blocks that a program holds, and its warps."""

import math

import triton


def blocks_of(**sizes: int) -> dict[str, int]:
    """BLOCK_X for each X: the power of two that holds it."""
    return {f"BLOCK_{name}": triton.next_power_of_2(n) for name, n in sizes.items()}


def warps_of(*sizes: int) -> int:
    """Warps whose threads hold 64 numbers each of a block of such sizes."""
    block = math.prod(triton.next_power_of_2(n) for n in sizes)
    return min(max(block // (64 * 32), 1), 16)
