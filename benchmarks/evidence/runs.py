"""One training as a row of results: what it is, its curve, what it cost, what its attention did."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.evidence.scale import DATA, SCALES, Scale
from benchmarks.record import RESULTS, Row, read, write_row
from models.attention import Slot
from train.log import time_text
from train.losses import FlowLoss, Loss
from train.records.run_dir import describe, leaves
from train.sparsity.annealing import SparsityConfig
from train.sparsity.attention_stats import attention_stats
from train.sparsity.schedules import Constant, Schedule
from train.trainer import Trainer

KEY = ("experiment", "scale", "data", "name", "seed", "steps", "config")
ASIDE = ("dump_folder", "path", "initial_load_path", "max_damaged")  # change nothing trained


@dataclass(frozen=True)
class Run:
    """What one training is, beside its scale and its number of steps."""

    experiment: str
    data: str
    name: str
    attention: Slot
    seed: int = 0
    schedule: Schedule = Constant()
    initial: Path | None = None
    """A checkpoint's step-N whose weights it starts from, to train at a quarter of the rate."""
    tell: Callable[[Trainer], dict[str, Any]] | None = None
    """More for its row, of the trained model."""
    loss: Loss = FlowLoss()
    watch: Callable[[Trainer], dict[str, Any]] | None = None
    """What is measured of it before the first step, at half of the steps and at the end."""
    every_loss: bool = True
    """Whether its row has the loss of each training step."""

    def row(self, scale: Scale, steps: int) -> Row:
        """What names it among the results; `config` is a digest of all that is trained."""
        config = config_of(self, scale, steps, Path())
        told = [x for x in leaves(describe(config)) if x[0].rpartition(".")[2] not in ASIDE]
        digest = hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()[:12]
        names = self.experiment, scale.name, self.data, self.name, self.seed, steps, digest
        return dict(zip(KEY, names, strict=True))


def all_of(runs: Iterable[Run], scale: Scale, steps: int, out: Path, results: Path) -> list[Row]:
    """The rows of all; what `results` has of the same configs is not trained again.

    Each run saves itself in a folder under `out` when it is done, and one that was cut off starts
    anew. A line tells of each when it is done, with the time that the rest will take.
    """
    todo, rows, spent = list(runs), [], []
    for data in dict.fromkeys(run.data for run in todo):
        scale.prepare(data)
    known = {tuple(row[k] for k in KEY): row for row in read("evidence", results)}
    for number, run in enumerate(todo, start=1):
        row = known.get(tuple(run.row(scale, steps).values()))
        what = f"{number}/{len(todo)} {run.data} {run.name} seed {run.seed}"
        if row is not None:
            told = f"in {results} already, of {row['date']}; --results DIR trains it again"
            print(f"{what}: {told}", flush=True)
        else:
            begin = time.monotonic()
            row = train_run(run, scale, steps, out, results)
            spent.append(time.monotonic() - begin)
            left = sum(tuple(r.row(scale, steps).values()) not in known for r in todo[number:]) * (
                sum(spent) / len(spent)
            )
            print(
                f"{what}: validation loss {row['validation'][-1][1]:.4f}, "
                f"{time_text(spent[-1])}, {time_text(left)} left",
                flush=True,
            )
        rows.append(row)
    return rows


def side_by_side(
    runs: Sequence[Run], scale: Scale, steps: int, out: Path, results: Path, cores: int
) -> list[Row]:
    """`all_of`, on so many cores, each with a run of its own: small models train so fastest.

    Raises RuntimeError where a core's process failed, and KeyboardInterrupt where it was told to
    stop; the rows of runs that were done stay.
    """
    parts = [runs[i::cores] for i in range(min(cores, len(runs)))]
    if len(parts) > 1:
        context = multiprocessing.get_context("spawn")
        given = [(part, scale, steps, out, results) for part in parts]
        processes = [context.Process(target=_part, args=arguments) for arguments in given]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        codes = {process.exitcode for process in processes} - {0}
        if 130 in codes:
            raise KeyboardInterrupt
        if codes:
            raise RuntimeError("a core's process failed, see above: start again to go on")
        with contextlib.redirect_stdout(None):  # its parts have told of each
            return all_of(runs, scale, steps, out, results)
    return all_of(runs, scale, steps, out, results)


def _part(runs: Sequence[Run], scale: Scale, steps: int, out: Path, results: Path) -> None:
    torch.set_num_threads(1)

    def train() -> int:
        all_of(runs, scale, steps, out, results)
        return 0

    sys.exit(command(train))


