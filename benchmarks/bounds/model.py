"""From what a kernel's programs use to the least time of its launch on an H200.

Every figure is a rate that the chip cannot pass, as far as is published. What is left out, and
which way, docs/results/bounds.md says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.bounds.sass import Counts


class Rates(NamedTuple):
    """Of a chip; the defaults are an H200's.

    Attributes:
        clock: Hz, the highest that it boosts to. The data sheet's 989 TFLOP/s are at 1.83e9.
        processors: multiprocessors, each with 4 schedulers of one instruction a cycle.
        shared: bytes a cycle of a multiprocessor's shared memory.
        l2: bytes a cycle from L2 in all: NVIDIA says 5,120 of the A100, and nothing of Hopper.
        memory: bytes a second.
        registers, shared_size, threads, blocks: of a multiprocessor.
    """

    clock: float = 1.98e9
    processors: int = 132
    shared: float = 128
    l2: float = 5120
    memory: float = 4.8e12
    registers: int = 65536
    shared_size: int = 227 << 10
    threads: int = 2048
    blocks: int = 32


H200 = Rates()
SCHEDULERS = 4
RESERVED = 1024  # bytes of shared memory that the system takes of each block


class Program(NamedTuple):
    """So many programs of a launch that are alike: what a warp of one uses; of FlexAttention's
    also what one of a warpgroup's four warps issues for 64 x 64 scores."""

    count: float
    used: Counts
    issued: float = 0


class Launch(NamedTuple):
    """A kernel as it is started.

    Attributes:
        warps, registers, shared: of a program (a block of threads); registers of a thread.
        programs: kinds of them.
        memory: bytes that have to pass through memory.
    """

    warps: int
    registers: int
    shared: int
    programs: Sequence[Program]
    memory: float


class Bound(NamedTuple):
    """The least time of a launch.

    Attributes:
        blocks: programs that fit on a multiprocessor at a time.
        cycles: by what binds.
        ms: the most of these.
        binds: which it is.
        apart: ms if nothing hid behind the products of a program but what other programs on the
            multiprocessor do: its warps march in step.
    """

    blocks: int
    cycles: dict[str, float]
    ms: float
    binds: str
    apart: float


def fit(launch: Launch, rates: Rates = H200) -> int:
    """Programs on a multiprocessor, at least 1."""
    of_warp = -(-launch.registers // 8) * 8 * 32
    per_scheduler = rates.registers // SCHEDULERS // of_warp
    by_registers = per_scheduler * SCHEDULERS // launch.warps
    by_shared = (rates.shared_size + RESERVED) // (launch.shared + RESERVED)
    by_threads = rates.threads // (32 * launch.warps)
    return max(1, min(by_registers, by_shared, by_threads, rates.blocks))


def bound(launch: Launch, rates: Rates = H200) -> Bound:
    """Of the launch alone, all of the chip its own."""
    blocks = fit(launch, rates)
    count = sum(x.count for x in launch.programs)
    used = Counts()
    for program in launch.programs:
        used = used.plus(program.used.times(program.count))
    alike = len(launch.programs) == 1
    # The multiprocessor with the most programs has a whole number of them.
    most = math.ceil(count / rates.processors) / count if alike else 1 / rates.processors
    waves = blocks * rates.processors
    turns = math.ceil(count / waves) / count if alike else 1 / waves
    a_scheduler = launch.warps / SCHEDULERS
    cycles = {
        "tensor cores": used.tensor * a_scheduler * most,
        "issue": used.issue * a_scheduler * most,
        "half-rate units": used.alu * a_scheduler * most,
        "exp2": used.exp2 * a_scheduler * most,
        "shared memory": used.shared * launch.warps / rates.shared * most,
        "L2": used.device * launch.warps / rates.l2,
        "memory": launch.memory / rates.memory * rates.clock,
        "one warp": used.chain * turns,
    }
    binds = max(cycles, key=lambda name: cycles[name])
    in_step = used.tensor * a_scheduler + max(used.exposed_stall, used.exposed * a_scheduler)
    apart = max(cycles[binds], in_step * turns)
    return Bound(
        blocks, cycles, 1e3 * cycles[binds] / rates.clock, binds, 1e3 * apart / rates.clock
    )
