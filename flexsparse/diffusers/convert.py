"""A model made sparse, and dense again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from flexsparse.by_noise import ByNoise
from flexsparse.diffusers import (  # noqa: F401  # register
    allegro,
    anyflow,
    cogvideox,
    cosmos,
    cosmos3,
    easyanimate,
    framepack,
    helios,
    hunyuan_video,
    hunyuan_video15,
    kandinsky,
    ltx,
    ltx2,
    minimax_h3,
    mochi,
    motif_video,
    refused,
    skyreels_v2,
    wan,
)
from flexsparse.diffusers.call import Call, Processor, check_processor
from flexsparse.diffusers.families import Family, family_of
from flexsparse.diffusers.gates import mark
from flexsparse.diffusers.offload import check_groups, check_in_memory, regroup
from flexsparse.diffusers.origin import fill_from_origin
from flexsparse.slots import BSA, VSA, Dense
from flexsparse.stages.windows import Windows
from flexsparse.tiling import VideoTiling

_STATE = "_flexsparse"


@dataclass(frozen=True)
class _State:
    """What a sparse model carries beside its slots."""

    processors: dict[str, Any]  # its own, by layer
    hooks: tuple[Any, ...]
    gates: dict[str, dict[str, nn.Module]]  # that the method has no use for, by layer
    dtype: torch.dtype


def sparsify(
    model: nn.Module,
    method: VSA | BSA | ByNoise | Mapping[float, VSA | BSA | Dense],
    *,
    dense_above: float | None = None,
    dense_layers: Iterable[int] = (),
) -> None:
    """Make the self-attention of a diffusers model sparse, in place.

    The video's grid is taken from each call: any resolution, one after the other. ``top_k`` above
    the number of tiles means all, ``sparsity`` follows the grid. What attends together with the
    video (text, and conditions and audio in one sequence with it) attends to everything, and
    everything to it.

    VSA adds a linear layer to each attention, ``slot.gate_coarse``, that starts at zero: the model
    is one adapted from a dense checkpoint (``adapt=True``), training it opens the gate, and saving
    saves it. A model loaded from a local folder that has gates gets those; a warning says where
    they are known to exist, or lie beside other weights than the model's (as after fusing LoRA into
    them), and :func:`load_gates` has to read them. For inference without training,
    ``VSA(..., gates=False)`` saves their time. BSA adds nothing.

    Density may follow the noise level, which is read from each call's own ``timestep``, so that it
    is right under guidance, caches and several experts (give each model the same); on a GPU that
    waits for it, once a call. Compiled, each method is a program of its own: compile the blocks,
    ``model.compile_repeated_blocks()``; a graph of the whole model breaks where it is read.

    Args:
        model: a pipeline's ``transformer`` (or ``transformer_2``). One that is sparse already
            changes its method and keeps its gates, the parameters themselves: those that the method
            has no use for lie aside, neither trained nor saved, until one has, or :func:`restore`.
        method: :class:`VSA` or :class:`BSA`; or a mapping of noise levels, from 1 (noise) to 0
            (data), to the method from each on, of which some may be :class:`Dense`, as
            :class:`ByNoise` says.
        dense_above: the noise level from which attention is dense: with 0.85, that of timesteps 850
            to 1,000. For one method; a mapping has ``{0.85: Dense(), ...}``.
        dense_layers: layers that are dense throughout, counted as they run, from 0.

    Raises:
        ValueError: noise levels or layers that are none; a model that is not known, with how to add
            it, or cannot be, with why; one whose layers run on other tokens than those of one
            video, or whose folder has other gates; a window that does not divide the tile; weights
            beside which there can be no new gates, since they are sharded, or offloaded to where
            nothing can be added, or part by part.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    slot = _slot_of(method, dense_above, dense_layers)
    family = family_of(model)
    dtype = cast(torch.dtype, model.dtype)  # that it computes in, however weights are stored
    own = _own_processors(model, family)
    kinds = {name: family.processor_for(name, processor) for name, processor in own.items()}
    kept = _kept_gates(model, family, dtype)
    slots = {
        name: _slot(attn, family, slot, dtype, kept.get(name, {}))
        for name, attn in family.layers(model)
    }
    if isinstance(slot, ByNoise):
        slot.settle(list(slots.values()))
    queries = {name: family.query_of(attn).weight for name, attn in family.layers(model)}
    _check_shards(model, queries, slots, kept)
    gates, there = _parameters(slots), _parameters(_slots_of(model))
    fresh = [name for name, p in gates.items() if p is not there.get(name)]
    if changed := bool(fresh) or gates.keys() != there.keys():
        check_groups(model)
        new = {name.partition(".slot.")[0] for name in fresh}
        check_in_memory(model, {name: w for name, w in queries.items() if name in new})
    if not any(kept.values()):
        fill_from_origin(model, gates)
    gone = _undo(model)
    call = Call(slot, family.grid, family.noise_of, dict(family.layers(model)))
    for name, attn in family.layers(model):
        attn.slot = slots[name]
        _set_processor(attn, kinds[name](call))
    hooks = (
        model.register_forward_pre_hook(call.enter, with_kwargs=True),
        model.register_forward_hook(call.leave, always_call=True),
    )
    aside = {
        name: {gate: module for gate, module in gates.items() if not _has(slots[name], gate)}
        for name, gates in kept.items()
    }
    setattr(model, _STATE, _State(own, hooks, aside, dtype))
    if changed:
        regroup(model, gone)
    mark(model)