def remembered(folder: Path, key: str, make: Callable[[], int]) -> int:
    """What `make` gave when this was first asked in a folder: so a start that goes on takes as many
    steps as the first, whatever trial steps take by then."""
    file = folder / "steps.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    if key not in known:
        known[key] = make()
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(known, indent=2))
    return known[key]


def folder_of(run: Run, scale: Scale, steps: int, out: Path) -> Path:
    """Where it trains, and leaves its checkpoint."""
    name = f"{run.data}-{run.name}-{run.seed}-{steps}".replace(" ", "-")
    return out / scale.name / run.experiment / name


def config_of(run: Run, scale: Scale, steps: int, out: Path) -> Trainer.Config:
    """What `Trainer` trains for it, for `steps`. Its schedule is kept to the letter: the dense
    kernel does not step in where it would be faster."""
    folder = folder_of(run, scale, steps, out)
    config = scale.trainer(run.attention, run.data, seed=run.seed, steps=steps, folder=folder)
    config.sparsity = SparsityConfig(schedule=run.schedule, break_even=0.0)
    config.loss = run.loss
    if run.initial is not None:  # other clips and noise than those that it has just seen
        config.training = replace(config.training, seed=run.seed + 1000)
        config.dataloader = replace(config.dataloader, seed=run.seed + 1000)
        config.checkpoint = replace(config.checkpoint, initial_load_path=str(run.initial))
        (group,) = config.optimizer.param_groups
        slower = replace(group, optimizer_kwargs={**group.optimizer_kwargs, "lr": scale.lr / 4})
        config.optimizer = replace(config.optimizer, param_groups=[slower])
    return config


def train_run(run: Run, scale: Scale, steps: int, out: Path, results: Path) -> Row:
    """Train it, and append its row to ``results/evidence.jsonl``."""
    config = config_of(run, scale, steps, out)
    shutil.rmtree(config.dump_folder, ignore_errors=True)  # a run's row is of all of its steps
    trainer, watched = config.build(), []
    try:
        for until in (0, steps // 2, steps) if run.watch else (steps,):
            history = trainer.train(until)
            if trainer.step < until:
                raise KeyboardInterrupt  # told to stop: what it has is saved, but no result
            if run.watch:
                watched.append([until, run.watch(trainer)])
        told = told_of(trainer) | (run.tell(trainer) if run.tell else {})
    finally:
        trainer.close()
    seconds = [record.seconds for record in history.steps]
    found: dict[str, Any] = dict(
        validation=[[step, round(loss, 6)] for step, loss in history.validation],
        **({"losses": [round(x.loss, 5) for x in history.steps]} if run.every_loss else {}),
        **({"watched": watched} if watched else {}),
        seconds=round(sum(seconds), 1),
        step_seconds=round(statistics.median(seconds), 5),  # without what compiles in the first
        **told,
    )
    row = run.row(scale, steps)
    return write_row("evidence", trainer.device.type, results=results, **row, **found)


def told_of(trainer: Trainer) -> dict[str, Any]:
    """Size, FLOPs and sparsity of a trained model; the last as measured on a held-out clip."""
    assert trainer.validator is not None and trainer.other_flops is not None
    with trainer.averaged() as model:
        layers = attention_stats(model, *trainer.validator.noisy())
    clips = trainer.config.training.global_batch_size
    return dict(
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        tokens=trainer.tokens,
        sparsity=[round(layer.sparsity, 4) for layer in layers],
        attention_flops=sum(layer.flops for layer in layers) * clips,
        other_flops=trainer.other_flops * clips,
    )


def parser(
    description: str | None,
    known: Iterable[str] = DATA,
    scales: Iterable[str] = SCALES,
    **data: Any,
) -> argparse.ArgumentParser:
    """What all experiments may be told; `data` are the options of --data, one of those `known`."""
    found = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    found.add_argument("--data", choices=sorted(known), **(data or {"default": "doom"}))
    found.add_argument("--scale", choices=sorted(scales), help="default: that of this machine")
    found.add_argument("--out", type=Path, default=Path("out/evidence"), help="where runs go")
    found.add_argument("--results", type=Path, default=RESULTS, help="where rows go")
    return found


def command(main: Callable[[], int]) -> int:
    """What `main` returns; 1 after a one-line error, 130 after Ctrl-C."""
    try:
        return main()
    except KeyboardInterrupt:
        print("stopped: rows of what is done stay; start again to go on", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        leave()


def leave() -> None:
    """End the world of one process that the trainers shared."""
    if dist.is_initialized():
        dist.destroy_process_group()
