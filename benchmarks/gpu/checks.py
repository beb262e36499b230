"""Correctness first: every backend at small sizes, every method at every size that is timed."""

from __future__ import annotations

import torch

from benchmarks.gpu.cases import Method, Setting, is_baseline, methods, settings
from benchmarks.gpu.drawn import DRAWN, forget
from benchmarks.gpu.layers import Unavailable
from benchmarks.gpu.methods import build
from benchmarks.gpu.oracle import check
from benchmarks.gpu.processes import in_processes
from benchmarks.gpu.run import Row, Run, say, setting_of
from flexsparse import selfcheck


def check_all(run: Run) -> None:
    """Every setting in a process of its own, some at a time: what they compile, timing finds."""
    jobs: list[tuple] = []
    if run.wants("check"):
        jobs.append((check_library, run))
    for setting in settings(run.rehearse):
        due = [m for m in methods(run.rehearse) if not is_baseline(m)]
        due = [m for m in due if run.wants("check", setting.key, m.name)]
        key = dict(case=setting.key, ok=True)
        if due := [m for m in due if not run.has("check", **key, method=m.name)]:
            jobs.append((check_setting, run, setting, due))
    seconds = run.left if run.only == "check" else 0.45 * run.left
    if missed := in_processes(jobs, run.workers, seconds):
        print(f"checks that did not end in {seconds:.0f} s: {missed}; they are not timed")


def check_library(run: Run) -> None:
    """Every backend at small sizes, all kinds of tiles, rows and head dims."""
    key = ("backend", "case")
    done = {tuple(r[k] for k in key) for r in run.found("selfcheck") if r["ok"] is not False}
    due = [c for c in selfcheck.checks() if (c.backend, str(c.case)) not in done or not run.resume]
    if run.rehearse:  # one of each; `python -m flexsparse.selfcheck` has all of them on a CPU too
        due = [*{check.backend: check for check in due}.values()]
    for result in selfcheck.each(run.device, due):
        if run.device == "cuda":
            torch.cuda.synchronize()  # raises where the context is lost: the rest is not wrong
        print(f"selfcheck  {result.backend}  {result.case}  {_word(result.ok)}", flush=True)
        ratio = result.ratio if result.ratio is not None and result.ratio < 1e9 else None
        detail = dict(detail=result.detail, seconds=round(result.seconds, 2))
        row = dict(backend=result.backend, case=result.case, ok=result.ok, ratio=ratio)
        run.write("selfcheck", **row, **detail)


def check_setting(run: Run, setting: Setting, due: list[Method]) -> None:
    """Outputs and gradients of some heads against fp64, at the size that is timed."""
    for method in due:
        row: Row = dict(**setting_of(setting), method=method.name)
        try:
            tensors = DRAWN.of(run, setting)
            found = check(method, setting, build(method, setting, tensors), tensors)
            wrong = [name for name, ratio in found.items() if not ratio <= 1]
            rounded = {name: round(ratio, 3) for name, ratio in found.items()}
            row |= dict(ok=not wrong, ratios=rounded)
            shown = f"{_word(not wrong)} {', '.join(wrong)}"
        except Unavailable as reason:
            row |= dict(ok=None, left_out=str(reason))
            shown = f"left out: {reason}"
        except torch.OutOfMemoryError as failure:  # perhaps a neighbour's fault: no verdict
            row |= dict(ok=None, left_out=say(failure))
            shown = f"left out: {say(failure)}"
        except Exception as failure:  # a row says so, and the others go on
            row |= dict(ok=False, error=say(failure))
            shown = say(failure)
        run.write("check", **row)
        print(f"{setting.key:12} {method.name:24} {shown}", flush=True)
        forget()


def _word(ok: bool | None) -> str:
    return {True: "right", False: "WRONG", None: "not available"}[ok]
