"""Runs by name: `--module models.video_dit --config debug_vsa` is a function that returns a config.

Configs for a module are functions in `train/configs/<last part of its name>.py`, so that models
need not import the trainer; a module of your own that has the function itself works too. Options on
the command line then change single values: `--training.steps 10`, `--dataloader.path DIR`.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import tyro

from train.trainer import Trainer

RunConfig = Callable[[], Trainer.Config]


def load_config(argv: Sequence[str]) -> Trainer.Config:
    """The config that the command line asks for; ValueError where a name is not known."""
    parser = argparse.ArgumentParser(prog="python -m train", add_help=False, allow_abbrev=False)
    parser.add_argument("--module", default="models.video_dit")
    parser.add_argument("--config")
    names, options = parser.parse_known_args(argv)
    runs = find_runs(names.module)
    if names.config not in runs:
        wrong = f"--config {names.config} is not known" if names.config else "--config is missing"
        raise ValueError(f"{wrong}: --module {names.module} has {', '.join(sorted(runs))}")
    return tyro.cli(
        Trainer.Config,
        prog=f"python -m train --module {names.module} --config {names.config}",
        args=options,
        default=runs[names.config](),
        config=(tyro.conf.AvoidSubcommands,),
        registry=OPTIONS,
    )


def find_runs(module: str) -> dict[str, RunConfig]:
    """The runs of a module, by name: its functions annotated to return a Trainer.Config."""
    ours = f"train.configs.{module.rpartition('.')[2]}"
    found = [name for name in (module, ours) if _exists(name)]
    if not found:
        raise ValueError(f"--module {module}: there is no such module, and no {ours}")
    runs = {}
    for name in found:
        runs |= {n: f for n, f in vars(importlib.import_module(name)).items() if _is_run(f)}
    if not runs:
        raise ValueError(
            f"--module {module}: no function in {' or '.join(found)} says `-> Trainer.Config`"
        )
    return runs


OPTIONS = tyro.constructors.ConstructorRegistry()


@OPTIONS.struct_rule
def _protocol_options(info: Any) -> tyro.constructors.StructConstructorSpec | None:
    """Options for a field annotated with a Protocol: those of the dataclass that is its value."""
    value = info.default
    if not (getattr(info.type, "_is_protocol", False) and dataclasses.is_dataclass(value)):
        return None
    types = get_type_hints(type(value))
    fields = [(f.name, types[f.name], getattr(value, f.name)) for f in dataclasses.fields(value)]
    return tyro.constructors.StructConstructorSpec(
        instantiate=type(value),
        fields=tuple(
            tyro.constructors.StructFieldSpec(name=name, type=type_, default=default)
            for name, type_, default in fields
        ),
    )


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


def _is_run(value: object) -> bool:
    if not inspect.isfunction(value) or value.__name__.startswith("_"):
        return False
    signature = inspect.signature(value, eval_str=True)
    required = [p for p in signature.parameters.values() if p.default is p.empty]
    return signature.return_annotation is Trainer.Config and not required
