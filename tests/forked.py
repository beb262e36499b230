"""Python processes that begin with torch and the trainer imported: forked from one that has them.

To import them takes a process of its own five seconds of CPU time.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train.trainer"])


def get_ready() -> None:
    """Start the process that others are forked from, if there is none yet."""
    here = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with mock.patch.dict(os.environ, here):
        multiprocessing.forkserver.ensure_running()


class Forked:
    """``python SCRIPT ARGUMENTS`` with these variables in its environment; as much of a
    ``subprocess.Popen``, whose output and errors are one, as is needed to wait for ranks."""

    def __init__(self, script: str, *arguments: str, env: Mapping[str, str]) -> None:
        descriptor, self._said = tempfile.mkstemp()
        os.close(descriptor)
        get_ready()
        given = script, arguments, dict(env), self._said
        self._process = CONTEXT.Process(target=_run, args=given)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0, self._read())
        return self._read().decode(), None

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def _read(self) -> bytes:
        return Path(self._said).read_bytes()

    def __del__(self) -> None:
        Path(self._said).unlink(missing_ok=True)


def _run(script: str, arguments: tuple[str, ...], env: dict[str, str], said: str) -> None:
    """In the new process."""
    with open(said, "ab", buffering=0) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.clear()
    os.environ.update(env)
    multiprocessing.set_start_method(None, force=True)  # as in a process that is started itself
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
