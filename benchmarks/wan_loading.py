"""Memory that loading a Wan checkpoint takes, over that of its weights.

    python -m benchmarks.wan_loading [--format wan] [--dtype float32]

Writes random weights of Wan2.1-T2V-1.3B's shapes to a temporary folder, sharded, loads them in a
fresh process, proves that every weight is there and right, and appends a row to
``benchmarks/results/wan_loading.jsonl``. The peak is that of resident memory over what the process
held before, files that are mapped included (Linux).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from benchmarks.record import Row, write_row
from models.wan import WanConfig, wan_1_3b
from models.wan.checkpoint import load, read_config, save
from models.wan.formats import CLASSES, Format


def write_random(config: WanConfig, folder: Path, format: Format, dtype: torch.dtype) -> float:
    """Every weight is drawn, a shard holds half of them at most; returns their sum."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = config.build()
    model.to(dtype).to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    save(model, folder, format, sum(x.nbytes for x in model.parameters()) // 2)
    return _sum(model)


def measure(folder: Path) -> Row:
    """Load in a fresh process: bytes of the weights, what its memory grew by, seconds."""
    command = [sys.executable, "-m", "benchmarks.wan_loading", "--load", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def measure_here(folder: Path) -> Row:
    config = read_config(folder)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    resident, anonymous = _status("VmRSS"), _status("RssAnon")
    start = time.perf_counter()
    model = load(config, folder)
    return dict(
        seconds=time.perf_counter() - start,
        weights=sum(x.nbytes for x in model.parameters()),
        peak=_status("VmHWM") - resident,
        kept=_status("RssAnon") - anonymous,
        sum=_sum(model),
    )


def _sum(model: nn.Module) -> float:
    return sum(x.sum(dtype=torch.float64).item() for x in model.parameters())


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(x.split()[1]) for x in lines if x.startswith(field + ":"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--format", choices=CLASSES, default="diffusers")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        print(json.dumps(measure_here(args.load)))
        return
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "checkpoint")
        written = write_random(wan_1_3b(), folder, args.format, getattr(torch, args.dtype))
        used = measure(folder)
    assert used.pop("sum") == written, "what was loaded is not what was written"
    ratios = {name: round(used[name] / used["weights"], 4) for name in ("peak", "kept")}
    print(f"weights {used['weights'] / 1e6:,.0f} MB; over them: {ratios}; {used['seconds']:.1f} s")
    write_row("wan_loading", "cpu", format=args.format, dtype=args.dtype, ratios=ratios, **used)


if __name__ == "__main__":
    main()
