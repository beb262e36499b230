"""What the kernels of the coarse stage add up to: whole masks, and the layers that use them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.profiler import DeviceType, ProfilerActivity, profile

from benchmarks.gpu.cases import Method, Setting
from benchmarks.gpu.layers import KEEP, compiled, rule_of, window_of
from benchmarks.gpu.methods import build
from benchmarks.gpu.run import Row
from benchmarks.gpu.timing import steps
from benchmarks.gpu.unit import Unit
from flexsparse import bsa_mask, prune_queries, vsa_mask

Step = Callable[[], object]
VSA = [Method("vsa", 0.875, query_tiles) for query_tiles in (1, 2)]
BSA = Method("bsa", 0.95, 4)
SIDES = [f"{kind}{side}" for kind in ("", "full_") for side in ("kv", "q")]
LISTS = [f"{side}_{what}" for side in SIDES for what in ("num_blocks", "indices")]


def layer(method: Method, setting: Setting, tensors: list[Tensor]) -> Unit:
    """Whole VSA with both gates, as the other parts check and time it."""
    made = build(method, setting, tensors)
    both = steps(made, torch.randn_like(made.inputs[0]))

    def more(step: str) -> Row:
        on_gpu = made.inputs[0].is_cuda
        return dict(synchronises=synchronises(both[step]) if on_gpu else None)

    return Unit(both, lambda: {}, more)


def _vsa_mask(setting: Setting, tensors: list[Tensor], query_tiles: int) -> Unit:
    given: Any = dict(top_k=rule_of(VSA[0], setting), query_tiles=query_tiles)
    return mask(lambda q, k: vsa_mask(q, k, setting.tiling, **given), tensors[:2])


def _bsa_mask(setting: Setting, tensors: list[Tensor]) -> Unit:
    q, k = tensors[:2]
    tiling, rule = setting.tiling, rule_of(BSA, setting)
    kept = prune_queries(q, tiling, keep=KEEP, window=window_of(setting))
    options: Any = dict(kv=rule, query_tiles=BSA.query_tiles)
    return mask(lambda k: bsa_mask(kept, k, tiling, **options), [k])


MASKS: dict[str, Callable[[Setting, list[Tensor]], Unit]] = {
    **{f"vsa_mask x{x}": partial(_vsa_mask, query_tiles=x) for x in (1, 2)},
    f"bsa_mask x{BSA.query_tiles}": _bsa_mask,
}


def mask(make: Callable[..., Any], inputs: list[Tensor]) -> Unit:
    """From its inputs to the lists that kernels read, compiled as in a model: in inference those of
    query blocks alone."""

    def lists(*inputs: Tensor) -> Any:
        found = make(*inputs).within_tiles()
        return [x for name in LISTS if (x := getattr(found, name)) is not None]

    built = compiled(lists, inputs[0])

    def with_grad(enabled: bool) -> object:
        with torch.set_grad_enabled(enabled):
            return built(*inputs)

    both = dict(inference=partial(with_grad, False), training=partial(with_grad, True))

    def more(step: str) -> Row:
        names = launches(both[step]) if inputs[0].is_cuda else None
        count = names and len(names)
        return dict(launches=count, kernels=names, list_bytes=bytes_of_all(both[step]()))

    return Unit(both, lambda: {}, more)


def bytes_of_all(tensors: Any) -> int:
    """What the tensors hold in memory, each storage once."""
    storages = [x.untyped_storage() for x in tensors]
    return sum({x.data_ptr(): x.nbytes() for x in storages}.values())


def launches(step: Step) -> list[str] | None:
    """The kernels, copies and fills that a warm step starts on a GPU; None where the profiler may
    not look."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    events = [e for e in seen.events() or [] if e.device_type == DeviceType.CUDA]
    return [e.name for e in events if not (e.is_user_annotation or "Sync" in e.name)] or None


def synchronises(step: Step) -> bool:
    """Whether the CPU waits for the GPU within a warm step."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as failure:
        if "synchronizing" not in str(failure):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False
