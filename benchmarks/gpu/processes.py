"""Work in other processes: what hangs or breaks a GPU's context costs a row, not the run."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.run import Run

_SPAWN = multiprocessing.get_context("spawn")
PATIENCE = 120.0  # seconds that one unit may take
_SAID = 3  # exit status of a process whose last unit has written its own error


def in_processes(jobs: list[tuple], workers: int, seconds: float) -> int:
    """Call each ``(function, *arguments)`` in a process of its own, ``workers`` at a time; those
    not done after ``seconds`` are stopped. Returns how many were."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")
    end, waiting, running = time.monotonic() + seconds, list(jobs), []
    while (waiting or running) and time.monotonic() < end:
        running = [process for process in running if process.is_alive()]
        while waiting and len(running) < workers:
            function, *arguments = waiting.pop(0)
            running.append(_SPAWN.Process(target=function, args=arguments))
            running[-1].start()
        time.sleep(0.05)
    alive = [process for process in running if process.is_alive()]
    for process in alive:
        _stop(process)
    return len(alive) + len(waiting)


def in_turn(
    run: Run,
    work: Callable[..., None],
    units: list[tuple],
    died: Callable[..., None],
    patience: float = PATIENCE,
) -> None:
    """Call ``work(run, *unit)`` for one unit after the other, while the run has time, in one other
    process; in a new one after a unit that raised, died or took longer than ``patience`` seconds.
    Of the last two kinds ``died(run, *unit)`` is told."""
    begin = 0
    while begin < len(units) and run.left > 0:
        at = _SPAWN.Value("i", begin, lock=False)
        process = _SPAWN.Process(target=_each, args=(run, work, units, begin, at))
        process.start()
        seen, since = begin, time.monotonic()
        while process.is_alive():
            if at.value != seen:
                seen, since = at.value, time.monotonic()
            if time.monotonic() - since > min(patience, max(run.left, 0) + 10):
                _stop(process)
            time.sleep(0.05)
        process.join()
        if process.exitcode == 0:
            return
        if process.exitcode != _SAID and run.left > 0:
            died(run, *units[at.value])
        begin = at.value + 1


def _each(run: Run, work: Callable[..., None], units: list[tuple], begin: int, at: Any) -> None:
    for number in range(begin, len(units)):
        if run.left <= 0:
            break
        at.value = number
        try:
            work(run, *units[number])
        except Exception:  # a GPU's context may be lost with it
            _leave(_SAID)
    _leave(0)


def _leave(status: int) -> None:
    """End this process at once: a lost context may abort or hang what Python does on the way."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _stop(process: Any) -> None:
    process.terminate()
    process.join(5)
    if process.is_alive():
        process.kill()
        process.join()
