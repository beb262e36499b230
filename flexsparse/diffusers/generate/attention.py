"""Which attention clips are made with: its options, and what `sparsify` is given of them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from flexsparse.diffusers.convert import sparsify
from flexsparse.diffusers.families import family_of
from flexsparse.diffusers.gates import FILE, is_gate, load_gates
from flexsparse.diffusers.generate.folder import Folder
from flexsparse.diffusers.generate.lora import folder_of
from flexsparse.diffusers.generate.weights import shapes_in
from flexsparse.slots import BSA, VSA

METHODS = "dense", "vsa", "bsa"
Method = VSA | BSA
_SLOT = "top_k", "sparsity", "tile", "query_tiles"
_OF_BSA = "keep", "window"
_WHEN = "dense_above", "dense_layers"


def add_options(p: argparse._ArgumentGroup) -> None:
    def option(name: str, **given: Any) -> None:  # what is not given is left to the slot
        p.add_argument(name, default=argparse.SUPPRESS, **given)

    p.add_argument("--attention", choices=METHODS, default="dense", help="default dense")
    option("--sparsity", type=float, help="share of the tiles left out; default 0.875")
    option("--top-k", type=int, help="tiles that a query tile attends to, in place of --sparsity")
    option("--tile", type=tile_of, help="TxHxW tokens, or fit; default 4x4x4")
    option("--query-tiles", type=int, help="adjacent tiles that choose together; default 1")
    option("--keep", type=float, help="bsa: share of the queries that stay; default 0.5")
    option("--window", type=window_of, help="bsa: TxHxW in which they are pruned; default fit")
    option(
        "--dense-above",
        type=float,
        metavar="LEVEL",
        help="dense attention at noise levels from this on, 1 noise to 0 data",
    )
    option(
        "--dense-layers", type=int, nargs="+", metavar="I", help="dense attention in these layers"
    )
    p.add_argument("--drop-gates", action="store_true", help="leave out VSA's gates in the folder")


def finish(o: argparse.Namespace) -> None:
    """Give the namespace `method`, None for dense, and `when`, the rest of sparsify's arguments.

    Raises:
        ValueError: an option that the method does not have, or that is out of range.
    """
    names = (*_SLOT, *_OF_BSA, *_WHEN)
    given = {name: value for name, value in vars(o).items() if name in names}
    for name in given:
        if o.attention == "dense":
            raise ValueError(f"{flag(name)} is for --attention vsa or bsa, this is dense")
        if name in _OF_BSA and o.attention != "bsa":
            raise ValueError(f"{flag(name)} is for --attention bsa, this is {o.attention}")
    if "top_k" in given and "sparsity" in given:
        raise ValueError("give --top-k or --sparsity, not both")
    if given.get("top_k", 1) < 1:
        raise ValueError(f"--top-k is {o.top_k}: give at least 1")
    if not 0 < given.get("dense_above", 0.5) < 1:
        raise ValueError(
            f"--dense-above {o.dense_above:g} must be between 0 and 1: 0.85 is dense at noise "
            f"levels from 0.85 on"
        )
    o.when = {name: given.pop(name) for name in _WHEN if name in given}
    if "dense_layers" in o.when:
        o.when["dense_layers"] = tuple(o.when["dense_layers"])
    if o.attention == "bsa" and "top_k" in given:
        given["kv"] = given.pop("top_k")
    of = dict(vsa=VSA, bsa=BSA)
    o.method = of[o.attention](**given) if o.attention in of else None


def check_gates(o: argparse.Namespace, folder: Folder) -> None:
    """ValueError, in a line, for gates that the attention has no place for, or none to drop.

    Gives the method the gates that there are: a folder without any is a dense model's, and its
    clips take no time for gates that are shut.
    """
    places = [path for path in gates_at(o, folder) if path]
    if o.drop_gates and not places:
        raise ValueError(f"--drop-gates: {folder.path} has none")
    if places and not o.drop_gates and not isinstance(o.method, VSA):
        raise ValueError(
            f"{places[0]} has VSA's gates, and --attention {o.attention} has no place for them: "
            f"give --attention vsa, or --drop-gates to leave them out"
        )
    if isinstance(o.method, VSA):
        o.method = replace(o.method, gates=bool(places) and not o.drop_gates)


def gates_at(o: argparse.Namespace, folder: Folder) -> list[Path | None]:
    """Where the gates of each transformer are read from: beside its LoRA, if that has some, else
    its own folder."""
    found: list[Path | None] = []
    for number, name in enumerate(folder.models):
        own = folder.path / name
        has = (own / FILE).is_file() or any(map(is_gate, shapes_in(own)))
        beside = folder_of(o.lora[number]) if number < len(o.lora) else None
        also = beside is not None and (beside / FILE).is_file()
        found.append(beside if also else own if has else None)
    return found


def make_sparse(model: nn.Module, o: argparse.Namespace, method: Method) -> None:
    """As :func:`flexsparse.diffusers.sparsify`, with what the options say of levels and layers."""
    when: dict[str, Any] = o.when
    layers = len(list(family_of(model).layers(model)))
    if wrong := [i for i in when.get("dense_layers", ()) if not 0 <= i < layers]:
        raise ValueError(f"--dense-layers {wrong[0]}: the model has {layers}, numbered from 0")
    sparsify(model, method, **when)


def read_gates(model: nn.Module, method: Method, place: Path | None, own: Path) -> None:
    """Fill a sparse model's gates where `sparsify` did not find them: beside a LoRA."""
    if isinstance(method, VSA) and method.gates and place not in (None, own):
        load_gates(model, str(place))


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def size_of(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} must be 3 numbers with x between them")
    t, h, w = map(int, parts)
    return t, h, w


def text_of(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))


def window_of(text: str) -> tuple[int, int, int] | str:
    return text if text == "fit" else size_of(text)


def tile_of(text: str) -> tuple[int, int, int] | None:
    return None if text == "fit" else size_of(text)
