"""A plan in lines for people."""

from typing import get_args

from train.distributed.activation_checkpoint import Mode
from train.plan.plan import Plan

GIB = 2**30


def lines(plan: Plan) -> list[str]:
    c, training = plan.config, plan.config.training
    layout = plan.layout
    every = sum(plan.parameters.values())
    found = [
        f"{layout.processes} processes: {layout.replicas} replicas x {layout.shards} shards x "
        f"{layout.degree} that share a clip, computing in {training.param_dtype}; by formula, "
        "nothing was allocated",
        "",
        f"tokens        {plan.tokens:,} a clip ({plan.rows:,} rows with padding), "
        f"{plan.tokens * plan.batch:,} a step",
        f"clips         {plan.batch} a step: {training.local_batch_size} x "
        f"{layout.replicas * layout.shards} x {layout.passes(training)} passes",
        "",
        *_table("parameters", {"all": every, **plan.parameters}, count),
    ]
    if plan.trained != every:
        found.append(f"  {'of which train':<22}{count(plan.trained):>12}")
    return [*found, "", *_flops(plan), "", *_memory(plan), "", *_traffic(plan), *_notes(c)]


def _flops(plan: Plan) -> list[str]:
    of_pass = plan.traces["none"].forward
    clips = plan.config.training.local_batch_size
    forward = {part: flops // clips for part, flops in of_pass.items()}
    sparse = {"self-attention itself": plan.attention[0]} | forward
    rows = {"all": sum(sparse.values()), **sparse}
    step = plan.flops()
    return [
        *_table("FLOPs of a clip's forward", rows, flops_text),
        *_table(
            f"FLOPs of a step, checkpointing {plan.mode}",
            {"all processes": step, "each": step / plan.layout.processes},
            flops_text,
        ),
    ]


def _memory(plan: Plan) -> list[str]:
    s = plan.states
    rows = {
        "weights, fp32": s.weights,
        "gradients, fp32": s.gradients,
        "Adam's moments": s.moments,
        "averaged weights": s.average,
        "gathered by FSDP": plan.gathered,
    }
    found = _table("memory of a process", rows, size)
    for mode in get_args(Mode):
        chosen = "  <- this run" if mode == plan.mode else ""
        found.append(
            f"  activations, {mode:<9}{size(plan.activations(mode)):>12}"
            f"   {size(plan.memory(mode))} in all{chosen}"
        )
    why = "the whole model, of which it sends the shards"
    return [*found, f"  {'host of process 0':<22}{size(plan.host):>12}   at the start: {why}"]


def _traffic(plan: Plan) -> list[str]:
    t = plan.traffic
    rows = {
        "all": t.total,
        "all-gather": t.all_gather,
        "reduce-scatter": t.reduce_scatter,
        "all-reduce": t.all_reduce,
        "all-to-all": t.all_to_all,
    }
    return _table("sent by a process in a step", rows, size)


def _notes(config) -> list[str]:
    buckets = len(getattr(config.dataloader, "buckets", ()))
    largest = " x ".join(map(str, config.model.video))
    return [
        "",
        *([f"All is for steps on clips of {largest}, the largest of {buckets}."] * (buckets > 1)),
        "Activations are those of an eager step; torch.compile fuses, and keeps less. Not counted:",
        "buffers of NCCL, the CUDA context, and what an allocator holds without using it.",
        f"Attention counts as where its schedule ends ({config.sparsity.schedule}).",
    ]


def _table(title: str, rows: dict, show) -> list[str]:
    return [title, *(f"  {name:<22}{show(value):>12}" for name, value in rows.items())]


def count(n: float) -> str:
    return f"{n:,.0f}"


def size(n: float) -> str:
    """Bytes, in GiB, or MiB below one."""
    return f"{n / GIB:,.2f} GiB" if n >= GIB else f"{n / 2**20:,.2f} MiB"


def flops_text(n: float) -> str:
    return f"{n / 1e12:,.3f} T"
