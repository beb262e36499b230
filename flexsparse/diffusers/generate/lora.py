"""LoRA's files: whether they are of the pipeline's transformers, and into them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flexsparse.diffusers.generate.folder import Folder

NAME = "pytorch_lora_weights.safetensors"


def check_lora(given: Sequence[str], folder: Folder) -> None:
    """ValueError, in a line, for a file that is of another model than the transformer which it is
    for; diffusers would leave out what does not fit."""
    if given and not hasattr(folder.cls, "load_lora_weights"):
        raise ValueError(f"--lora: diffusers' {folder.cls.__name__} takes none")
    if len(given) > len(folder.models):
        raise ValueError(
            f"--lora names {len(given)} files, and there is {len(folder.models)} of transformers: "
            f"{', '.join(folder.models)}"
        )
    for path, (name, model) in zip(given, folder.models.items()):
        _check_one(file_of(path), name, model, folder.cls)


def load_loras(pipe: Any, given: Sequence[str], folder: Folder) -> None:
    """Add a LoRA to each of the first transformers; says so of one that has none."""
    for number, path in enumerate(given):
        file = file_of(path)
        second = dict(load_into_transformer_2=True) if number else {}
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, **second)
    for name in [*folder.models][len(given) :] if given else []:
        print(f"{name} has no LoRA: give --lora a second file for it")


def file_of(path: str) -> Path:
    file = Path(path) / NAME if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ValueError(f"--lora {path}: there is no {file}")
    return file


def folder_of(path: str) -> Path | None:
    """The folder that is a LoRA's own, where its gates would be; None of a file of another name,
    which may lie among those of other LoRAs."""
    given = Path(path)
    if given.is_dir():
        return given
    return given.parent if given.name == NAME else None


def _check_one(file: Path, name: str, model: Any, cls: Any) -> None:
    try:
        state = cls.lora_state_dict(str(file.parent), weight_name=file.name)
    except Exception as e:  # of other layouts each converter says what it likes
        raise ValueError(
            f"--lora {file} is none that {cls.__name__} reads ({' '.join(str(e).split())})"
        ) from None
    state = state[0] if isinstance(state, tuple) else state
    modules, alien, found = dict(model.named_modules()), [], 0
    for key, x in state.items():
        path, _, end = key.removeprefix("transformer.").partition(".lora_")
        if key.startswith("text_encoder") or not end.endswith(".weight"):
            continue
        weight, side = getattr(modules.get(path), "weight", None), 1 if end[0] == "A" else 0
        fits = weight is not None and x.shape[side] == weight.shape[side]
        found += fits
        alien += [] if fits else [(key, list(x.shape), weight)]
    if alien:
        key, shape, weight = alien[0]
        has = "there is no such layer" if weight is None else f"the layer is {list(weight.shape)}"
        raise ValueError(
            f"--lora {file} is of another model than this {type(model).__name__}, {name}: "
            f"{len(alien)} of its {found + len(alien)} weights do not fit, {key} {shape}: {has}"
        )
    if not found:
        raise ValueError(f"--lora {file} has no weights of a transformer: {', '.join(state)[:99]}")
