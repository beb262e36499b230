"""Runs as a table: how they went, and in what they differ."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from train.compare.runs import BATCH, Run

LAST = 0.1  # share of a run's logged steps that its final loss is the mean of
UNTOLD = ("dump_folder", "module")


def table(runs: Sequence[Run]) -> str:
    """Lines of text: a column each."""
    rows = [("", [run.name for run in runs])]
    rows += [(name, [tell(run) for run in runs]) for name, tell in ROWS.items()]
    differing = differences(runs)
    lines = _aligned(rows)
    if differing:
        named = [(name, [str(x) for x in values]) for name, values in differing.items()]
        lines += ["", "in what they differ", *_aligned(named)]
    return "\n".join(lines)


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Fields of the configs, versions and commits that are not the same in all runs."""
    told = [run.config | _of_start(run) for run in runs]
    names = dict.fromkeys(name for fields in told for name in fields if name not in UNTOLD)
    found = {name: [fields.get(name, "-") for fields in told] for name in names}
    return {name: values for name, values in found.items() if len(set(map(str, values))) > 1}


def _of_start(run: Run) -> dict[str, Any]:
    start = run.start
    git = start.get("git") or {}
    fields = {f"version of {name}": version for name, version in start.get("versions", {}).items()}
    fields |= {name: start.get(name, "-") for name in ("processes", "device")}
    return fields | {
        "git commit": git.get("commit", "-")[:12],
        "changed since": ", ".join(git.get("changed", [])) or "-",
    }


def _final_loss(run: Run) -> str:
    losses = [loss for _, loss in run.loss]
    if not losses:
        return "-"
    return f"{statistics.fmean(losses[-max(1, round(LAST * len(losses))) :]):.4f}"


def _attention(run: Run) -> str:
    sparsity = run.last("attention/sparsity")
    names = (value for key, value in run.config.items() if key.endswith(".attention.class"))
    name = next(names, "-")
    return name if not sparsity else f"{name}, {sparsity:.1%} sparse"


def _speed(run: Run) -> str:
    return f"{statistics.median(x for _, x in run.curves['speed/tokens_per_second']):,.0f}"


def _flops(run: Run) -> str:
    flops = run.flops([run.steps])
    return f"{flops[-1]:.3e}" if flops else "-"


def _number(tag: str, form: str) -> Callable[[Run], str]:
    def tell(run: Run) -> str:
        value = run.last(tag)
        return "-" if value is None else format(value, form)

    return tell


ROWS: dict[str, Callable[[Run], str]] = {
    "attention": _attention,
    "steps": lambda run: f"{run.steps:,} of {run.config['training.steps']:,}",
    "clips a step": lambda run: str(run.config[BATCH]),
    "loss, mean of the last tenth": _final_loss,
    "validation loss, last": _number("validation/loss", ".4f"),
    "steps skipped": _number("train/skipped", ".0f"),
    "tokens/s, median": _speed,
    "training FLOPs": _flops,
}


def _aligned(rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    cells = [[name, *values] for name, values in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
