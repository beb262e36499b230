"""The demo's results in numbers and in words: tables, and sentences that say what they say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from train.demo.settings import NAMES


@dataclass(frozen=True)
class Outcome:
    """What one run cost and reached: seconds of a step, FLOPs of attention in it, bytes."""

    first_loss: float
    validation_loss: float
    step_seconds: float
    attention_seconds: float
    attention_flops: int
    peak_memory: int


ROWS = [
    ("loss on held-out clips", "validation_loss", 1, "{:.4f}"),
    ("one training step, ms", "step_seconds", 1e-3, "{:.0f}"),
    ("attention in a step, ms", "attention_seconds", 1e-3, "{:.0f}"),
    ("attention in a step, GFLOP", "attention_flops", 1e9, "{:.1f}"),
    ("peak memory of training, MiB", "peak_memory", 2**20, "{:.0f}"),
]


def table(outcomes: Mapping[str, Outcome]) -> str:
    """A column for each run, and how many times less each sparse one took than the dense one.

    Markdown that also reads well on a terminal.
    """
    sparse = [run for run in outcomes if run != "dense"]
    names = [NAMES[run] for run in outcomes] + [f"dense / {NAMES[run]}" for run in sparse]
    lines = [_row("", names), f"|{'-' * 30}|" + f"{'-' * 12}:|" * len(names)]
    for label, field, unit, form in ROWS:
        values = {run: getattr(outcome, field) / unit for run, outcome in outcomes.items()}
        ratios = [f"{values['dense'] / values[run]:.2f}" for run in sparse]
        lines.append(_row(label, [form.format(value) for value in values.values()] + ratios))
    return "\n".join(lines)


def _row(label: str, cells: Sequence[str]) -> str:
    return f"| {label:<28} |" + "".join(f" {cell:>11} |" for cell in cells)


def findings(outcomes: Mapping[str, Outcome]) -> list[str]:
    """What the numbers say, in sentences."""
    dense = outcomes["dense"]
    share = dense.attention_seconds / dense.step_seconds
    sparse = {NAMES[run]: outcome for run, outcome in outcomes.items() if run != "dense"}
    return [
        *(
            f"Attention with {name} is {dense.attention_flops / run.attention_flops:.1f} times "
            f"less arithmetic and {_speed(dense.attention_seconds / run.attention_seconds)}."
            for name, run in sparse.items()
        ),
        "A whole training step is "
        + " and ".join(
            f"{_speed(dense.step_seconds / run.step_seconds)} with {name}"
            for name, run in sparse.items()
        )
        + (
            f": dense attention was {share:.0%} of it, and the rest of the model costs the same."
            if share < 1
            else ". Dense attention alone, timed at another moment, took longer than a whole step: "
            "this machine had other work then, and speeds may be off."
        ),
        f"The loss on held-out clips fell from {dense.first_loss:.2f} to "
        f"{dense.validation_loss:.3f} with dense attention, "
        + " and ".join(
            f"to {run.validation_loss:.3f} with {name} "
            f"({_more(run.validation_loss / dense.validation_loss - 1, 'higher', 'lower')})"
            for name, run in sparse.items()
        )
        + ".",
        "Against dense attention, training took "
        + " and ".join(
            f"{_more(run.peak_memory / dense.peak_memory - 1, 'more', 'less')} memory with {name}"
            for name, run in sparse.items()
        )
        + ".",
    ]


def _speed(ratio: float) -> str:
    return f"{ratio:.1f} times as fast" if ratio >= 1 else f"{1 / ratio:.1f} times as slow"


def _more(change: float, more: str, less: str) -> str:
    return f"{abs(change):.1%} {more if change > 0 else less}"
