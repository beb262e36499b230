"""What `python -m train --plan` says of memory, beside the peaks of processes that train.

    python -m benchmarks.plan_memory [--processes 1 2] [--results FILE]

On a CPU, in fp32: each case trains in processes of its own, which measure how far their resident
memory rises above what it was before the trainer was built; glibc is told to keep nothing that is
freed. Weights, gradients, moments and average
are also added up from the tensors themselves. Rows go to ``benchmarks/results/plan_memory.jsonl``.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import RESULTS, read, write_row
from models.attention import BSA, VSA, Dense
from models.video_dit import VideoDiTConfig, debug, dit_60m
from train.configs.video_dit import loader
from train.distributed.parallelize import ParallelConfig
from train.plan import plan
from train.records.metrics import Metrics, peak_memory, reset_peak_memory
from train.settings import TrainingConfig
from train.trainer import Trainer
from train.validation import Validator
from train.weights.checkpoint import Checkpointer

STEPS = 2  # the second has moments
SLOTS: dict[str, Any] = {"dense": Dense(), "vsa": VSA(), "bsa": BSA()}
SIZES: dict[str, Callable[..., VideoDiTConfig]] = {"debug": debug, "dit_60m": dit_60m}
CASES: list[tuple[str, str, str, int, int]] = [
    # model, attention, checkpointing, ranks that share a clip, processes
    ("debug", "dense", "none", 1, 1),
    ("debug", "vsa", "none", 1, 1),
    ("dit_60m", "dense", "none", 1, 1),
    ("dit_60m", "dense", "full", 1, 1),
    ("dit_60m", "vsa", "none", 1, 1),
    ("dit_60m", "bsa", "selective", 1, 1),
    ("dit_60m", "dense", "none", 1, 2),
    ("dit_60m", "vsa", "none", 1, 2),
    ("dit_60m", "vsa", "none", 2, 2),
]


def config_of(size: str, slot: str, mode: Any, degree: int, folder: str) -> Trainer.Config:
    """1,024 tokens a clip, of moving digits; nothing but training."""
    video, patch = ((4, 128, 128), (1, 8, 8))
    model = SIZES[size](channels=3, video=video, patch=patch, attention=SLOTS[slot])
    return Trainer.Config(
        model=model,
        dataloader=loader(model, source="digits"),
        dump_folder=folder,
        training=TrainingConfig(steps=STEPS),
        validation=Validator.Config(interval=0),
        checkpoint=Checkpointer.Config(enable=False),
        metrics=Metrics.Config(log_freq=1, enable_tensorboard=False),
        activation_checkpoint=mode,
        parallel=ParallelConfig(context_parallel_degree=degree),
    )


def measure(size: str, slot: str, mode: str, degree: int, results: Path) -> None:
    """Train, as one of the processes; the first writes the row."""
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(size, slot, mode, degree, folder)
        # what is loaded once does not belong to a step
        warm = replace(config, model=replace(config.model, layers=1, dim=64, heads=4, ffn=64))
        _train(warm)
        reset_peak_memory(cpu)
        before = peak_memory(cpu)
        trainer = _train(config)
    risen = trainer.history.peak_memory - before
    if trainer.rank:
        return
    found = plan(config, trainer.world, "cpu")
    states = found.states
    write_row(
        results.stem,
        "cpu",
        results=results.parent,
        size=size,
        attention=slot,
        checkpointing=mode,
        processes=trainer.world,
        degree=degree,
        tokens=found.tokens,
        states=states.total,
        states_of_tensors=_tensor_bytes(trainer),
        planned=round(found.memory(trainer.config.activation_checkpoint)),
        measured=risen,
    )
    print(
        f"{size} {slot} {mode}, {trainer.world} processes, {degree} share a clip: planned "
        f"{found.memory(trainer.config.activation_checkpoint) / 1e6:.0f} MB, measured "
        f"{risen / 1e6:.0f} MB",
        flush=True,
    )


def _train(config: Trainer.Config) -> Trainer:
    trainer = config.build()
    trainer.train()
    trainer.close()
    return trainer


def _tensor_bytes(trainer: Any) -> int:
    """Of weights, gradients, moments and average, on this process."""
    tensors = list(trainer.model.parameters())
    tensors += [p.grad for p in tensors if p.grad is not None]
    for optimizer in trainer.optimizers:
        for state in optimizer.state.values():
            tensors += [x for name, x in state.items() if name.startswith("exp_avg")]
    return sum(x.to_local().nbytes for x in [*tensors, *trainer.ema.average.values()])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.plan_memory")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS / "plan_memory.jsonl")
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.case:
        size, slot, mode, degree = args.case
        measure(size, slot, mode, int(degree), args.results)
        return 0
    for *case, processes in CASES:
        if processes in args.processes:
            _start([str(word) for word in case], processes, args.results)
    print(table())
    return 0


def _start(case: Sequence[str], processes: int, results: Path) -> None:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    shared |= {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc then gives back at once what is freed
    command = [sys.executable, "-m", "benchmarks.plan_memory", "--results", str(results)]
    started = [
        subprocess.Popen([*command, "--case", *case], env={**os.environ, **shared, "RANK": str(i)})
        for i in range(processes)
    ]
    if codes := [p.wait() for p in started if p.wait()]:
        raise RuntimeError(f"{case} at {processes} processes ended with {codes}")


def table() -> str:
    """The last row of each case, as docs/launch.md has it."""
    head = ["model", "attention", "checkpointing", "processes", "share a clip", "states, MB"]
    head += ["planned, MB", "measured, MB", "measured / planned"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    names = ("size", "attention", "checkpointing", "processes")
    rows = read("plan_memory")
    latest = {(*(row[name] for name in names), row.get("degree", 1)): row for row in rows}
    for key, row in latest.items():
        sizes = [f"{row[name] / 1e6:.0f}" for name in ("states", "planned", "measured")]
        cells = [*map(str, key), *sizes, f"{row['measured'] / row['planned']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
