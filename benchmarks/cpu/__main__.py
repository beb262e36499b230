"""VSA and BSA on the CPU against dense attention: time and peak memory of one attention layer.

    python -m benchmarks.cpu [--rounds 15]

8,192 tokens, 4 heads of 64, fp32, 64-token tiles, top 16 of 128 (sparsity 87.5 %), everything from
q, k and v to the output included: pooling, scores, choice, mask and fine stage; BSA keeps half of
the queries besides (93.75 %), with pruning and restoring included, and chooses 16 tiles for each
tile, or by its threshold about so many. Proves outputs and gradients right against the fp64 oracle,
then times dense SDPA and the others in turn, round by round, and quotes medians, and beside VSA's
forward the building of its mask alone; measures the peak memory of each in a fresh process; appends
rows to ``benchmarks/results/cpu.jsonl``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.record import write_row
from flexsparse import (
    Threshold,
    TopK,
    VideoTiling,
    bsa_attention,
    prune_queries,
    reference,
    vsa_attention,
    vsa_mask,
)
from flexsparse.bsa import bsa_tile_map
from flexsparse.choice.rules import Rule
from flexsparse.vsa import vsa_tile_map

TILING = VideoTiling(video=(8, 32, 32), tile=(4, 4, 4))
TOP_K, HEADS, DIM = 16, 4, 64
KEEP, WINDOW = 0.5, (2, 2, 2)
BSA_RULES: dict[str, Rule] = {"bsa": TopK(TOP_K), "bsa_threshold": Threshold(TOP_K)}


def draw(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (1, HEADS, TILING.padded_tokens, DIM)
    return [torch.randn(shape, generator=generator).requires_grad_() for _ in range(count)]


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def vsa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return vsa_attention(q, k, v, TILING, top_k=TOP_K)


def gated_vsa(q: Tensor, k: Tensor, v: Tensor, coarse: Tensor, fine: Tensor) -> Tensor:
    return vsa_attention(q, k, v, TILING, top_k=TOP_K, gate_coarse=coarse, gate_fine=fine)


def bsa(q: Tensor, k: Tensor, v: Tensor, kv: Rule = BSA_RULES["bsa"]) -> Tensor:
    return bsa_attention(q, k, v, TILING, kv=kv, keep=KEEP, window=WINDOW)


def bsa_threshold(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return bsa(q, k, v, BSA_RULES["bsa_threshold"])


def mask(q: Tensor, k: Tensor) -> Tensor:
    """What VSA does before attention starts: pooling, scores, choice, lists."""
    return vsa_mask(q, k, TILING, top_k=TOP_K).kv_num_blocks


METHODS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "dense": (dense, 3),
    "vsa": (vsa, 3),
    "vsa_gated": (gated_vsa, 5),
    "bsa": (bsa, 3),
    "bsa_threshold": (bsa_threshold, 3),
}
PARTS: dict[str, tuple[Callable[..., Tensor], int]] = {"vsa_mask": (mask, 2)}  # forward alone
SPARSITY = {"dense": 0.0, **dict.fromkeys(BSA_RULES, 1 - KEEP * TOP_K / TILING.num_tiles)}


def forward(method: str, inputs: list[Tensor], grad: Tensor) -> None:
    compute, count = (METHODS | PARTS)[method]
    with torch.no_grad():
        compute(*inputs[:count])


def forward_backward(method: str, inputs: list[Tensor], grad: Tensor) -> None:
    compute, count = METHODS[method]
    torch.autograd.grad(compute(*inputs[:count]), inputs[:count], grad)


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def prove() -> None:
    """The outputs and gradients of all methods have at most twice plain PyTorch's error to fp64."""
    inputs, (grad,) = draw(5), draw(1)
    grad = grad.detach()
    kept = prune_queries(inputs[0].detach(), TILING, keep=KEEP, window=WINDOW)
    maps = {
        "vsa": vsa_tile_map(inputs[0], inputs[1], TILING, top_k=TOP_K),
        **{n: bsa_tile_map(kept, inputs[1], TILING, kv=rule) for n, rule in BSA_RULES.items()},
    }
    maps["vsa_gated"] = maps["vsa"]
    stays = torch.zeros(1, HEADS, TILING.num_tiles, TILING.rows, dtype=torch.bool)
    stays = stays.scatter_(-1, kept.index.long(), True).flatten(-2)[..., None]
    stays = TILING.from_tiles(stays)[..., 0].bool()
    for name, chosen in maps.items():
        compute, count = METHODS[name]
        out = compute(*inputs[:count])
        found = [out, *torch.autograd.grad(out, inputs[:count], grad)]
        found = [TILING.from_tiles(x.detach()) for x in found]
        given = [TILING.from_tiles(x.detach()) for x in (*inputs[:count], grad)]
        for head in range(HEADS):  # one at a time: the oracle is dense
            one = [x[:, head : head + 1] for x in given]
            exact, plain = (
                oracle(name, one, chosen[:, head : head + 1], stays[:, head : head + 1], dtype)
                for dtype in (torch.float64, torch.float32)
            )
            for ours, c, p in zip(found, exact, plain):
                errors = rms(ours[:, head : head + 1] - c), rms(p - c)
                assert errors[0] <= 2 * errors[1], f"error {errors[0]:.3g}, eager's {errors[1]:.3g}"
    print("right: error to fp64 at most twice eager PyTorch's, outputs and gradients")


