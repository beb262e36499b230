"""The coarse stage kernel by kernel, the building of masks, and whole layers beside them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from benchmarks.gpu.cases import Setting, settings
from benchmarks.gpu.drawn import DRAWN, forget
from benchmarks.gpu.list_memory import SETTINGS
from benchmarks.gpu.processes import in_processes, in_turn
from benchmarks.gpu.run import Row, Run, say, setting_of
from benchmarks.gpu.stages import STAGES
from benchmarks.gpu.timing import measure
from benchmarks.gpu.traffic import traffic
from benchmarks.gpu.unit import Unit
from benchmarks.gpu.wholes import MASKS, VSA, layer
from benchmarks.known_bounds import shown

LAYERS = {method.name: partial(layer, method) for method in VSA}


def coarse_all(run: Run) -> None:
    """Every kernel, mask and layer in every setting; kernels are checked before they are timed."""
    units = []
    for setting in settings(True)[-1:] if run.rehearse else SETTINGS:
        for name in (*STAGES, *MASKS, *LAYERS):
            key = dict(case=setting.key, method=name)
            due = [s for s in steps_of(setting, name) if not run.has("coarse", **key, step=s)]
            if due and run.wants("coarse", setting.key, name):
                units.append((setting, name))
    if not run.rehearse:  # compile side by side what is timed one after the other
        jobs = [(warm, run, some) for i in range(run.workers) if (some := units[i :: run.workers])]
        in_processes(jobs, run.workers, min(90, run.left))
    in_turn(run, measure_unit, units, died)


def steps_of(setting: Setting, name: str) -> Sequence[str]:
    if name in STAGES:
        return list(traffic(setting)[STAGES[name].moves])
    return ("inference", "training") if name in MASKS else ("forward", "forward_backward")


def make(setting: Setting, name: str, tensors: list[Tensor]) -> Unit:
    if name in STAGES:
        stage = STAGES[name]
        return stage.make(setting, tensors, traffic(setting)[stage.moves])
    return (MASKS | LAYERS)[name](setting, tensors)


def warm(run: Run, units: list[tuple[Setting, str]]) -> None:
    """Compile what these need, so that it is found on disk."""
    for setting, name in units:
        try:
            for step in make(setting, name, DRAWN.of(run, setting)).steps.values():
                step()
        except Exception as failure:  # the timing itself makes a row of it
            print(f"{setting.key:12} {name:24} {say(failure)}", flush=True)
        forget()


def measure_unit(run: Run, setting: Setting, name: str) -> None:
    """A row of its check, if it has one, and one for each step if it is right."""
    row = dict(**setting_of(setting), method=name)
    try:
        tensors = DRAWN.of(run, setting)
        unit = make(setting, name, tensors)
        ratios = unit.check()
        wrong = [result for result, ratio in ratios.items() if not ratio <= 1]
        if ratios:
            rounded = {result: round(ratio, 3) for result, ratio in ratios.items()}
            run.write("coarse", **row, step="check", ok=not wrong, ratios=rounded)
        if wrong:
            print(f"{setting.key:12} {name:24} WRONG, not timed: {', '.join(wrong)}", flush=True)
            return
        for step, call in unit.steps.items():
            timed = measure(call, tensors[0].device, 0.02 if run.rehearse else 0.1)
            figures = timed._asdict() | _rate(run, timed.ms, unit.more(step))
            run.write("coarse", **row, step=step, **figures)
            bound = shown(setting.key, name, step, timed.ms)
            print(f"{setting.key:12} {name:24} {step:17}{timed.ms:10.3f} ms{bound}", flush=True)
    except Exception as failure:
        run.write("coarse", **row, error=say(failure))
        print(f"{setting.key:12} {name:24} {say(failure)}", flush=True)
        raise
    finally:
        forget()


def _rate(run: Run, ms: float, more: Row) -> Row:
    """The rate of bytes that have to pass through memory, and its share of that of copies."""
    if "read_bytes" not in more:
        return more
    gbps = (more["read_bytes"] + more["written_bytes"]) / ms / 1e6
    copies = [row["copy_gbps"] for row in run.found("machine")]
    share = round(gbps / copies[-1], 4) if copies else None
    return more | dict(gbps=round(gbps, 1), copy_share=share)


def died(run: Run, setting: Setting, name: str) -> None:
    run.write("coarse", **setting_of(setting), method=name, error="its process died or hung")
