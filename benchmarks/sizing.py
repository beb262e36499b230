"""docs/launch.md's table of what runs take on so many GPUs: `python -m benchmarks.sizing`."""

from __future__ import annotations

from typing import Any

from train.configs import video_dit, wan
from train.plan import Plan, plan

CASES: list[tuple[Any, list[tuple[int, int]]]] = [  # a run; (GPUs, replicas)
    (video_dit.dit_120m_vsa, [(1, 1), (8, 1)]),
    (video_dit.dit_1b4_vsa, [(8, 1), (64, 8)]),
    (wan.wan_1_3b_vsa_adapt, [(8, 1), (64, 8)]),
    (wan.wan_14b_vsa_adapt, [(64, 1), (256, 4), (1000, 5)]),
]
HEAD = [
    "config",
    "GPUs",
    "replicas x shards",
    "parameters",
    "tokens a clip",
    "tokens a step",
    "weights, gradients, moments, average",
    "gathered",
    "activations",
    "all, GiB",
    "PFLOPs a step, each",
    "GiB sent a step, each",
    "GiB of the first host at the start",
]


def table() -> str:
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for run, sizes in CASES:
        traces = None
        for gpus, replicas in sizes:
            config = run()
            config.parallel.replicas = replicas
            found = plan(config, gpus, traces=traces)
            traces = found.traces
            lines.append(f"| {' | '.join(cells(run.__name__, found))} |")
    return "\n".join(lines)


def cells(name: str, p: Plan) -> list[str]:
    mode, layout = p.mode, p.layout
    sizes = p.states.total, p.gathered, p.activations(mode), p.memory(mode)
    return [
        name,
        f"{layout.processes:,}",
        f"{layout.replicas} x {layout.shards}",
        f"{sum(p.parameters.values()) / 1e9:.2f}e9",
        f"{p.tokens:,}",
        f"{p.tokens * p.batch:,}",
        *(f"{size / 2**30:.1f}" for size in sizes),
        f"{p.flops() / layout.processes / 1e15:.2f}",
        f"{p.traffic.total / 2**30:.1f}",
        f"{p.host / 2**30:.1f}",
    ]


if __name__ == "__main__":
    print(table())
