"""VSA's gates in files: diffusers' own models have none, and drop them as they load."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from flexsparse.diffusers.files import Stored, stored_in
from flexsparse.diffusers.offload import check_in_memory

MARK = "_flexsparse_gates"  # with an underscore diffusers carries it through config.json
FILE = "gates.safetensors"  # of save_gates
_GATE = re.compile(r"(.+\.slot\.gate_(?:coarse|fine))\.(?:base_layer\.)?(weight|bias)")
# in Wan's blocks, and in the attention layers of other models; in adapters what is set as it is
_FASTVIDEO = re.compile(r"(.+)\.to_gate_(compress|fine)\.(?:set_)?(weight|bias)")
_WAN_BLOCK = re.compile(r"blocks\.\d+")


def load_gates(model: nn.Module, folder: str | Path, variant: str | None = None) -> None:
    """Read a model's gates from a folder, or from one file.

    :func:`flexsparse.diffusers.sparsify` does so by itself where the model came from a local folder
    that has them; this is for gates that lie elsewhere, or came from the Hub.

    Args:
        model: sparsified with VSA.
        folder: where ``save_pretrained`` wrote the sparse transformer, or :func:`save_gates` its
            gates; or a checkpoint in diffusers' format that FastVideo wrote, of Wan or MiniMax-H3,
            or ``python -m train.export``. The files are those that ``from_pretrained`` reads, and
            ``gates.safetensors``. Or a file of any name, .safetensors or .bin, as FastVideo's
            adapters of MiniMax-H3, of which the gates alone are read.
        variant: of the weights, as ``from_pretrained`` has it.

    Raises:
        ValueError: a model without gates, a folder that has not exactly those of the model, or two
            that differ; a file that cannot be read.
        FileNotFoundError: no such weights in the folder.
    """
    gates, folder = _some_gates_of(model), Path(folder)
    check_in_memory(model, gates)
    if folder.is_file():
        fill(gates, gates_in(Stored(folder)), folder)
        return
    there = stored_in(folder)
    named = [stored for stored in there if stored.variant == variant][:1]
    if variant is None and (folder / FILE).is_file():
        named.append(Stored(folder / FILE))
    if not named:
        variants = ", ".join(sorted({stored.variant for stored in there if stored.variant}))
        asked = "no " if variant is None else f"no variant {variant} of "
        also = f"; it has variants: {variants}" if variants else ""
        raise FileNotFoundError(
            f"{folder} has {asked}diffusion_pytorch_model.safetensors, .bin or index of shards, "
            f"and no {FILE}{also}"
        )
    fill(gates, the_same({stored.path: gates_in(stored) for stored in named}), folder)


def save_gates(model: nn.Module, folder: str | Path) -> None:
    """Write a model's gates alone, for :func:`load_gates`: beside LoRA's weights, which have none.

    Args:
        model: sparsified with VSA.
        folder: gets a ``gates.safetensors``; it need not exist.

    Raises:
        ValueError: a model without gates, or with sharded ones; weights in the folder that cannot
            be read.
        FileExistsError: a folder that has gates already.
    """
    gates = _some_gates_of(model)
    if any(isinstance(parameter, DTensor) for parameter in gates.values()):
        raise ValueError("the gates are sharded: save them from the model that is gathered")
    check_in_memory(model, gates)
    folder = Path(folder)
    if (folder / FILE).exists() or any(map(gates_in, stored_in(folder))):
        raise FileExistsError(f"{folder} has gates already: give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().contiguous() for name, p in gates.items()}
    save_file(tensors, folder / FILE, {"format": "pt"})


def gates_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights and biases of the gates by name, whether LoRA wraps them or not. LoRA freezes them
    with the rest: ``for p in gates_of(model).values(): p.requires_grad_()`` trains them whole."""
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    named = {_name(name): parameter for name, parameter in model.named_parameters()}
    return {name: parameter for name, parameter in named.items() if name}


def _some_gates_of(model: nn.Module) -> dict[str, nn.Parameter]:
    gates = gates_of(model)
    if not gates:
        raise ValueError("this model has no gates: sparsify(model, VSA(...)) first")
    return gates


def the_same(given: Mapping[Path, dict[str, Tensor]]) -> dict[str, Tensor]:
    """What all of these files say; ValueError where they differ."""
    first, *others = given or {Path(): {}}
    for other in others:
        a, b = given[first], given[other]
        if a.keys() != b.keys() or not all(torch.equal(a[name], b[name]) for name in a):
            raise ValueError(
                f"{first} and {other} have different gates, and either may be meant: load the "
                f"model from its own folder, without subfolder=, or move one of them away"
            )
    return given.get(first, {})


def mark(model: nn.Module) -> None:
    """Let the config, which diffusers saves with the model, say whether it has gates."""
    if not isinstance(model, ConfigMixin):
        return
    if gates_of(model):
        model.register_to_config(**{MARK: True})
    elif MARK in model.config:
        kept: dict[str, Any] = {k: v for k, v in model.config.items() if k != MARK}
        model._internal_dict = FrozenDict(kept)


def _name(key: str) -> str:
    """A gate's name in a sparse model, from its key there or in a file; else nothing."""
    if found := _GATE.fullmatch(key):
        return ".".join(found.groups())
    if found := _FASTVIDEO.fullmatch(key):
        layer, gate, kind = found.groups()
        layer = f"{layer}.attn1" if _WAN_BLOCK.fullmatch(layer) else layer
        return f"{layer}.slot.gate_{'coarse' if gate == 'compress' else gate}.{kind}"
    return ""


def is_gate(key: str) -> bool:
    """Whether a key of a file is of one of VSA's gates."""
    return bool(_name(key))


def gates_in(stored: Stored) -> dict[str, Tensor]:
    """The gates that a set of weights has, by name. FastVideo's of MiniMax-H3 are linear layers
    without a bias: theirs is zero."""
    found = dict(stored.tensors(lambda key: bool(_name(key))))
    gates = {_name(key): tensor for key, tensor in found.items()}
    if all(_FASTVIDEO.fullmatch(key) and key.endswith("weight") for key in found):
        for name, weight in list(gates.items()):
            gates[name.removesuffix("weight") + "bias"] = weight.new_zeros(len(weight))
    return gates


def fill(
    gates: Mapping[str, nn.Parameter], found: Mapping[str, Tensor], folder: str | Path
) -> None:
    missing, surplus = sorted(gates.keys() - found.keys()), sorted(found.keys() - gates.keys())
    if missing or surplus:
        raise ValueError(
            f"{folder} has {len(found)} gates, the model {len(gates)}: missing "
            f"{', '.join(missing[:3]) or 'none'}; left over {', '.join(surplus[:3]) or 'none'}"
        )
    for name, parameter in gates.items():
        if parameter.shape != found[name].shape:
            raise ValueError(
                f"{name} is {list(found[name].shape)} in {folder}, "
                f"{list(parameter.shape)} in the model"
            )
    with torch.no_grad():
        for name, parameter in gates.items():
            parameter.copy_(found[name])