def _slot_of(
    method: Any, dense_above: float | None, dense_layers: Iterable[int]
) -> VSA | BSA | ByNoise:
    """What every layer has, of what a user asks for."""
    if not isinstance(dense_layers, Iterable):
        raise ValueError(
            f"dense_layers={dense_layers!r} must be several numbers: ({dense_layers},)"
        )
    if dense_above is not None and not 0 < dense_above < 1:
        raise ValueError(
            f"dense_above={dense_above} must be a noise level between 0 and 1, which is noise: "
            f"0.85 for timesteps from 850 of 1,000 on"
        )
    dense_layers = tuple(dense_layers)
    if isinstance(method, VSA | BSA):
        if dense_above is not None or dense_layers:
            above = {} if dense_above is None else {dense_above: Dense()}
            method = ByNoise({0.0: method} | above, dense_layers)
    elif dense_above is not None:
        raise ValueError(f"dense_above={dense_above} is for one method: put Dense() in the mapping")
    elif isinstance(method, ByNoise):
        method = ByNoise(method.methods, (*method.dense_layers, *dense_layers))
    elif isinstance(method, Mapping):
        method = ByNoise(method, dense_layers)
    else:
        raise ValueError(f"{method!r} is no method: give VSA(...) or BSA(...)")
    own = method.sparse if isinstance(method, ByNoise) else method
    if isinstance(own, BSA) and own.tile is not None and own.window != "fit":
        tile = VideoTiling(own.tile, own.tile)
        Windows(tile, own.keep, own.window)  # of any video, not of one tile alone
    if isinstance(own, BSA):
        return method
    return method.but(adapt=True) if isinstance(method, ByNoise) else replace(own, adapt=True)


def _own_processors(model: nn.Module, family: Family) -> dict[str, Any]:
    """The processors that a model has, or had before it was sparse, by layer."""
    state: _State | None = getattr(model, _STATE, None)
    if state is None:
        return {name: attn.processor for name, attn in family.layers(model)}
    for name, attn in family.layers(model):
        check_processor(name, attn)
    return state.processors


def _set_processor(attn: Any, processor: Any) -> None:
    """Some attention modules have no other way than to assign it."""
    if hasattr(attn, "set_processor"):
        attn.set_processor(processor)
    else:
        attn.processor = processor


