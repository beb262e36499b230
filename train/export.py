"""python -m train.export --run DIR --out DIR [--step N] [--format diffusers|wan] [--raw]

Writes a run's weights for others to load: averaged unless `--raw`, adapters merged, in a format of
the model's (see weights/initial.py). On one process, in memory for one set of weights in fp32.
With `--adapter` LoRA's matrices alone, a few MB, and the gates that trained beside them.
"""

import importlib
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load

import flexsparse
from models import attention
from train import log
from train.records.run_dir import CONFIG, rebuild
from train.weights.checkpoint import complete_steps
from train.weights.initial import pretrained
from train.weights.lora import LoRAConfig, LoRALinear, add_lora, merge_lora


@dataclass(kw_only=True, frozen=True)
class Options:
    run: Path
    """Folder of the run."""
    out: Path
    """New folder for the weights."""
    step: int = -1
    """Which of its checkpoints; -1: the last."""
    format: str = ""
    """One of the model's; by default the first, for Wan diffusers'."""
    raw: bool = False
    """Weights as they were, not their average."""
    adapter: bool = False
    """LoRA's matrices by themselves, for pipe.load_lora_weights, and gates for load_gates."""


def export(options: Options) -> None:
    """Write the weights; ValueError or OSError, in a line, for whatever is wrong."""
    file = options.run / CONFIG
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist: give --run the folder of a run")
    config = json.loads(file.read_text())
    if not {"module", "lora"} <= config.keys():
        raise ValueError(f"{file} is of a version without export: start the run once more")
    checkpoints = options.run / config["checkpoint"]["folder"]
    steps = complete_steps(checkpoints)
    if not steps or options.step not in (-1, *steps):
        wanted = "no checkpoint" if options.step == -1 else f"no step {options.step}"
        there = ", ".join(map(str, steps)) or "none"
        raise ValueError(f"{checkpoints} has {wanted} that is complete; it has: {there}")
    step = steps[-1] if options.step == -1 else options.step
    times = config["flow"].get("least", 0.0), config["flow"].get("most", 1.0)
    sizes = model_config(config)
    package = pretrained(sizes)
    format = options.format or package.FORMATS[0]
    if format not in package.FORMATS:
        raise ValueError(f"--format is {format!r}; give one of {', '.join(package.FORMATS)}")
    if options.adapter and not config["lora"]["rank"]:
        raise ValueError(f"--adapter: {options.run} trained all weights, without lora.rank")
    if options.adapter and (format != "diffusers" or not hasattr(package, "save_adapter")):
        raise ValueError(f"--adapter is for --format diffusers, this is {format}")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise ValueError(f"{options.out} exists and is not an empty folder: give a new --out")
    with torch.device("meta"):
        model = sizes.build()
        add_lora(model, rebuild(config["lora"], {"LoRAConfig": LoRAConfig}))
    if options.adapter:
        averaged = _write_adapter(package, model, checkpoints / f"step-{step}", options)
    else:
        averaged = read_weights(model, checkpoints / f"step-{step}", options.raw)
        merge_lora(model)
        package.save(model, options.out, format, times=times)
    kind = ("averaged " if averaged else "") + ("adapter" if options.adapter else "weights")
    alone = "" if times == (0, 1) else ", for noise from {:g} to {:g} alone".format(*times)
    log.logger.info("%s: %s of step %d for %s%s", options.out, kind, step, format, alone)


def model_config(config: Mapping[str, Any]) -> Any:
    """The model's config of a run, from its `config.json`."""
    names = vars(importlib.import_module(config["module"])) | vars(attention) | vars(flexsparse)
    return rebuild(config["model"], {k: v for k, v in names.items() if isinstance(v, type)})


def read_weights(model: nn.Module, checkpoint: Path, raw: bool) -> bool:
    """Fill a model that is on the meta device, on the CPU; whether with averages.

    Weights that did not train have no average, and are what they are.
    """
    model.to_empty(device="cpu")
    return _read({n: p.detach() for n, p in model.named_parameters()}, checkpoint, raw)


def _write_adapter(package: Any, model: nn.Module, checkpoint: Path, options: Options) -> bool:
    """Of a model on the meta device, reading what trained and nothing else; whether averages."""
    adapted = {n: m for n, m in model.named_modules() if isinstance(m, LoRALinear)}
    train = {n: p for n, p in model.named_parameters() if p.requires_grad}
    read = {n: torch.empty_like(p, device="cpu", requires_grad=False) for n, p in train.items()}
    averaged = _read(read, checkpoint, options.raw)
    pairs = {
        name: (read.pop(f"{name}.lora_a"), layer.scale * read.pop(f"{name}.lora_b"))
        for name, layer in adapted.items()
    }
    package.save_adapter(pairs, read, options.out)
    return averaged


def _read(tensors: Mapping[str, Tensor], checkpoint: Path, raw: bool) -> bool:
    """Fill the tensors of these names; whether with averages."""
    there = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    keys: dict[str, Any] = {}
    for name, tensor in tensors.items():
        average = f"ema.{name}"
        keys[name if raw or average not in there else average] = tensor
    if missing := [key for key in keys if key not in there]:
        raise ValueError(f"{checkpoint} lacks {len(missing)} weights of this model: {missing[0]}")
    with warnings.catch_warnings():
        # that it assumes what no_dist says
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        load(keys, checkpoint_id=checkpoint, no_dist=True)
    return any(key.startswith("ema.") for key in keys)


def main(argv: Sequence[str]) -> int:
    """0 when the weights are written, 1 for an error."""
    log.to_console()
    try:
        export(tyro.cli(Options, prog="python -m train.export", args=argv))
    except (ValueError, OSError) as error:
        log.logger.error("error: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
