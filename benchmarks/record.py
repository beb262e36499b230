"""Rows of results: one JSON line each, with the device and the versions that gave it; tables."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]
NONE = "-"  # in a table, where nothing is known


def read(name: str, results: Path = RESULTS) -> list[Row]:
    """The rows of ``results/<name>.jsonl``; none where there is no such file."""
    path = results / f"{name}.jsonl"
    return list(map(json.loads, path.read_text().splitlines())) if path.exists() else []


def device_name(device: str) -> str:
    """The GPU's name, or the processor's model with the number of threads that torch uses."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")
    return f"{model or platform.processor()}, {torch.get_num_threads()} threads"


@cache
def commit() -> str | None:
    """The commit that is checked out, with a + if files differ from it; None without git."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None


def append(file: str, row: Row, results: Path = RESULTS) -> None:
    """Append ``row`` as it is to ``results/<file>.jsonl``."""
    results.mkdir(exist_ok=True)
    with (results / f"{file}.jsonl").open("a") as out:
        out.write(json.dumps(row) + "\n")  # one write: processes may append side by side


def write_row(file: str, device: str, *, results: Path = RESULTS, **row: Any) -> Row:
    """Append ``row``, with device, versions, date and commit, to ``results/<file>.jsonl``."""
    row = {
        **row,
        "device": device_name(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
    }
    append(file, row, results)
    return row


def markdown(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A table; empty without lines."""
    body = [f"| {' | '.join(map(str, line))} |" for line in lines]
    if not body:
        return ""
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *body])
