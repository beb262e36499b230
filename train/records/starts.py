"""What a run was started with, beside its config: a line of JSON for each start."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from train.records.run_dir import describe, leaves

STARTS = "starts.jsonl"
PACKAGES = ("flexsparse", "torch", "torchtitan", "triton", "einops", "numpy", "av", "pyarrow")


def record_start(folder: str | Path, config: Any, step: int) -> None:
    """Append this start, from checkpoint `step` (0: afresh), to starts.jsonl."""
    described = dict(leaves(describe(config)))
    start = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "command": sys.argv,
        "processes": dist.get_world_size(),
        "device": device_name(),
        "seeds": {k: v for k, v in described.items() if k.rpartition(".")[2] == "seed"},
        "versions": versions(),
        "git": git_state(Path(__file__).parent),
    }
    with Path(folder, STARTS).open("a") as file:
        file.write(json.dumps(start) + "\n")


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def versions() -> dict[str, str | None]:
    """Of Python, of CUDA if torch has it, and of the packages that are installed."""
    found: dict[str, str | None] = {"python": sys.version.split()[0], "cuda": torch.version.cuda}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that holds `folder`, and the files that differ from it; None without.

    Files that git does not know of are among them.
    """
    try:
        commit = _git(folder, "rev-parse", "HEAD").strip()
        changed = [line[3:] for line in _git(folder, "status", "--porcelain").splitlines()]
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": changed}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout
