"""VSA's gates in files: diffusers' own models have none, and drop them as they load."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

_MARK = "_flexsparse_gates"  # with an underscore diffusers carries it through config.json
_PICKLES = "diffusion_pytorch_model*.bin"  # of save_pretrained(safe_serialization=False)
_GATE = re.compile(r"(.+\.slot\.gate_(?:coarse|fine))\.(?:base_layer\.)?(weight|bias)")
_FASTVIDEO = re.compile(r"(blocks\.\d+)\.to_gate_(compress|fine)\.(weight|bias)")


def load_gates(model: nn.Module, folder: str | Path) -> None:
    """Read a model's gates from a folder.

    :func:`flexsparse.diffusers.sparsify` does so by itself where the model came from a local folder
    that has them; this is for gates that lie elsewhere, or came from the Hub.

    Args:
        model: sparsified with VSA.
        folder: where ``save_pretrained`` wrote the sparse transformer, or :func:`save_gates` its
            gates; or a Wan checkpoint that ``python -m train.export`` or FastVideo wrote in
            diffusers' format.

    Raises:
        ValueError: a model without gates, or a folder that has not exactly those of the model.
        FileNotFoundError: no weights in the folder.
    """
    gates = _some_gates_of(model)
    if not any([*Path(folder).glob(kind)] for kind in ("*.safetensors", _PICKLES)):
        raise FileNotFoundError(f"{folder} has no *.safetensors, and no {_PICKLES}")
    _fill(gates, _read(Path(folder)), folder)


def save_gates(model: nn.Module, folder: str | Path) -> None:
    """Write a model's gates alone, for :func:`load_gates`: beside LoRA's weights, which have none.

    Args:
        model: sparsified with VSA.
        folder: gets a ``gates.safetensors``; it need not exist.

    Raises:
        ValueError: a model without gates, or with sharded ones.
        FileExistsError: a folder that has gates already.
    """
    gates = _some_gates_of(model)
    if any(isinstance(parameter, DTensor) for parameter in gates.values()):
        raise ValueError("the gates are sharded: save them from the model that is gathered")
    folder = Path(folder)
    if _read(folder):
        raise FileExistsError(f"{folder} has gates already: give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().contiguous() for name, p in gates.items()}
    save_file(tensors, folder / "gates.safetensors", {"format": "pt"})


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


def fill_from_origin(model: nn.Module, gates: Mapping[str, nn.Parameter]) -> None:
    """Fill new gates from the folder that the model was loaded from, if that has any; warn if they
    are known to be somewhere and were not found.

    Raises:
        ValueError: a folder that has others than these, or a pipeline's with two transformers.
    """
    if not isinstance(model, ConfigMixin) or not gates:
        return
    origin = model.config.get("_name_or_path") or ""
    folder, found = _of_origin(Path(origin)) if origin else (Path(), {})
    if found:
        _fill(gates, found, folder)
    elif model.config.get(_MARK):
        warnings.warn(
            f"this {type(model).__name__} was saved with trained gates, which diffusers dropped as "
            f"it loaded {origin}: they are zero until load_gates(model, FOLDER) reads them",
            stacklevel=3,
        )


def _of_origin(origin: Path) -> tuple[Path, dict[str, Tensor]]:
    """The folder of a model, and its gates. Of ``from_pretrained(DIR, subfolder=...)`` a model
    remembers no more than DIR, the pipeline's."""
    if found := _read(origin):
        return origin, found
    parts = [origin / name for name in ("transformer", "transformer_2")]
    parts = [part for part in parts if part.is_dir()]
    read = [(part, _read(part)) for part in parts]
    if len(read) > 1 and any(found for _, found in read):
        raise ValueError(
            f"{origin} has two transformers, at least one with gates, and this model is one: "
            f"load it by its folder, from_pretrained({str(parts[0])!r}) or _2, not subfolder="
        )
    return read[0] if read else (origin, {})


def mark(model: nn.Module) -> None:
    """Let the config, which diffusers saves with the model, say whether it has gates."""
    if not isinstance(model, ConfigMixin):
        return
    if gates_of(model):
        model.register_to_config(**{_MARK: True})
    elif _MARK in model.config:
        kept: dict[str, Any] = {k: v for k, v in model.config.items() if k != _MARK}
        model._internal_dict = FrozenDict(kept)


def _name(key: str) -> str:
    """A gate's name in a sparse model, from its key there or in a file; else nothing."""
    if found := _GATE.fullmatch(key):
        return ".".join(found.groups())
    if found := _FASTVIDEO.fullmatch(key):
        block, gate, kind = found.groups()
        return f"{block}.attn1.slot.gate_{'coarse' if gate == 'compress' else gate}.{kind}"
    return ""


def _read(folder: Path) -> dict[str, Tensor]:
    """The gates that a folder's files have, by name."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118  # it is no dict
                if name := _name(key):
                    found[name] = tensors.get_tensor(key)
    if not found and not [*folder.glob("diffusion_pytorch_model*.safetensors")]:
        for file in sorted(folder.glob(_PICKLES)):
            weights = torch.load(file, "cpu", weights_only=True, mmap=True)
            found |= {name: x for key, x in weights.items() if (name := _name(key))}
    return found


def _fill(
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
