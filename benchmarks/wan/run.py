"""Cases of the benchmark of Wan: proved right, timed, written down, within a budget."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.gpu.drawn import forget
from benchmarks.record import Row, commit, device_name, markdown, read, write_row
from benchmarks.wan import models as wan_models
from benchmarks.wan import timing as wan_timing
from benchmarks.wan.checks import check_attention, check_models, sparsity_of
from benchmarks.wan.models import Grid, Method
from benchmarks.wan.timing import Forward, Runner
from models.wan import WanConfig

GOALS = dict(attention=6.0, step=1.7)  # times faster than dense; the paper's 31 s to 18 s
SHARED = "a CPU that others may use: quote ratios alone"
COMPILE = 20.0  # seconds that a program is taken to need before one has been seen


class Case(NamedTuple):
    """A size on a grid, compiled or not, with all methods."""

    size: str
    config: WanConfig
    grid: Grid
    methods: list[Method]
    compiled: bool

    def __str__(self) -> str:
        shown = f"{self.size} ({self.config.layers} layers), {'x'.join(map(str, self.grid))}"
        return f"{shown}, {'compiled' if self.compiled else 'eager'}"

    @property
    def row(self) -> Row:
        return dict(
            size=self.size,
            layers=self.config.layers,
            grid=[*self.grid],
            tokens=math.prod(self.grid),
            compiled=self.compiled,
        )


class Run:
    """Where cases are measured, and the time that is left for them.

    Args:
        device: of which the dtype follows, bf16 or, on a CPU, fp32.
        file: the rows', a .jsonl.
        seconds: that all cases together may take.
        rounds: timed forwards of each method.
        query_tiles: of the methods, for the rows.
    """

    def __init__(
        self, device: str, file: Path, seconds: float, rounds: int, query_tiles: int
    ) -> None:
        self.device, self.file = torch.device(device), file
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.rounds, self.query_tiles = rounds, query_tiles
        self.end = time.monotonic() + seconds
        self.rate = 0.7 * wan_timing.product_rate(self.device, self.dtype)
        self.slower = 1.0  # than was thought, by the last case

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def key(self, case: Case) -> Row:
        dtype = str(self.dtype).removeprefix("torch.")
        return case.row | dict(dtype=dtype, query_tiles=self.query_tiles)

    def has(self, case: Case) -> bool:
        """Whether this commit found all of it on this device."""
        due = self.key(case) | dict(device=device_name(self.device.type))
        rows = [r for r in self.rows() if all(r.get(k) == v for k, v in due.items())]
        clean = (commit() or "").rstrip("+")  # the first row changes a file
        found = {r["method"] for r in rows if (r["commit"] or "").rstrip("+") == clean}
        return found >= {method.name for method in case.methods}

    def rows(self) -> list[Row]:
        return read(self.file.stem, self.file.parent)

    def expected(self, case: Case) -> float:
        """Seconds: each method's forwards, and what is compiled for checks and for timing."""
        some = (wan_models.forward_flops(case.config, case.grid, m.slot)[0] for m in case.methods)
        forwards = (self.rounds + 2) * sum(some) / self.rate
        programs = 3 * len(case.methods) if case.compiled else 0
        return self.slower * (forwards + COMPILE * programs)

    def measure(self, case: Case) -> list[Row]:
        """Check, time, write.

        Raises:
            ArithmeticError: something is wrong; nothing is written.
        """
        config, device, dtype = case.config, self.device, self.dtype
        print(f"{case}: checks", flush=True)
        given = config, case.grid, case.methods, device, dtype, case.compiled
        right = check_models(*given)
        _raise_if_wrong(right)
        forget()
        weights = wan_models.bytes_of(config, dtype)
        one_block = weights > wan_timing.free_bytes(device) / 2
        model = wan_models.dense_model(config, device, dtype, one_block)
        batch = wan_models.draw(config, case.grid, device, dtype)
        dense = wan_models.attention_inputs(model, batch)
        engine, context = wan_timing.fastest_sdpa(*dense[1:4])
        runners = []
        with context:
            for method in case.methods:
                runner = Runner.of(method, model, batch, case.compiled)
                runners.append(runner)
                ratio = check_attention(runner.slot, runner.attend, runner.inputs)
                if ratio is not None:
                    right[f"attention, {method.name}"] = ratio
                    _raise_if_wrong(right)
            print(f"{case}: {', '.join(m.name for m in case.methods)}, in turn", flush=True)
            times = wan_timing.in_turn(runners, self.rounds)
        more = dict(
            one_block=one_block,
            weight_bytes=weights,
            sdpa=engine,
            rounds=self.rounds,
            error_ratios={what: round(ratio, 3) for what, ratio in right.items()},
            note=None if device.type == "cuda" else SHARED,
            triton=getattr(sys.modules.get("triton"), "__version__", None),
            cuda=torch.version.cuda,
        )
        return [self._write(case, runner, times, more) for runner in runners]

    def _write(self, case: Case, runner: Runner, times: dict[str, Forward], more: Row) -> Row:
        name, tiling = runner.method.name, runner.inputs[-1]
        of_method = dict(
            method=name,
            tile=tiling and [*tiling.tile],
            sparsity=round(sparsity_of(runner.slot, runner.inputs), 4),
        )
        row = self.key(case) | of_method | figures_of(times[name], times["dense"]) | more
        return write_row(self.file.stem, self.device.type, results=self.file.parent, **row)


def figures_of(forward: Forward, dense: Forward) -> Row:
    """What a row says of its times, and of dense attention's beside them."""
    return dict(
        ms=round(forward.ms, 3),
        step_ms=round(2 * forward.ms, 3),
        attention_ms=round(forward.attention_ms, 3),
        share=round(forward.attention_ms / forward.ms, 4),
        ratio=round(dense.ms / forward.ms, 3),
        attention_ratio=round(dense.attention_ms / forward.attention_ms, 3),
        peak_bytes=forward.peak_bytes,
    )


def _raise_if_wrong(ratios: dict[str, float]) -> None:
    if wrong := [f"{what} {ratio:.3g}" for what, ratio in ratios.items() if not ratio <= 1]:
        raise ArithmeticError(f"wrong, times the largest error allowed: {'; '.join(wrong)}")


def table(rows: list[Row]) -> str:
    """A line for each row, with the goals for VSA on Wan 1.3B in its head."""
    head = ["size, layers", "grid", "tokens", "method", "sparsity", "", "forward ms", "two, ms"]
    head += ["attention ms", "share", f"attention x dense (goal {GOALS['attention']:g})"]
    head += [f"step x dense (goal {GOALS['step']:g})", "peak MB"]
    lines = []
    for row in rows:
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f}"
        block = ", one block's weights" if row["one_block"] else ""
        lines.append(
            [
                f"{row['size']}, {row['layers']}{block}",
                "x".join(map(str, row["grid"])),
                f"{row['tokens']:,}",
                row["method"],
                f"{row['sparsity']:.1%}",
                "compiled" if row["compiled"] else "eager",
                *(f"{row[key]:.1f}" for key in ("ms", "step_ms", "attention_ms")),
                f"{row['share']:.1%}",
                *(f"{row[key]:.2f}" for key in ("attention_ratio", "ratio")),
                peak,
            ]
        )
    return markdown(head, lines)
