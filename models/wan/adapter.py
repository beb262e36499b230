"""LoRA's matrices as files of their own, with VSA's gates beside them, by diffusers' names.

A folder has `pytorch_lora_weights.safetensors`, which `pipe.load_lora_weights(FOLDER)` takes, in
PEFT's names, and where there are gates `gates.safetensors`, for `load_gates(model, FOLDER)`. The
scale, alpha / rank, is in `lora_B`: without an alpha every loader takes 1.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.wan.checkpoint import drafted
from models.wan.formats import Format, to_key
from models.wan.model import WanModel
from models.wan.shards import CheckpointError, Weights, shorten

LORA, GATES = "pytorch_lora_weights.safetensors", "gates.safetensors"
PREFIXES = "transformer.", "diffusion_model.", ""
_A, _B = ".lora_A.weight", ".lora_B.weight"


def save_adapter(
    adapters: Mapping[str, tuple[Tensor, Tensor]], gates: Mapping[str, Tensor], folder: Path
) -> None:
    """Write adapters and gates by the names that they have in a WanModel.

    Args:
        adapters: of a linear layer, A [rank, in] and B [out, rank], the scale within.
        gates: parameters of slots; may be none.
        folder: new or empty; it appears when it is complete.
    """
    tensors = {}
    for name, pair in adapters.items():
        stem = to_key(f"{name}.weight", "diffusers").removesuffix(".weight")
        tensors |= {f"transformer.{stem}{end}": x for end, x in zip((_A, _B), pair)}
    with drafted(folder) as draft:
        save_file({k: x.contiguous() for k, x in tensors.items()}, draft / LORA, {"format": "pt"})
        if gates:
            named = {to_key(name, "diffusers"): x.contiguous() for name, x in gates.items()}
            save_file(named, draft / GATES, {"format": "pt"})


def lora_file(path: Path) -> Path:
    """The file of an adapter: `path` itself, or the one in that folder."""
    return path / LORA if path.is_dir() else path


def gates_file(path: Path) -> Path | None:
    """The file with the gates of an adapter, in its folder, if that has some; a file of another
    name has none."""
    folder = path.parent if path.name == LORA else path
    file = folder / GATES
    return file if file.is_file() else None


@torch.no_grad()
def merge_adapter(model: WanModel, path: Path) -> None:
    """Add an adapter to a model's weights, and fill its gates if the folder has some.

    Args:
        model: with its weights in memory; with the gates that the folder has, or with none.
        path: a folder as :func:`save_adapter` writes it, or a file of PEFT's names, with those of
            diffusers or of Wan's own format, and with an alpha or without.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: keys that are of no linear layer of the model, or shapes that are not its.
            The model is as it was.
    """
    weights = Weights.open(lora_file(path))
    linears = {n.removesuffix(".weight"): p for n, p in model.named_parameters() if p.ndim == 2}
    stems = {
        to_key(f"{name}.weight", format).removesuffix(".weight"): name
        for format in get_args(Format)
        for name in linears
    }
    found: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in weights.stream(weights.entries):
        bare = next(key.removeprefix(p) for p in PREFIXES if key.startswith(p))
        end = next((end for end in (_A, _B, ".alpha") if bare.endswith(end)), "")
        name = stems.get(bare.removesuffix(end)) if end else None
        if name is None:
            unknown.append(key)
        else:
            found.setdefault(name, {})[end] = tensor.float()
    if unknown or not found:
        raise CheckpointError(
            f"{weights.path} is no adapter of this model: {shorten(unknown) or 'no keys'}; due are "
            f"transformer.blocks.0.attn1.to_q{_A} and the like"
        )
    for name, layer in found.items():
        shapes = [list(x.shape) for x in (layer.get(_B), layer.get(_A)) if x is not None]
        out, width = linears[name].shape
        if len(shapes) < 2 or shapes != [[out, len(layer[_A])], [len(layer[_A]), width]]:
            raise CheckpointError(
                f"{weights.path}: {name} is {[out, width]}, and its adapter is {shapes}: due are "
                f"[{out}, rank] and [rank, {width}]"
            )
    if gates := gates_file(path):
        _fill_gates(model, gates)
    for name, layer in found.items():
        weight, rank = linears[name], len(layer[_A])
        scale = layer[".alpha"].item() / rank if ".alpha" in layer else 1.0
        a, b = layer[_A].to(weight.device), layer[_B].to(weight.device)
        weight.copy_(weight.float() + scale * (b @ a))


def _fill_gates(model: WanModel, file: Path) -> None:
    weights = Weights.open(file)
    gates = {to_key(n, "diffusers"): p for n, p in model.named_parameters() if ".slot." in n}
    if not gates:
        return
    shapes = {key: tuple(p.shape) for key, p in gates.items()}
    if shapes != {key: entry.shape for key, entry in weights.entries.items()}:
        raise CheckpointError(f"{file} has other gates than the model: {shorten([*gates])} are due")
    for key, tensor in weights.stream(gates):
        gates[key].copy_(tensor)
