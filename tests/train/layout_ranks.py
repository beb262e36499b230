"""What test_trainer_layouts.py runs in two and in four processes: python layout_ranks.py FOLDER."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trainer_runs import SPARSE, tiny, weights

from flexsparse import Threshold
from models.attention import BSA, Dense
from train.distributed.parallelize import ParallelConfig
from train.sparsity.annealing import SparsityConfig
from train.sparsity.attention_stats import choice_of, watched_slots
from train.sparsity.schedules import FallingTiles
from train.titan import canonical_fqn
from train.trainer import Trainer
from train.validation import Validator
from train.weights.checkpoint import Checkpointer
from train.weights.initial import first_model

SLOTS = {
    "dense": Dense(),
    "vsa": SPARSE,
    "bsa": BSA(kv=Threshold(3), tile=(1, 2, 2), window=(1, 1, 2)),
}
SHARED = ParallelConfig(context_parallel_degree=2)
LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    2: {"fsdp": {}, "ulysses": dict(parallel=SHARED)},
    4: {
        "hsdp": dict(parallel=ParallelConfig(replicas=2)),
        "fsdp x ulysses": dict(parallel=SHARED, activation_checkpoint="full"),
        "hsdp x ulysses": dict(parallel=ParallelConfig(replicas=2, context_parallel_degree=2)),
    },
}
# All slots in each part of the last layout by itself; of them VSA alone has weights to divide, and
# dense attention no choice that checkpointing could make again.
TRAINED = {
    "fsdp": SLOTS,
    "ulysses": SLOTS,
    "hsdp": ["vsa"],
    "fsdp x ulysses": ["vsa", "bsa"],
    "hsdp x ulysses": ["vsa"],
}
RUNS = [  # processes, layout, slot
    (world, layout, slot)
    for world, layouts in LAYOUTS.items()
    for layout in layouts
    for slot in TRAINED[layout]
]
COMPILED = dict(parallel=SHARED, compile=True, activation_checkpoint="selective")
VALIDATED = Validator.Config(interval=6, clips=6, sample_steps=1)
FALLING = FallingTiles(dense_steps=1, by=1, every=1)
RESUMED = 2, 4, 6, 8
"""Where the run that 1, 2, 4 and again 1 processes share goes on to the next of them."""


def whole_run(folder: Path, slot: str, **changes: Any) -> Trainer.Config:
    """As `tiny`, for one process, without checkpoints."""
    unsaved = dict(checkpoint=Checkpointer.Config(enable=False), validation=VALIDATED)
    return tiny(folder, attention=SLOTS[slot], **(unsaved | changes))


def resumed_run(folder: Path) -> Trainer.Config:
    saved = dict(checkpoint=Checkpointer.Config(interval=2), steps=RESUMED[-1])
    return whole_run(folder / "resumed", "vsa", global_batch_size=4, **saved)


def annealed_run(folder: Path, break_even: float = -1.0) -> Trainer.Config:
    """Whose tiles become fewer; from which sparsity on is measured, unless it is given."""
    falling = SparsityConfig(schedule=FALLING, break_even=break_even)
    return whole_run(folder / "annealed", "vsa", sparsity=falling)


def divided(config: Trainer.Config, **changes: Any) -> Trainer.Config:
    """The same with the clips of a step divided among the ranks."""
    parallel = changes.get("parallel", config.parallel)
    ranks = int(os.environ["WORLD_SIZE"]) // parallel.context_parallel_degree
    training = replace(config.training, local_batch_size=4 // ranks, global_batch_size=4)
    return replace(config, training=training, **changes)


def choices(trainer: Trainer) -> list[torch.Tensor]:
    """Who attends to whom in each layer, for a held-out clip."""
    found = []

    def see(slot: Any, given: tuple) -> None:
        _, q, k, _, tiling, *shards = given
        if tiling is not None:
            choice = choice_of(slot, q, k, tiling, *(shards or [None]))
            found.extend(choice[:2])

    with watched_slots(trainer.model, see), trainer.averaged() as model, torch.no_grad():
        model(*trainer.validator.noisy())
    return found


def sums(clips: torch.Tensor) -> list[float]:
    """A number that tells a clip from others."""
    return clips.double().sum((1, 2, 3, 4)).tolist()


class Sent(TorchDispatchMode):
    """Counts the bytes of the tensors that collectives move, by `train.plan.traffic.Traffic`."""

    KINDS = {
        "_allgather_base_": "all_gather",
        "_reduce_scatter_base_": "reduce_scatter",
        "allreduce_": "all_reduce",
        "all_to_all_single": "all_to_all",
    }

    def __init__(self) -> None:
        super().__init__()
        self.bytes = dict.fromkeys(self.KINDS.values(), 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = self.KINDS.get(func.__name__.split(".")[0])
        if kind:
            tensors = [x for x in tree_leaves(args) if isinstance(x, torch.Tensor)]
            self.bytes[kind] += max(x.nbytes for x in tensors)
        return func(*args, **(kwargs or {}))


def counted(trainer: Trainer) -> Sent:
    """What its next step moves between the processes."""
    sent, step = Sent(), trainer.train_step

    def first() -> None:
        trainer.train_step = step
        with sent:
            step()

    trainer.train_step = first
    return sent


def measured(config: Trainer.Config, until: int | None = None) -> dict[str, Any]:
    """What a run starts from, and all that comes of it; clips are the sums of their pixels."""
    with patch("train.weights.initial.first_model", wraps=first_model) as whole:
        trainer = config.build()
    clips: list[list[float]] = []

    def noted(batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            clips.append(sums(batch["video"]))
            yield batch

    trainer.feed.batches = noted(trainer.feed.batches)
    parameters: Any = trainer.model.named_parameters()
    shards = {canonical_fqn(name): p.to_local().detach().clone() for name, p in parameters}
    sent = None if config.compile else counted(trainer)
    steps = trainer.train(until).steps
    result = {
        "whole models": whole.call_count,
        "shards": shards,
        "numbers": [(record.loss, record.grad_norm) for record in steps],
        "validation": [loss for _, loss in trainer.history.validation],
        "weights": weights(trainer),
        "choices": choices(trainer),
        "clips": clips,
        "break even": trainer.annealing.break_even,
        "data": (trainer.ranks.size, trainer.ranks.rank),
        "sent": sent and sent.bytes,
    }
    trainer.close()
    return result


if __name__ == "__main__":
    folder, world = Path(sys.argv[1]), int(os.environ["WORLD_SIZE"])

    def save(name: str, *given: Any) -> None:
        torch.save(measured(*given), folder / f"{name}.{world}.{os.environ['RANK']}.pt")

    save("resumed", divided(resumed_run(folder), parallel=SHARED), RESUMED[world // 2])
    for _, layout, slot in [run for run in RUNS if run[0] == world]:
        config = whole_run(folder / f"{layout}, {slot}", slot)
        save(f"{layout}, {slot}", divided(config, **LAYOUTS[world][layout]))
    if world == 2:
        save("annealed", divided(annealed_run(folder), parallel=SHARED))
        # All of compilation but Inductor's code, which takes each rank 40 s: tests/models has that
        backend = "aot_eager_decomp_partition"
        with patch.object(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend)):
            save("compiled, vsa", divided(whole_run(folder / "compiled", "vsa"), **COMPILED))
    dist.destroy_process_group()
