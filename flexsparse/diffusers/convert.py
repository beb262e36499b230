"""A model made sparse, and dense again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from flexsparse.diffusers import cogvideox, hunyuan_video, ltx, wan  # noqa: F401  # register
from flexsparse.diffusers.call import Call
from flexsparse.diffusers.families import family_of
from flexsparse.slots import BSA, VSA

_STATE = "_flexsparse"


def sparsify(model: nn.Module, method: VSA | BSA) -> None:
    """Make the self-attention of a diffusers model sparse, in place.

    The video's grid is taken from each call: any resolution, one after the other. ``top_k`` above
    the number of tiles means all, ``sparsity`` follows the grid. Text that attends together with
    the video (HunyuanVideo, CogVideoX) attends to everything, and everything to it.

    VSA adds a linear layer to each attention, ``slot.gate_coarse``, that starts at zero: the model
    is one adapted from a dense checkpoint (``adapt=True``), training it opens the gate, and saving
    saves it. For inference without training, ``VSA(..., gates=False)`` saves its time. BSA adds
    nothing.

    Args:
        model: a pipeline's ``transformer`` (or ``transformer_2``). One that is sparse already
            changes its method and keeps the gates that both have.
        method: :class:`VSA` or :class:`BSA`.

    Raises:
        ValueError: a model that is not known, with how to add it, or one whose layers run on other
            tokens than those of one video.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if not isinstance(method, VSA | BSA):
        raise ValueError(f"{method!r} is no method: give VSA(...) or BSA(...)")
    family = family_of(model)
    if isinstance(method, VSA):
        method = replace(method, adapt=True)
    dtype = cast(torch.dtype, model.dtype)  # that it computes in, however weights are stored
    slots = {name: _slot(name, attn, method, dtype) for name, attn in family.layers(model)}
    gates = _gates(model)
    if getattr(model, _STATE, None) is not None:
        restore(model)
    call = Call(method, family.grid, family.layers)
    processors: dict[str, Any] = {}
    for name, attn in family.layers(model):
        processors[name] = attn.processor
        attn.slot = slots[name]
        attn.set_processor(family.processor(call))
    with torch.no_grad():
        for name, parameter in _gates(model).items():
            if name in gates:
                parameter.copy_(gates[name])
    hooks = (
        model.register_forward_pre_hook(call.enter, with_kwargs=True),
        model.register_forward_hook(call.leave),
    )
    setattr(model, _STATE, (processors, hooks))


def _slot(name: str, attn: Any, method: VSA | BSA, dtype: torch.dtype) -> nn.Module:
    """A layer's slot, where its weights are."""
    weight = attn.to_q.weight
    if weight.is_meta:
        raise ValueError(f"the weights of {name} are offloaded: sparsify the model before that")
    with torch.device(weight.device):
        slot = method.build(attn.to_q.in_features, attn.heads, None)
    if any(p.dtype != dtype for p in slot.parameters()):
        slot.to(dtype)
    return slot.requires_grad_(weight.requires_grad)


def restore(model: nn.Module) -> None:
    """Undo :func:`sparsify`: the model is as it was before, bit for bit. Gates are dropped.

    Raises:
        ValueError: a model that is not sparse.
    """
    model = getattr(model, "_orig_mod", model)
    state = getattr(model, _STATE, None)
    if state is None:
        raise ValueError(f"this {type(model).__name__} is not sparse: nothing to restore")
    processors, hooks = state
    for name, processor in processors.items():
        attn: Any = model.get_submodule(name)
        attn.set_processor(processor)
        del attn.slot
    for hook in hooks:
        hook.remove()
    delattr(model, _STATE)


def load_gates(model: nn.Module, folder: str | Path) -> None:
    """Read the gates that ``save_pretrained`` wrote with a sparse model.

    ``from_pretrained`` builds diffusers' own model, which has none and drops them: call
    :func:`sparsify` on it with VSA, then this.

    Args:
        model: sparsified with VSA.
        folder: where ``save_pretrained`` wrote the transformer.

    Raises:
        ValueError: a model without gates, or a folder that has not exactly those of the model.
        FileNotFoundError: no safetensors in the folder.
    """
    from safetensors import safe_open

    gates = _gates(model)
    if not gates:
        raise ValueError("this model has no gates: sparsify(model, VSA(...)) first")
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no *.safetensors")
    found = {}
    for file in files:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # it is no dict
                if ".slot.gate_" in name:
                    found[name] = tensors.get_tensor(name)
    missing, surplus = sorted(gates.keys() - found.keys()), sorted(found.keys() - gates.keys())
    if missing or surplus:
        raise ValueError(
            f"{folder} has {len(found)} gates, the model {len(gates)}: missing "
            f"{', '.join(missing[:3]) or 'none'}; left over {', '.join(surplus[:3]) or 'none'}"
        )
    with torch.no_grad():
        for name, parameter in gates.items():
            if parameter.shape != found[name].shape:
                raise ValueError(
                    f"{name} is {list(found[name].shape)} in {folder}, "
                    f"{list(parameter.shape)} in the model"
                )
            parameter.copy_(found[name])


def _gates(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: x for name, x in model.named_parameters() if ".slot.gate_" in name}