def oracle(
    name: str, given: list[Tensor], chosen: Tensor, stays: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """Plain PyTorch's output and gradients, given q, k, v, perhaps gates, and out's gradient."""
    *inputs, grad = [x.to(dtype).requires_grad_() for x in given]
    q, k, v, *gates = inputs
    video, tile = TILING.video, TILING.tile
    if name in BSA_RULES:
        choices: Any = dict(keep=KEEP, window=WINDOW, tile_map=chosen, kept=stays, dtype=dtype)
        out = reference.bsa(q, k, v, video, tile, **choices)
    else:
        choices = dict(zip(("gate_coarse", "gate_fine"), gates))
        choices |= dict(top_k=TOP_K, tile_map=chosen, dtype=dtype)
        out = reference.vsa(q, k, v, video, tile, **choices)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad.detach())]


def medians(step: Callable[..., None], rounds: int) -> dict[str, float]:
    """Seconds of every method, timed in turn; rounds that other processes disturbed do not count.

    A round is disturbed when others used more than 3 % of the machine's processors meanwhile.
    """
    # As a training run's first freed activations do: from here on glibc keeps freed memory of such
    # a size instead of handing it back to the system and faulting it in again at each step.
    torch.ones(31 << 18)
    inputs, (grad,) = draw(5), draw(1)
    names = [*METHODS, *PARTS] if step is forward else [*METHODS]
    times: dict[str, list[float]] = {name: [] for name in names}
    deadline = time.perf_counter() + 10 * rounds
    for name in names:  # warm up
        step(name, inputs, grad.detach())
    while min(map(len, times.values())) < rounds and time.perf_counter() < deadline:
        for name, found in times.items():
            busy, own, start = _busy_seconds(), time.process_time(), time.perf_counter()
            step(name, inputs, grad.detach())
            seconds = time.perf_counter() - start
            others = _busy_seconds() - busy - (time.process_time() - own)
            if others <= 0.03 * seconds * CORES + TICK:
                found.append(seconds)
    kept = {name: len(found) for name, found in times.items()}
    assert min(kept.values()) >= 3, f"the machine is not quiet enough: rounds kept {kept}"
    return {name: statistics.median(seconds) for name, seconds in times.items()}


CORES, TICK = os.cpu_count() or 1, 1 / os.sysconf("SC_CLK_TCK")


def _busy_seconds() -> float:
    """Seconds that all processors together have spent on anything since the machine started."""
    spent = [int(x) for x in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    return (sum(spent) - spent[3] - spent[4]) * TICK


def peak_memory(method: str) -> int:
    """Bytes that a forward and backward adds to a fresh process that holds the inputs."""
    command = [sys.executable, "-m", "benchmarks.cpu", "--memory-of", method]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure_memory(method: str) -> int:
    """Peak resident memory of a step over what the process holds before it (Linux)."""
    inputs, (grad,) = draw(5), draw(1)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    forward_backward(method, inputs, grad.detach())
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(x.split()[1]) for x in lines if x.startswith(field + ":"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--memory-of", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(measure_memory(args.memory_of))
        return
    prove()
    memory = {name: peak_memory(name) for name in METHODS}
    print(f"{'':18}{'method':>15}{'ms':>9}{'ratio':>8}{'peak MB':>10}{'ratio':>8}")
    for step in (forward, forward_backward):
        for name, seconds in (times := medians(step, args.rounds)).items():
            row = write_row(
                "cpu",
                "cpu",
                step=step.__name__,
                method=name,
                shape=[1, HEADS, TILING.tokens, DIM],
                dtype="float32",
                sparsity=SPARSITY.get(name, 1 - TOP_K / TILING.num_tiles),
                ms=round(1e3 * seconds, 2),
                times_faster=round(times["dense"] / seconds, 2),
                share_of_vsa=round(seconds / times["vsa"], 4) if name in PARTS else None,
                peak_bytes=memory[name] if step is forward_backward else None,
            )
            own = memory.get(name, 0)
            peak = f"{own / 1e6:10.1f}{own / memory['dense']:8.2f}"
            shown = f"{step.__name__:18}{name:>15}{row['ms']:9.1f}{row['times_faster']:7.2f}x"
            share = f", {row['share_of_vsa']:.1%} of vsa" if name in PARTS else ""
            print(shown + (peak if step is forward_backward else share))


if __name__ == "__main__":
    main()
