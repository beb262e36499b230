"""The parts of a run: every method checked, the coarse stage taken apart, every method timed, then
kernel options swept; each row is written the moment it is there."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.cases import Method, Setting
from benchmarks.record import RESULTS, Row, commit, device_name, read, write_row

PARTS = ("machine", "check", "coarse", "time", "sweep")
DTYPE = torch.bfloat16


@dataclass
class Run:
    """One run of the command: where it is and what it may take.

    Attributes:
        device: "cuda", or "cpu" for a rehearsal at tiny sizes.
        seconds: that it may take in all.
        only: one of PARTS, or a piece of a setting's or method's name; empty for everything.
        results: the folder of ``gpu.jsonl``.
        resume: leave out what the file already has, from this commit and device.
        workers: processes that check at the same time.
    """

    device: str
    seconds: float
    only: str = ""
    results: Path = RESULTS
    resume: bool = False
    workers: int = 6
    started: float = field(default_factory=time.monotonic)

    @property
    def rehearse(self) -> bool:
        return self.device == "cpu"

    @property
    def left(self) -> float:
        """Seconds, less what the last thing begun may take."""
        return self.started + self.seconds - time.monotonic() - (0 if self.rehearse else 15)

    def wants(self, part: str, *names: str) -> bool:
        """Whether it is asked for the part, and for one of these names in it."""
        if self.only in PARTS:
            return self.only == part
        return any(self.only in name for name in names) if names else self.only == ""

    def write(self, part: str, **row: Any) -> Row:
        """Append a row to the results."""
        versions = {"triton": _version("triton"), "cuda": torch.version.cuda}
        dtype = str(DTYPE).removeprefix("torch.")
        row = {"part": part, **row, "dtype": dtype, **versions}
        return write_row("gpu", self.device, results=self.results, **row)

    def rows(self) -> list[Row]:
        """What was found by this commit on this device, in this run and earlier ones."""
        here = device_name(self.device), _clean(commit())
        return [r for r in read_rows(self.results) if (r["device"], _clean(r["commit"])) == here]

    def found(self, part: str, **values: Any) -> list[Row]:
        """The rows with these values that are no errors."""
        rows = [row for row in self.rows() if row["part"] == part and not row.get("error")]
        return [row for row in rows if all(row.get(k) == v for k, v in values.items())]

    def has(self, part: str, **values: Any) -> bool:
        """Whether a row is there already, and this run goes on from it."""
        return self.resume and bool(self.found(part, **values))

    def right(self, setting: Setting, method: Method) -> bool:
        """Whether the last check of the method found it right."""
        rows = [r for r in self.rows() if r["part"] == "check"]
        mine = [r for r in rows if (r["case"], r["method"]) == (setting.key, method.name)]
        return bool(mine) and mine[-1]["ok"] is True


def read_rows(results: Path = RESULTS) -> list[Row]:
    """All rows of ``gpu.jsonl``."""
    return read("gpu", results)


def setting_of(setting: Setting) -> Row:
    """What a row says of its setting."""
    shape = [1, setting.heads, setting.tiling.tokens, setting.dim]
    return dict(case=setting.key, shape=shape, video=setting.video, tile=setting.tile)


def say(error: Exception) -> str:
    """One line of an error."""
    first = str(error).strip().splitlines()[:1]
    return f"{type(error).__name__}: {first[0] if first else ''}"[:300]


def _clean(commit: str | None) -> str | None:
    """Without the mark of changed files: the first row changes one."""
    return commit and commit.rstrip("+")


def _version(package: str) -> str | None:
    try:
        return __import__(package).__version__
    except ImportError:
        return None
