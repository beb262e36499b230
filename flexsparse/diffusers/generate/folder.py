"""A pipeline's folder, known from its small files before any weights are read."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
from accelerate import init_empty_weights
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.import_utils import DummyObject, requires_backends

from flexsparse.diffusers.families import family_of
from flexsparse.diffusers.generate.encoders import check_encoder
from flexsparse.diffusers.generate.weights import shapes_in

INDEX = "model_index.json"
TEXT = "text_encoder", "tokenizer"
ENCODERS = "text_encoder", "image_encoder"
MODELS = "transformer", "vae", *ENCODERS


@dataclass(frozen=True)
class Folder:
    """A folder that has what its pipeline wants.

    Attributes:
        cls: the pipeline's class.
        parts: the names of its components that are there.
        models: its transformers, of families that are known, without memory, by name.
        vae: the VAE, without memory.
    """

    path: Path
    cls: Any
    parts: list[str]
    models: dict[str, Any]
    vae: Any

    @property
    def index(self) -> dict[str, Any]:
        return _index_of(self.path)

    @property
    def first(self) -> Any:
        return next(iter(self.models.values()))


def open_folder(path: Path, as_class: str | None = None, texts: bool = True) -> Folder:
    """Look into a pipeline's folder.

    Args:
        as_class: a class of diffusers in place of the one that the folder names.
        texts: whether its text encoders are wanted.

    Raises:
        ValueError: in a line, what the folder lacks, or that its transformer is of no family that
            can be sparsified.
    """
    index = _index_of(path)
    cls = _pipeline_class(path, as_class or index.get("_class_name"))
    kinds = {
        name: kind[1]
        for name, kind in index.items()
        if not name.startswith("_") and isinstance(kind, list) and len(kind) == 2 and kind[1]
        if texts or not name.startswith(TEXT)
    }
    lacks = [f"{name} ({why})" for name in kinds if (why := _lacking(path / name, name))]
    due = inspect.signature(cls.__init__).parameters.values()
    wants = [p.name for p in due if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    lacks += [f"{name} (not in {INDEX})" for name in wants[1:] if name not in index]
    models = {name: kind for name, kind in kinds.items() if name.startswith("transformer")}
    if not models:
        lacks.append("a transformer")
    if lacks:
        raise ValueError(f"{path} is no whole {cls.__name__}: it lacks {', '.join(lacks)}")
    empty = {name: _empty(path / name, kind) for name, kind in models.items()}
    for model in empty.values():
        family_of(model)
    vae = _empty(path / "vae", kinds["vae"]) if "vae" in kinds else None
    for name, model in (empty | ({} if vae is None else {"vae": vae})).items():
        _check_weights(path / name, model)
    for name, kind in kinds.items():
        if name.startswith(ENCODERS):
            check_encoder(path / name, kind)
    return Folder(path, cls, [*kinds], empty, vae)


def parameters_of(cls: Any) -> dict[str, inspect.Parameter]:
    """What the call of a pipeline's class takes."""
    found = dict(inspect.signature(cls.__call__).parameters)
    return {n: p for n, p in found.items() if n != "self" and p.kind is p.POSITIONAL_OR_KEYWORD}


def guided(folder: Folder) -> bool:
    """Whether a component, and no argument of the call, has the scale of guidance."""
    return "guider" in folder.parts and "guidance_scale" not in parameters_of(folder.cls)


def _index_of(path: Path) -> dict[str, Any]:
    if not (path / INDEX).is_file():
        there = "is no folder" if not path.is_dir() else f"has no {INDEX}"
        raise ValueError(
            f"{path} is no diffusers pipeline: it {there}. Give the folder that save_pretrained or "
            f"a download made; python -m models.wan.convert makes one of Wan's own checkpoints"
        )
    try:
        index = json.loads((path / INDEX).read_text())
    except (OSError, ValueError) as e:
        raise ValueError(f"{path / INDEX} cannot be read: {e}") from None
    if not isinstance(index, dict):
        raise ValueError(f"{path / INDEX} holds no object")
    return index


def _pipeline_class(path: Path, name: Any) -> Any:
    cls = getattr(diffusers, name, None) if isinstance(name, str) else None
    if isinstance(cls, DummyObject):
        try:
            requires_backends(cls, getattr(cls, "_backends", []))
        except ImportError as e:
            raise ValueError(" ".join(str(e).split())) from None
    if not (isinstance(cls, type) and issubclass(cls, DiffusionPipeline)):
        raise ValueError(
            f"{path} is of {name}, which diffusers {diffusers.__version__} has no pipeline for: "
            f"give another --as, or install the diffusers that has it"
        )
    return cls


def _lacking(folder: Path, name: str) -> str:
    if not folder.is_dir() or not any(folder.iterdir()):
        return "no folder of that name, or an empty one"
    if not name.startswith(MODELS):
        return ""
    if not (folder / "config.json").is_file():
        return "no config.json"
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    return "" if weights else "no weights"


def _empty(folder: Path, kind: str) -> Any:
    """A model of diffusers without memory."""
    cls: Any = getattr(diffusers, kind, None)
    if cls is None:
        raise ValueError(f"{folder} is a {kind}, which diffusers {diffusers.__version__} has not")
    try:
        with init_empty_weights():
            return cls.from_config(cls.load_config(folder))
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise ValueError(f"{folder}: no {kind} can be made ({_line(e)})") from None


def _check_weights(folder: Path, model: Any) -> None:
    """ValueError for weights that are missing, or of another size: diffusers would make some up."""
    there = shapes_in(folder)
    if not there or "quantization_config" in model.config:
        return  # pickles, or stored otherwise: diffusers says what they lack
    wanted = {name: tuple(x.shape) for name, x in model.named_parameters()}
    if missing := [name for name in wanted if name not in there]:
        raise ValueError(f"{folder} lacks {len(missing)} weights, {missing[0]} first")
    if wrong := [name for name, shape in wanted.items() if there[name] != shape]:
        name = wrong[0]
        raise ValueError(
            f"{folder}: {name} is {list(there[name])}, but {list(wanted[name])} by its config.json"
        )


def _line(e: Exception) -> str:
    return " ".join(str(e).split()) or type(e).__name__
