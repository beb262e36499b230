"""The directory of a run, and whether the checkpoints in it are of the run that is about to start.

config.json    the resolved config of the last start, and the module that its model is from
starts.jsonl   of each start: when, command, processes, device, seeds, versions, git state
train.log      plain lines, from every start
checkpoint/    step-N, one folder each
tb/            TensorBoard
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CONFIG = "config.json"

# Fields that make the trained weights what they are; a run may go on with any other changed ...
BINDING = (
    "model",
    "lora",
    "dataloader",
    "optimizer",
    "lr_scheduler",
    "training",
    "flow",
    "loss",
    "sparsity",
    "ema",
)
# ... and with these, whatever section they are in.
FREE = (
    "training.steps",
    "training.local_batch_size",
    "training.param_dtype",
    "training.max_skipped",
    "dataloader.path",
    "dataloader.cache_dir",
    "dataloader.num_workers",
    "dataloader.timeout_seconds",
    "dataloader.max_damaged",
)


def describe(value: Any) -> Any:
    """A config as JSON values; every dataclass with its class, which may be all that differs."""
    if isinstance(value, type):
        return {"type": value.__qualname__}
    if dataclasses.is_dataclass(value):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": type(value).__qualname__, **fields}
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def rebuild(described: Any, classes: Mapping[str, Any]) -> Any:
    """From what `describe` made of a config, with its classes by name; lists become tuples.

    Raises ValueError for a class that is not among them.
    """
    if isinstance(described, list):
        return tuple(rebuild(item, classes) for item in described)
    if not isinstance(described, dict):
        return described
    values = {key: rebuild(item, classes) for key, item in described.items()}
    name = values.get("class", values.get("type"))
    if name is None:
        return values
    if name not in classes:
        raise ValueError(f"{name} is no class of {', '.join(sorted(classes))}")
    kind = classes[name]
    if "type" in values:
        return kind
    return kind(**{f.name: values[f.name] for f in dataclasses.fields(kind) if f.init})


def write_config(folder: str | Path, config: Any) -> None:
    """Replace config.json in one step: whoever reads it finds the old one or the new one, whole."""
    path = Path(folder, CONFIG)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    written = describe(config) | {"module": type(config.model).__module__}
    draft.write_text(json.dumps(written, indent=2) + "\n")
    os.replace(draft, path)


def check_config(folder: str | Path, config: Any, sections: tuple[str, ...] = BINDING) -> None:
    """ValueError naming the binding fields in which `config` differs from the run in `folder`."""
    path = Path(folder, CONFIG)
    if not path.exists():
        return
    there, here = dict(leaves(json.loads(path.read_text()))), dict(leaves(describe(config)))
    for key in here.keys() - there.keys():  # a field that has come since: its default then held
        there |= _default(config, key)
    fields = [key for key in here | there if key.startswith(sections) and key not in FREE]
    differing = [
        f"{key} ({there.get(key, 'absent')} there, {here.get(key, 'absent')} here)"
        for key in fields
        if there.get(key) != here.get(key)
    ]
    if differing:
        raise ValueError(
            f"the checkpoints in {folder} were made with another config: {', '.join(differing)}; "
            f"give a new --dump-folder, or the values that they were made with"
        )


def _default(config: Any, key: str) -> dict[str, Any]:
    """The leaves of the default of a dataclass' field, by their names; none where it has none."""
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if not dataclasses.is_dataclass(config):
            return {}
        field = {field.name: field for field in dataclasses.fields(config)}.get(part)
        last = depth == len(parts) - 1
        if field is not None and last and field.default is not dataclasses.MISSING:
            return dict(leaves(describe(field.default), key))
        config = getattr(config, part, None)
    return {}


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, leaf) of nested dicts and lists."""
    if isinstance(value, list):
        value = {str(i): item for i, item in enumerate(value)}
    if not isinstance(value, dict):
        yield prefix, value
        return
    for key, item in value.items():
        yield from leaves(item, f"{prefix}.{key}" if prefix else key)
