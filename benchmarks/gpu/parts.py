"""What a run does: check, time, sweep."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import sweep
from benchmarks.gpu.cases import Method, Setting, methods, settings
from benchmarks.gpu.methods import Layer, Unavailable, build, draw, fine
from benchmarks.gpu.oracle import check
from benchmarks.gpu.run import DTYPE, Row, Run, in_processes, say, setting_of
from benchmarks.gpu.tables import best_dense
from benchmarks.gpu.timing import machine, measure, steps
from flexsparse import selfcheck


def everything(run: Run) -> None:
    """All parts, in order, while time is left."""
    measure_machine(run)
    check_all(run)
    time_all(run)
    sweep_all(run)
    if run.left <= 0:
        print("time is up; --resume goes on from here")


def measure_machine(run: Run) -> None:
    """The ceilings that every plot shows."""
    if run.wants("machine") and not run.has("machine"):
        row = run.write("machine", **machine(torch.device(run.device)))
        print(f"{row['matmul_tflops']} TFLOP/s in products, {row['copy_gbps']} GB/s in copies")


def check_all(run: Run) -> None:
    """Every setting in a process of its own, some at a time: what they compile, timing finds."""
    jobs: list[tuple] = []
    if run.wants("check") and not run.has("selfcheck"):
        jobs.append((check_library, run))
    for setting in settings(run.rehearse):
        due = [m for m in _checked(run) if run.wants("check", setting.key, m.name)]
        key = dict(case=setting.key)
        due = [m for m in due if not run.has("check", **key, method=m.name, ok=True)]
        if due:
            jobs.append((check_setting, run, setting, due))
    seconds = run.left if run.only == "check" else 0.45 * run.left
    if missed := in_processes(jobs, run.workers, seconds):
        print(f"checks that did not end in {seconds:.0f} s: {missed}; they are not timed")


def _checked(run: Run) -> list[Method]:
    """Dense baselines are torch's own; the library's self-check has them at small sizes."""
    return [m for m in methods(run.rehearse) if not m.kind.startswith("dense")]


def check_library(run: Run) -> None:
    """Every backend at small sizes, all kinds of tiles, rows and head dims."""
    for result in selfcheck.each(run.device, selfcheck.checks()):
        print(f"selfcheck  {result.backend}  {result.case}  {_word(result.ok)}", flush=True)
        ratio = result.ratio if result.ratio is not None and result.ratio < 1e9 else None
        detail = dict(detail=result.detail, seconds=round(result.seconds, 2))
        row = dict(backend=result.backend, case=result.case, ok=result.ok, ratio=ratio)
        run.write("selfcheck", **row, **detail)


def check_setting(run: Run, setting: Setting, due: list[Method]) -> None:
    """Outputs and gradients of a head against fp64, at the size that is timed."""
    device = torch.device(run.device)
    tensors = draw(setting, device, DTYPE)
    for method in due:
        ratios: dict[str, float] = {}
        error = None
        try:
            layer = build(method, setting, tensors)
            ratios = check(method, setting, layer, tensors)
        except Unavailable as reason:
            print(f"{setting.key:12} {method.name:24} left out: {reason}", flush=True)
            continue
        except Exception as failure:  # a row says so, and the others go on
            error = say(failure)
        wrong = [name for name, ratio in ratios.items() if not ratio <= 1]
        ok = error is None and not wrong
        shown = error or f"{_word(ok)} {', '.join(wrong)}"
        print(f"{setting.key:12} {method.name:24} {shown}", flush=True)
        rounded = {name: round(ratio, 3) for name, ratio in ratios.items()}
        row = dict(**setting_of(setting), method=method.name, ok=ok, ratios=rounded, error=error)
        run.write("check", **row)
        _forget(device)


def _word(ok: bool | None) -> str:
    return {True: "right", False: "WRONG", None: "not available"}[ok]


def time_all(run: Run) -> None:
    """Every method that was found right, and the dense baselines, by setting."""
    device = torch.device(run.device)
    for setting in settings(run.rehearse):
        due = [m for m in methods(run.rehearse) if run.wants("time", setting.key, m.name)]
        due = [m for m in due if not run.has("time", case=setting.key, method=m.name)]
        if not due or run.left <= 0:
            continue
        tensors = draw(setting, device, DTYPE)
        for method in due:
            if run.left <= 0:
                break
            if method.kind.startswith("dense") or run.right(setting, method):
                _time_method(run, setting, method, tensors)
                _forget(device)
            else:
                print(f"{setting.key:12} {method.name:24} not timed: no check found it right")


def _time_method(run: Run, setting: Setting, method: Method, tensors: list[Tensor]) -> None:
    row = dict(**setting_of(setting), method=method.name)
    try:
        layer = build(method, setting, tensors)
        grad = torch.randn_like(layer.inputs[0])
        for step, call in steps(layer, grad).items():
            timed = measure(call, grad.device, 0.05 if run.rehearse else 0.4)
            dense = best_dense(run.rows(), setting.key, step)
            base = timed.ms if dense is None and method.kind.startswith("dense") else None
            base = dense["ms"] if dense else base
            ratio = dict(ratio=base and round(base / timed.ms, 3))
            figures = _figures(layer, step, timed.ms) | timed._asdict() | ratio
            _report(run.write("time", **row, **figures))
    except Unavailable as reason:
        print(f"{setting.key:12} {method.name:24} left out: {reason}", flush=True)
    except Exception as failure:
        run.write("time", **row, error=say(failure))
        print(f"{setting.key:12} {method.name:24} {say(failure)}", flush=True)


def _figures(layer: Layer, step: str, ms: float) -> Row:
    flops = layer.flops * (1 if step == "forward" else 3.5)
    rate = round(flops / ms / 1e9, 2)
    return dict(step=step, flops=flops, sparsity=round(layer.sparsity, 4), tflops=rate)


def _report(row: Row) -> None:
    what = f"{row['case']:12} {row['method']:24} {row['step']:17}"
    ratio = f"{row['ratio']:8.2f}x" if row["ratio"] else ""
    print(f"{what}{row['ms']:10.3f} ms{row['tflops']:9.2f} TFLOP/s{ratio}", flush=True)


def sweep_all(run: Run) -> None:
    """Kernel options, each checked before it is timed."""
    for target in sweep.targets(run.rehearse):
        names = target.setting.key, target.method.name
        if run.left <= 0 or not run.wants("sweep", *names):
            continue
        tried = sweep.options(target, run.rehearse)
        every = [options for some in tried.values() for options in some]
        if not run.rehearse:  # compile side by side what is timed one after the other
            jobs = [(warm, run, target, every[i::8]) for i in range(8)]
            in_processes(jobs, 8, min(120, run.left))
        tensors = draw(target.setting, torch.device(run.device), DTYPE)
        for step, some in tried.items():
            today = None  # the first is what the tables say
            for options in some:
                if run.left > 0:
                    ms = _time_options(run, target, tensors, step, options, today)
                    today = today or ms


def warm(run: Run, target: sweep.Target, every: list[sweep.Options]) -> None:
    """Compile the kernels of these options, so that they are found on disk."""
    tensors = draw(target.setting, torch.device(run.device), DTYPE)
    for options in every:
        try:
            layer = fine(target.method, target.setting, tensors, options)
            layer.attend(*layer.inputs).sum().backward()
        except Exception:  # noqa: S110 - the timing itself says what is wrong with them
            pass


def _time_options(
    run: Run,
    target: sweep.Target,
    tensors: list[Tensor],
    step: str,
    options: sweep.Options,
    today: float | None,
) -> float | None:
    """Its milliseconds; None where it cannot be, and where there is a row of it already."""
    setting, method = target
    row: dict[str, Any] = dict(**setting_of(setting), method=method.name, options=options)
    if run.has("sweep", case=setting.key, method=method.name, options=options, step=step):
        return None
    ms = None
    try:
        layer = fine(method, setting, tensors, options)
        found = worst(target, layer, tensors)
        if not found <= 1:
            raise ArithmeticError(f"wrong: error {found:.2f} times the largest allowed")
        call = steps(layer, torch.randn_like(layer.inputs[0]))[step]
        timed = measure(call, tensors[0].device, 0.05 if run.rehearse else 0.2)
        ms = timed.ms
        ratio = dict(ratio=round((today or ms) / ms, 3))
        figures = _figures(layer, step, ms) | timed._asdict() | ratio
        _report(run.write("sweep", **row, **figures))
    except Exception as failure:
        run.write("sweep", **row, step=step, error=say(failure))
        print(f"{setting.key:12} {method.name:24} {options} {say(failure)}", flush=True)
    _forget(tensors[0].device)
    return ms


def worst(target: sweep.Target, layer: Layer, tensors: list[Tensor]) -> float:
    """The largest of its errors, over the largest allowed."""
    return max(check(target.method, target.setting, layer, tensors).values())


def _forget(device: torch.device) -> None:
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
