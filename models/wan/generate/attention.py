"""Which attention the videos are sampled with: its options, and the slot that they ask for."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.attention import BSA, VSA, Dense
from models.wan.adapter import gates_file, merge_adapter
from models.wan.checkpoint import load, with_gates_of
from models.wan.config import WanConfig
from models.wan.generate.sizes import Size, latent_size, size_of, text_of
from models.wan.model import WanModel

METHODS = "dense", "vsa", "bsa"
_SPARSE = "top_k", "sparsity", "tile", "query_tiles", "dense_steps", "dense_layers"
_OF_BSA = "keep", "window"


def add_options(p: argparse.ArgumentParser) -> None:
    """All but `--attention`, which not every command may leave out."""

    def option(name: str, **given: Any) -> None:  # what is not given is left to the slot
        p.add_argument(name, default=argparse.SUPPRESS, **given)

    option("--top-k", type=int, help="tiles that a query tile attends to")
    option("--sparsity", type=float, help="in place of --top-k; default 0.875")
    option("--keep", type=float, help="bsa: share of the queries that stay; default 0.5")
    option(
        "--window",
        type=_window,
        help="bsa: TxHxW in which they are pruned; default fit, 2 along the tile's even sides and "
        "the whole of odd ones",
    )
    option("--tile", type=_tile, help="TxHxW, or fit; default 4x4x4")
    option("--query-tiles", type=int, help="adjacent tiles that choose together; default 1")
    option("--dense-steps", type=int, help="first steps with dense attention; default 0")
    option("--dense-layers", type=int, help="first layers with dense attention; default 0")
    p.add_argument("--drop-gates", action="store_true", help="leave out the checkpoint's VSA gates")
    p.add_argument("--adapter", type=Path, help="LoRA's folder, of train.export --adapter, or file")


def finish(o: argparse.Namespace) -> None:
    """Give the namespace the slot that was asked for, `slot`, and what has to do with no slot.

    Raises:
        ValueError: an option that the method does not have.
    """
    given = {name: value for name, value in vars(o).items() if name in (*_SPARSE, *_OF_BSA)}
    for name in given:
        if name in _OF_BSA and o.attention != "bsa":
            raise ValueError(f"{_flag(name)} is for --attention bsa, this is {o.attention}")
        if o.attention == "dense":
            raise ValueError(f"{_flag(name)} is for --attention vsa or bsa, this is dense")
    if "top_k" in given and "sparsity" in given:
        raise ValueError("give --top-k or --sparsity, not both")
    o.dense_steps, o.dense_layers = (given.pop(n, 0) for n in ("dense_steps", "dense_layers"))
    if given.get("top_k", 1) < 1:
        raise ValueError(f"--top-k is {o.top_k}: give at least 1")
    if o.attention == "bsa" and "top_k" in given:
        given["kv"] = given.pop("top_k")
    o.slot = Dense()
    if o.attention != "dense":
        o.slot = VSA(adapt=True, **given) if o.attention == "vsa" else BSA(**given)


def check_top_k(o: argparse.Namespace, config: WanConfig) -> None:
    """ValueError, in a line, for more tiles than the largest video has; a smaller one, or a draft,
    takes all of its tiles."""
    top_k = o.slot.top_k if isinstance(o.slot, VSA) else getattr(o.slot, "kv", None)
    if not isinstance(top_k, int):
        return
    size = largest(o, config)
    tiling = o.slot.tiling(config.grid_of(latent_size(size)))
    if not 1 <= top_k <= tiling.num_tiles:
        raise ValueError(
            f"--top-k {top_k}: {text_of(size)} has {tiling.num_tiles} tiles of "
            f"{text_of(tiling.tile)} tokens: give 1 to {tiling.num_tiles}"
        )


def config_for(o: argparse.Namespace, config: WanConfig) -> WanConfig:
    """With the largest video that is asked for, and the slot that :func:`slot_for` says.

    Raises:
        FileNotFoundError, CheckpointError: as :func:`slot_for`.
    """
    return replace(config, video=latent_size(largest(o, config)), attention=slot_for(o))


def load_model(o: argparse.Namespace, config: WanConfig, **options: Any) -> WanModel:
    """The model that was asked for, with its adapter; `options` are those of checkpoint.load.

    Raises:
        FileNotFoundError, CheckpointError: as that, and as :func:`merge_adapter`.
    """
    new = o.adapter is not None and gates_file(o.adapter) is not None
    model = load(config_for(o, config), o.checkpoint, new_gates=new, **options)
    if o.adapter is not None:
        merge_adapter(model, o.adapter)
    return model.eval()


def largest(o: argparse.Namespace, config: WanConfig) -> Size:
    """The size, of those that are asked for, with the most tiles."""

    def tiles(size: Size) -> int:
        tiling = o.slot.tiling(config.grid_of(latent_size(size)))
        return 1 if tiling is None else tiling.num_tiles

    return max(o.size, key=tiles)


def check_gates(o: argparse.Namespace) -> None:
    """ValueError, in a line, for gates of the checkpoint that the attention has no place for, or
    none to drop."""
    place = gates_at(o)
    gates = with_gates_of(VSA(), place).gates
    if o.drop_gates and not gates:
        raise ValueError(f"--drop-gates: {place} has none")
    if gates and not o.drop_gates and not isinstance(o.slot, VSA):
        raise ValueError(
            f"{place} has VSA's gates, and --attention {o.attention} has no place for them: "
            f"give --attention vsa, or --drop-gates to leave them out"
        )


def gates_at(o: argparse.Namespace) -> Path:
    """Where gates are read from: the adapter, if it has some, else the checkpoint."""
    return (o.adapter and gates_file(o.adapter)) or o.checkpoint


def slot_for(o: argparse.Namespace) -> Any:
    """The slot that was asked for, with the gates that the checkpoint has unless they are dropped.

    Raises:
        FileNotFoundError, CheckpointError: as :func:`models.wan.checkpoint.load`.
    """
    if not isinstance(o.slot, VSA):
        return o.slot
    return replace(o.slot, gates=False) if o.drop_gates else with_gates_of(o.slot, gates_at(o))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _window(text: str) -> tuple[int, int, int] | str:
    return text if text == "fit" else size_of(text)


def _tile(text: str) -> tuple[int, int, int] | None:
    return None if text == "fit" else size_of(text)