def _check_shards(
    model: nn.Module,
    queries: dict[str, Any],
    slots: dict[str, nn.Module],
    kept: dict[str, dict[str, nn.Module]],
) -> None:
    """Raise ValueError if some gates would lie beside sharded weights as they are."""
    fsdp = any(isinstance(module, FSDPModule) for module in model.modules())
    for name, slot in slots.items():
        # a forward of the root leaves weights whole, and no DTensors
        new = fsdp and any(gate not in kept.get(name, {}) for gate, _ in slot.named_children())
        beside = isinstance(queries[name], DTensor) and any(
            not isinstance(p, DTensor) for p in slot.parameters()
        )
        if new or beside:
            raise ValueError(
                f"the weights of {name} are sharded, and new gates beside them would differ from "
                "rank to rank: sparsify the model before fully_shard, which then shards its gates"
            )


def _kept_gates(
    model: nn.Module, family: Family, dtype: torch.dtype
) -> dict[str, dict[str, nn.Module]]:
    """The gates that a model has had since it is sparse, by layer."""
    state: _State | None = getattr(model, _STATE, None)
    if state is None:
        return {}
    kept = {}
    for name in state.processors:
        attn: Any = model.get_submodule(name)
        weight, aside = family.query_of(attn).weight, state.gates.get(name, {})
        for gate in aside.values():  # which model.to(...) has not moved
            if not weight.is_meta:
                gate.to(weight.device)
            if state.dtype != dtype:
                gate.to(dtype)
        kept[name] = aside | dict(attn.slot.named_children())
    return kept


def _has(slot: nn.Module, gate: str) -> bool:
    return getattr(slot, gate, None) is not None


def _slot(
    attn: Any,
    family: Family,
    method: VSA | BSA | ByNoise,
    dtype: torch.dtype,
    kept: dict[str, nn.Module],
) -> nn.Module:
    """A layer's slot, where its weights are, with the gates that are kept for it."""
    query, heads = family.query_of(attn), getattr(attn, family.heads)
    weight = query.weight
    with torch.device(weight.device):
        slot = method.build(query.in_features, heads, None, query.out_features // heads)
    if any(p.dtype != dtype for p in slot.parameters()):
        slot.to(dtype)
    slot.requires_grad_(weight.requires_grad)
    for gate, module in kept.items():  # an optimizer may hold them, or LoRA wrap them
        if _has(slot, gate):
            setattr(slot, gate, module)
    return slot


def restore(model: nn.Module) -> None:
    """Undo :func:`sparsify`: the model is as it was before, bit for bit. Gates are dropped.

    Raises:
        ValueError: a model that is not sparse, or whose gates are offloaded to files.
    """
    model = getattr(model, "_orig_mod", model)
    if getattr(model, _STATE, None) is None:
        raise ValueError(f"this {type(model).__name__} is not sparse: nothing to restore")
    gates = _parameters(_slots_of(model))
    if gates:
        check_groups(model)
        check_in_memory(model, {})
    gone = _undo(model)
    mark(model)
    if gates:
        regroup(model, gone)


def _undo(model: nn.Module) -> list[nn.Module]:
    """Take the slots out of a model, if it has any; returns all modules in them."""
    state: _State | None = getattr(model, _STATE, None)
    if state is None:
        return []
    gone = [module for slot in _slots_of(model).values() for module in slot.modules()]
    for name, processor in state.processors.items():
        attn: Any = model.get_submodule(name)
        if isinstance(attn.processor, Processor):  # what others have set since is theirs
            _set_processor(attn, processor)
        del attn.slot
    for hook in state.hooks:
        hook.remove()
    delattr(model, _STATE)
    return gone


def _slots_of(model: nn.Module) -> dict[str, Any]:
    """The slots that a model has, by layer."""
    state: _State | None = getattr(model, _STATE, None)
    return {} if state is None else {n: model.get_submodule(n).slot for n in state.processors}


def _parameters(slots: dict[str, Any]) -> dict[str, nn.Parameter]:
    """The gates of slots, by their name in the model."""
    named = ((name, slot.named_parameters()) for name, slot in slots.items())
    return {f"{name}.slot.{gate}": p for name, gates in named for gate, p in gates}
