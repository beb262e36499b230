"""python -m models.wan.convert SRC DST [--pipeline DIR] [--copy] [--to wan]

Wan's own checkpoint, FastVideo's or ComfyUI's becomes a folder of diffusers' pipeline, with VSA's
gates beside the weights where `flexsparse.diffusers` reads them; and back.

SRC is what `models.wan.checkpoint.load` takes, or a folder of two models, as Wan 2.2's are. Text
encoder, tokenizer, VAE and scheduler are those of the pipeline `--pipeline`, linked, or with
`--copy` copied; without it DST is the transformer's folder alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.attention import VSA
from models.wan import formats
from models.wan.checkpoint import drafted, load, read_config, save, with_gates_of
from models.wan.config import WanConfig
from models.wan.experts import PAIRS, boundary_of, pair_in, times_of
from models.wan.shards import Weights

INDEX = "model_index.json"
OF_PICTURES = "WanImageToVideoPipeline"


def convert(source: Path, out: Path, pipeline: Path | None, copy: bool, format: str) -> str:
    """Write `out`; returns a line that says what it is.

    Raises:
        ValueError, FileNotFoundError: in a line, an `out` that is not empty, a `source` that is no
            Wan checkpoint, a `pipeline` that lacks something or is of another model.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an empty folder: give a new one")
    if pipeline is not None and format == "wan":
        raise ValueError("--pipeline is for a pipeline's folder, and --to wan makes none")
    names = pair_in(source)
    sources = [source] if names is None else [source / name for name in names]
    for part in sources:
        Weights.open(part)  # before long work
    if pipeline is None:
        return _models_alone(sources, names is not None, out, format)
    config = read_config(sources[0])
    index = _index_of(pipeline, config)
    with drafted(out) as draft:
        for part, name in zip(sources, PAIRS[0]):
            _write(part, draft / name, "diffusers")
            index[name] = ["diffusers", formats.CLASSES["diffusers"]]
        if names is None:
            index.pop("transformer_2", None)
            index.pop("boundary_ratio", None)
        else:
            index["boundary_ratio"] = boundary_of(source, names[0])
        for name in _others(index):
            if copy:
                shutil.copytree(pipeline / name, draft / name)
            else:
                (draft / name).symlink_to((pipeline / name).resolve(), target_is_directory=True)
        (draft / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return f"{out}: a {index['_class_name']}"


def _models_alone(sources: list[Path], two: bool, out: Path, format: str) -> str:
    with drafted(out) as draft:  # before long work: it cannot be everywhere
        places = [draft / name for name in PAIRS[format == "wan"]] if two else [draft]
        for part, place in zip(sources, places):
            _write(part, place, format)
    if format == "wan":
        return f"{out}: in Wan's own layout"
    return (
        f"{out}: {'transformers' if two else 'a transformer'} alone; --pipeline DIR adds the rest"
    )


def _write(source: Path, out: Path, format: Any) -> None:
    config = read_config(source)
    model = load(replace(config, attention=with_gates_of(VSA(), source)), source, device="cpu")
    save(model, out, format, times=times_of(source))


def _index_of(pipeline: Path, config: WanConfig) -> dict[str, Any]:
    """The `model_index.json` of a pipeline whose parts fit; ValueError where they do not."""
    try:
        index = json.loads((pipeline / INDEX).read_text())
        name = index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"--pipeline {pipeline} is no pipeline: it has no {INDEX}") from None
    kind = index.get("transformer")
    of_wan = kind == ["diffusers", formats.CLASSES["diffusers"]] and str(name).startswith("Wan")
    if name not in ("WanPipeline", OF_PICTURES) and not of_wan:
        raise ValueError(
            f"--pipeline {pipeline} is a {name} with {kind} as its transformer, and this "
            f"checkpoint becomes a {formats.CLASSES['diffusers']}: give the folder of a WanPipeline"
        )
    pictures = config.in_channels != config.out_channels
    takes = name == OF_PICTURES and not index.get("expand_timesteps")  # which has them in the video
    if pictures != takes:
        due = OF_PICTURES if pictures else "WanPipeline"
        raise ValueError(
            f"--pipeline {pipeline} is a {name}, and this checkpoint, which takes "
            f"{config.in_channels} channels and makes {config.out_channels}, wants a {due}"
        )
    if lacking := [part for part in _others(index) if not (pipeline / part).is_dir()]:
        raise ValueError(f"--pipeline {pipeline} lacks {', '.join(lacking)}")
    _check_widths(pipeline, config)
    return index


def _check_widths(pipeline: Path, config: WanConfig) -> None:
    for part, key, due in (
        ("vae", "z_dim", config.out_channels),
        ("text_encoder", "d_model", config.text_dim),
    ):
        file = pipeline / part / "config.json"
        found = json.loads(file.read_text()).get(key) if file.is_file() else None
        if found not in (None, due):
            raise ValueError(f"{file} has {key} {found}, and this checkpoint wants {due}")


def _others(index: dict[str, Any]) -> list[str]:
    """The parts of a pipeline but its transformers."""
    parts = {n: kind for n, kind in index.items() if isinstance(kind, list) and kind[-1]}
    return [name for name in parts if name not in PAIRS[0] and not name.startswith("_")]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m models.wan.convert",
        description="Wan's checkpoints as folders of diffusers' pipelines, gates included, and "
        "back.",
    )
    p.add_argument("source", type=Path, metavar="SRC", help="Wan's, FastVideo's or diffusers'")
    p.add_argument("out", type=Path, metavar="DST", help="a new folder")
    p.add_argument("--pipeline", type=Path, metavar="DIR", help="where the other parts are")
    p.add_argument("--copy", action="store_true", help="copy them, in place of links")
    p.add_argument("--to", choices=["diffusers", "wan"], default="diffusers", help="layout")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """0 when it is written, 2 for an error."""
    o = parser().parse_args(argv)
    try:
        print(convert(o.source, o.out, o.pipeline, o.copy, o.to))
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
