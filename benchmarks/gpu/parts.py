"""What a run does: measure the machine, check, take the coarse stage apart, time, sweep."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu import sweep
from benchmarks.gpu.cases import Method, Setting, is_baseline, methods, settings
from benchmarks.gpu.checks import check_all
from benchmarks.gpu.coarse import coarse_all
from benchmarks.gpu.drawn import DRAWN, forget
from benchmarks.gpu.layers import Layer, Unavailable
from benchmarks.gpu.methods import build, fine
from benchmarks.gpu.oracle import check
from benchmarks.gpu.processes import in_processes, in_turn
from benchmarks.gpu.run import Row, Run, say, setting_of
from benchmarks.gpu.tables import best_dense
from benchmarks.gpu.timing import machine, measure, steps
from benchmarks.known_bounds import shown


def everything(run: Run) -> None:
    """All parts, in order, while time is left."""
    measure_machine(run)
    check_all(run)
    coarse_all(run)
    time_all(run)
    sweep_all(run)
    if run.left <= 0:
        print("time is up; --resume goes on from here")


def measure_machine(run: Run) -> None:
    """The ceilings that every plot shows, and kernels that move memory are held to."""
    if (run.wants("machine") or run.wants("coarse")) and not run.has("machine"):
        row = run.write("machine", **machine(torch.device(run.device)))
        forget()
        print(f"{row['matmul_tflops']} TFLOP/s in products, {row['copy_gbps']} GB/s in copies")


def time_all(run: Run) -> None:
    """Every method that was found right, and the dense baselines, by setting; a rehearsal has the
    last one."""
    units = []
    for setting in settings(True)[-1:] if run.rehearse else settings():
        every = methods(run.rehearse)
        due = [m for m in every if run.wants("time", setting.key, m.name)]
        if due and not run.wants("time", setting.key):  # ratios want something to be ratios to
            due = [m for m in every if m in due or m.kind.startswith("dense")]
        for method in due:
            key = dict(case=setting.key, method=method.name, step="forward_backward")
            if run.has("time", **key):
                continue
            if is_baseline(method) or run.right(setting, method):
                units.append((setting, method))
            elif run.left > 0:
                print(f"{setting.key:12} {method.name:24} not timed: no check found it right")
    in_turn(run, time_method, units, _died("time"))


def time_method(run: Run, setting: Setting, method: Method) -> None:
    """Both steps of a method: a row each."""
    row = dict(**setting_of(setting), method=method.name)
    try:
        layer = build(method, setting, DRAWN.of(run, setting))
        grad = torch.randn_like(layer.inputs[0])
        for step, call in steps(layer, grad).items():
            timed = measure(call, grad.device, 0.05 if run.rehearse else 0.4)
            dense = best_dense(run.rows(), setting.key, step)
            base = dense["ms"] if dense else None
            if base is None and method.kind.startswith("dense"):
                base = timed.ms
            ratio = dict(ratio=base and round(base / timed.ms, 3))
            figures = _figures(layer, step, timed.ms) | timed._asdict() | ratio
            _report(run.write("time", **row, **figures))
    except Unavailable as reason:
        run.write("time", **row, left_out=str(reason))
        print(f"{setting.key:12} {method.name:24} left out: {reason}", flush=True)
    except Exception as failure:
        run.write("time", **row, error=say(failure))
        print(f"{setting.key:12} {method.name:24} {say(failure)}", flush=True)
        raise
    finally:
        forget()


def _figures(layer: Layer, step: str, ms: float) -> Row:
    flops = layer.flops * (1 if step == "forward" else 3.5)
    rate = round(flops / ms / 1e9, 2)
    return dict(step=step, flops=flops, sparsity=round(layer.sparsity, 4), tflops=rate)


def _report(row: Row) -> None:
    what = f"{row['case']:12} {row['method']:24} {row['step']:17}"
    ratio = f"{row['ratio']:8.2f}x" if row["ratio"] else ""
    options = f"  {row['options']}" if "options" in row else ""
    bound = "" if row.get("options") else shown(row["case"], row["method"], row["step"], row["ms"])
    rate = f"{row['ms']:10.3f} ms{row['tflops']:9.2f} TFLOP/s"
    print(f"{what}{rate}{ratio}{bound}{options}", flush=True)


def sweep_all(run: Run) -> None:
    """Kernel options, each checked before it is timed."""
    for target in sweep.targets(run.rehearse):
        if run.left <= 0 or not run.wants("sweep", target.setting.key, target.method.name):
            continue
        tried = sweep.options(target, run.rehearse)
        key = dict(case=target.setting.key, method=target.method.name)
        units = [
            (target, step, options)
            for step, some in tried.items()
            for options in some
            if not run.has("sweep", **key, step=step, options=options)
        ]
        if not run.rehearse:  # compile side by side what is timed one after the other
            jobs = [(warm, run, target, [u[2] for u in units[i::8]]) for i in range(8)]
            in_processes(jobs, 8, min(120, run.left))
        in_turn(run, time_options, units, _died("sweep"))


def warm(run: Run, target: sweep.Target, every: list[sweep.Options]) -> None:
    """Compile the kernels of these options, so that they are found on disk."""
    for options in every:
        try:
            layer = fine(target.method, target.setting, DRAWN.of(run, target.setting), options)
            layer.attend(*layer.inputs).sum().backward()
            with torch.no_grad():
                layer.attend(*layer.inputs)
        except Exception as failure:  # the timing itself makes a row of it
            print(f"{target.setting.key:12} {options} {say(failure)}", flush=True)
        forget()  # all options are one function to the compiler, which refuses many versions of it


def time_options(run: Run, target: sweep.Target, step: str, options: sweep.Options) -> None:
    """One step of a fine stage with FlexAttention's ``options``: a row."""
    setting, method = target
    row: Row = dict(**setting_of(setting), method=method.name, options=options)
    try:
        tensors = DRAWN.of(run, setting)
        layer = fine(method, setting, tensors, options)
        ratios = check(method, setting, layer, tensors)
        wrong = [f"{name} {ratio:.2f}" for name, ratio in ratios.items() if not ratio <= 1]
        if wrong:
            raise ArithmeticError(f"wrong, times the largest error allowed: {', '.join(wrong)}")
        call = steps(layer, torch.randn_like(layer.inputs[0]))[step]
        timed = measure(call, tensors[0].device, 0.05 if run.rehearse else 0.2)
        same = dict(case=setting.key, method=method.name, step=step, options={})
        today = [r["ms"] for r in run.found("sweep", **same)] or [timed.ms]
        ratio = dict(ratio=round(today[-1] / timed.ms, 3))
        figures = _figures(layer, step, timed.ms) | timed._asdict() | ratio
        _report(run.write("sweep", **row, **figures))
    except Exception as failure:
        run.write("sweep", **row, step=step, error=say(failure))
        print(f"{setting.key:12} {method.name:24} {options} {say(failure)}", flush=True)
        raise
    finally:
        forget()


def _died(part: str) -> Any:
    """What is written of a unit in which its process died or hung."""

    def write(run: Run, first: Any, *rest: Any) -> None:
        setting = first if isinstance(first, Setting) else first.setting
        names = ("method",) if isinstance(first, Setting) else ("step", "options")
        row = dict(zip(names, rest)) | dict(error="its process died or hung")
        method = rest[0] if isinstance(first, Setting) else first.method
        run.write(part, **setting_of(setting), **row | dict(method=method.name))

    return write
