"""All runs trained in turns, so that whatever else the machine does falls on all alike."""

import contextlib
import io
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from train.data.progress import WorkProgress
from train.demo.settings import RUNS, Settings, turn
from train.trainer import Trainer


def build_trainers(settings: Settings, clips: Path, out: Path, steps: int) -> dict[str, Trainer]:
    """A fresh trainer for each of RUNS, in `out / run`, in place of an earlier demo's."""
    trainers = {}
    for run in RUNS:
        shutil.rmtree(out / run, ignore_errors=True)
        trainers[run] = settings.trainer(run, clips, out, steps).build()
    return trainers


def train_in_turns(
    trainers: Mapping[str, Trainer], steps: int, validations: int, say: Callable[[str], object]
) -> None:
    """Train each to `steps`, some steps at a time. KeyboardInterrupt where one was told to stop."""
    stride = turn(steps, validations)
    with WorkProgress("training", steps * len(trainers), say=say) as progress:
        for until in [*range(stride, steps, stride), steps]:
            for run, trainer in trainers.items():
                # One bar is enough: without a terminal the trainer shows none of its own.
                with contextlib.redirect_stderr(io.StringIO()):
                    loss = trainer.train(until).validation[-1][1]
                if trainer.step < until:
                    raise KeyboardInterrupt
                done = sum(t.step for t in trainers.values())
                progress.show(done, f"{run} at step {until} of {steps}, held-out loss {loss:.3f}")
