"""Where the gates of a model are that came from a folder."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor, nn

from flexsparse.diffusers.files import Stored, stored_in
from flexsparse.diffusers.gates import FILE, MARK, fill, gates_in, the_same


def fill_from_origin(model: nn.Module, gates: Mapping[str, nn.Parameter]) -> None:
    """Fill new gates from the folder that the model was loaded from, if that has any; warn if they
    are known to be somewhere and were not found, or lie beside other weights than the model has.

    Raises:
        ValueError: a folder that has others than these, or several of which any may be meant.
    """
    if not isinstance(model, ConfigMixin) or not gates:
        return
    origin = model.config.get("_name_or_path") or ""
    found, others = _of_origin(model, gates, Path(origin)) if origin else ({}, False)
    if found and others:
        warnings.warn(
            f"{origin}, where this {type(model).__name__} is from, has other weights than it, and "
            f"gates, which are not read: they are zero until load_gates(model, FOLDER) reads some",
            stacklevel=3,
        )
    elif found:
        fill(gates, found, origin)
    elif model.config.get(MARK):
        warnings.warn(
            f"this {type(model).__name__} was saved with trained gates, which diffusers dropped as "
            f"it loaded {origin}: they are zero until load_gates(model, FOLDER) reads them",
            stacklevel=3,
        )


def _of_origin(
    model: nn.Module, gates: Mapping[str, nn.Parameter], origin: Path
) -> tuple[dict[str, Tensor], bool]:
    """The gates in the folder that a model is from, and whether all weights there are others than
    the model's. It remembers no further than ``from_pretrained(DIR, ...)``, neither ``subfolder``
    nor ``variant``: of the sets of weights its own are those that have the weights which it has."""
    layer = next(iter(gates)).partition("slot.")[0]
    there = [stored for folder in _folders_of(model, origin) for stored in stored_in(folder)]
    own = [stored for stored in there if _is_of(stored, model, layer)]
    sets = own or there
    given: dict[Path, dict[str, Tensor]] = {}
    for folder in [stored.path.parent for stored in sets] or [origin]:
        if file := next((f / FILE for f in (folder, origin) if (f / FILE).is_file()), None):
            if gates.keys().isdisjoint(of_file := gates_in(Stored(file))):
                continue  # another's, of the same name
            given[file] = of_file
            if file.parent != folder and len({stored.path.parent for stored in there}) > 1:
                raise ValueError(
                    f"{file} may be of any model below it: move it to that one's folder"
                )
    in_files = bool(given)
    for stored in sets:
        try:
            found = gates_in(stored)
        except ValueError:  # diffusers could not have read it either
            continue
        if found or not in_files:
            given[stored.path] = found
    others = bool(there) and not own
    return next((x for x in given.values() if x), {}) if others else the_same(given), others


def _folders_of(model: nn.Module, origin: Path) -> list[Path]:
    """A folder, and those in it that hold models of this class, as a pipeline's has them, or the
    checkpoints of a training script."""
    names = {kind.__name__ for kind in type(model).__mro__}
    found = [origin]
    for file in sorted([*origin.glob("*/config.json"), *origin.glob("*/*/config.json")]):
        try:
            said = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(said, dict) and said.get("_class_name") in names:
            found.append(file.parent)
    return found


def _is_of(stored: Stored, model: nn.Module, layer: str) -> bool:
    """Whether a model has these weights, by those of one layer."""
    named = {name.replace(".base_layer.", "."): p for name, p in model.named_parameters()}
    own = {name: p for name, p in named.items() if p.is_floating_point()}  # not quantised
    compared = 0
    try:
        for key, x in stored.tensors(lambda key: key in own and key.startswith(layer)):
            weight = own[key].detach()
            if weight.shape != x.shape:
                return False
            if not torch.equal(x.to(weight.dtype).float(), weight.float().cpu()):
                return False
            compared += 1
    except ValueError:
        return False
    return compared > 0
