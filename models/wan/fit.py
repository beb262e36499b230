"""Whether a checkpoint is what a model wants, from the headers of its files alone."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from models.wan import formats
from models.wan.formats import Format
from models.wan.model import WanModel
from models.wan.shards import CheckpointError, Weights, shorten


def format_of(weights: Weights) -> Format:
    """The format of a checkpoint's keys; CheckpointError if it is not of a Wan transformer."""
    name = weights.json.get("_class_name")
    if name is not None and name not in formats.CLASSES.values():
        raise CheckpointError(
            f"{weights.path} is a {name}: give a {' or a '.join(formats.CLASSES.values())}"
        )
    format = formats.detect_format(weights.entries)
    if format is None:
        raise CheckpointError(
            f"{weights.path} is no Wan transformer: its {len(weights.entries)} tensors are "
            f"{shorten([*weights.entries])}"
        )
    return format


def sizes_of(weights: Weights, format: Format) -> dict[str, Any]:
    """Fields of a WanConfig, of which shapes and `config.json` must say the same; CheckpointError
    if they don't, or if `config.json` says what no Wan has, or no number where one is due."""
    if wrong := formats.unreadable(weights.json):
        raise CheckpointError(
            f"{weights.path}: config.json has {_listed(wrong)}: sizes are whole numbers from 1 up, "
            f"eps a number above 0"
        )
    if unlike := formats.unlike_wan(weights.json):
        raise CheckpointError(
            f"{weights.path}: config.json has {_listed(unlike)}: no model of Wan 2.1's is so, and "
            f"none here"
        )
    shapes = {key: entry.shape for key, entry in weights.entries.items()}
    found, said = formats.sizes_of_shapes(shapes, format), formats.sizes_of_json(weights.json)
    if wrong := [
        f"{k} {found[k]}, not {said[k]}" for k in said if found.get(k, said[k]) != said[k]
    ]:
        raise CheckpointError(
            f"{weights.path}: the weights have {', '.join(wrong)} as config.json says: files of "
            f"two checkpoints, or some are missing"
        )
    return found | said


def check_fit(
    model: WanModel,
    names: Mapping[str, str],
    weights: Weights,
    format: Format,
    new_gates: bool,
) -> None:
    """Raise CheckpointError, with all that is wrong in one line, if the checkpoint doesn't fit.

    Args:
        model: what it shall fit.
        names: the key of each of its parameters, with the parameter's own name, in their order.
        weights, format: the checkpoint.
        new_gates: gates may be missing, if they are so in all layers.
    """
    sizes = sizes_of(weights, format)
    own = {field: getattr(model.config, field) for field in sizes}
    if other := [f"{k} {sizes[k]}, not {own[k]}" for k in sizes if sizes[k] != own[k]]:
        raise CheckpointError(
            f"{weights.path} is of another Wan than the model, {', '.join(other)}: build the model "
            f"from read_config(path)"
        )
    kinds = set(map(_kind, weights.entries))
    missing = [key for key in names if key not in weights.entries]
    # of a gate that is new both weight and bias are missing, in every layer
    there = {kind.rpartition(".")[0] for kind in kinds}
    gates = [
        key
        for key in missing
        if formats.is_gate(key) and _kind(key).rpartition(".")[0] not in there
    ]
    spare = [key for key in weights.entries if key not in names and not formats.is_ignored(key)]
    faults = []
    if new_gates:
        missing = [key for key in missing if key not in gates]
    elif gates and missing == gates:
        faults.append(
            f"gates missing: {len(gates)} ({_grouped(gates)}), new_gates=True starts new ones"
        )
        missing = []
    if missing:
        faults.append(f"keys missing: {len(missing)} ({_grouped(missing)})")
    if spare and all(map(formats.is_gate, spare)):
        faults.append(
            f"gates left over: {len(spare)} ({_grouped(spare)}): they are VSA's, give the model "
            f"attention=VSA()"
        )
    elif spare:
        faults.append(f"keys left over: {len(spare)} ({_grouped(spare)})")
    if wrong := [
        f"{key} {list(weights.entries[key].shape)}, not {list(parameter.shape)}"
        for key, parameter in zip(names, model.parameters(), strict=True)
        if key in weights.entries and weights.entries[key].shape != parameter.shape
    ]:
        faults.append(f"shapes that differ: {len(wrong)} ({shorten(wrong)})")
    if faults:
        raise CheckpointError(f"{weights.path} does not fit the model: {'; '.join(faults)}")


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {json.dumps(v)}" for k, v in settings.items())


def _kind(key: str) -> str:
    """The key with a star for the number of its layer."""
    return re.sub(r"^blocks\.\d+\.", "blocks.*.", key)


def _grouped(keys: Iterable[str]) -> str:
    """The keys, those that are the same but for their layer's number counted."""
    kinds: dict[str, list[str]] = {}
    for key in keys:
        kinds.setdefault(_kind(key), []).append(key)
    return shorten([k[0] if len(k) == 1 else f"{len(k)} of {kind}" for kind, k in kinds.items()])
