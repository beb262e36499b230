"""What a run's directory tells: its config, its last start, its curves."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train.records.run_dir import CONFIG, leaves
from train.records.starts import STARTS

Curve = list[tuple[int, float]]
"""(step, value), in order of steps."""
TAGS = (
    "train/loss",
    "train/skipped",
    "train/flops_per_clip",
    "validation/loss",
    "speed/tokens_per_second",
    "attention/sparsity",
)


@dataclass(frozen=True)
class Run:
    """A run as its directory has it.

    Attributes:
        name: the directory's, as it was given.
        config: config.json's fields by dotted name.
        start: the last line of starts.jsonl; {} where there is none.
        curves: by tag of TensorBoard.
    """

    name: str
    config: dict[str, Any]
    start: dict[str, Any]
    curves: dict[str, Curve]

    def last(self, tag: str) -> float | None:
        curve = self.curves[tag]
        return curve[-1][1] if curve else None

    @property
    def loss(self) -> Curve:
        """Without steps that were skipped."""
        return [(step, loss) for step, loss in self.curves["train/loss"] if math.isfinite(loss)]

    @property
    def steps(self) -> int:
        return self.curves["train/loss"][-1][0]

    def flops(self, steps: Sequence[int]) -> list[float]:
        """Training FLOPs until each of these steps, which ascend; [] where they are not known.

        Between two steps that were logged, those of the later one count.
        """
        logged, batch = self.curves["train/flops_per_clip"], self.config[BATCH]
        if not logged:
            return []
        totals, total, done, i = [], 0.0, 0, 0
        for step in steps:
            while done < step:
                until, each = logged[i] if i < len(logged) else (step, logged[-1][1])
                until = min(max(until, done), step)
                total += (until - done) * batch * each
                done = until
                i += i < len(logged) and logged[i][0] <= done
            totals.append(total)
        return totals


BATCH = "training.global_batch_size"


def read_run(folder: str) -> Run:
    """ValueError, in a line, for a folder that is no run or has no curves."""
    path = Path(folder)
    if not (path / CONFIG).is_file():
        raise ValueError(
            f"{folder} is no run's directory: it has no {CONFIG}; give the --dump-folder of a run"
        )
    config = dict(leaves(json.loads((path / CONFIG).read_text())))
    boards = config.get("metrics.save_tb_folder", "tb")
    files = sorted((path / boards).glob("**/events.out.tfevents.*"), key=_begun)
    curves: dict[str, Curve] = {tag: [] for tag in TAGS}
    for file in files:
        board = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        new = {
            tag: [(event.step, event.value) for event in board.Scalars(tag)]
            for tag in set(TAGS) & set(board.Tags()["scalars"])
        }
        # a start that goes on from a checkpoint does the steps after it again
        first = min((curve[0][0] for curve in new.values()), default=math.inf)
        for tag, curve in curves.items():
            curves[tag] = [point for point in curve if point[0] < first] + new.get(tag, [])
    if not any(math.isfinite(loss) for _, loss in curves["train/loss"]):
        raise ValueError(
            f"{folder} has no losses in {boards}: train with metrics.enable_tensorboard, and "
            "log a step"
        )
    return Run(folder, config, _last_start(path / STARTS), curves)


def _last_start(starts: Path) -> dict[str, Any]:
    lines = starts.read_text().splitlines() if starts.is_file() else []
    try:
        return json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{starts}: its last line, {len(lines)}, is no JSON, cut off maybe: {error}; remove it"
        ) from error


def _begun(file: Path) -> float:
    return float(file.name.split(".")[3])
