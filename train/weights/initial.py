"""How a run's weights start: drawn from its seed, or read from a checkpoint that others trained.

Which files those are is the model's affair: its package may have a module `pretrained` with
`check(config, path)`, which reads no weights, `load(config, path) -> model`, in fp32 on the CPU,
`save(model, folder, format, times=...)` and `FORMATS`, the first of which is the default. It may
have `times_of(path)`, the first and last noise level that the weights are for, as `save` was given
them, and `save_adapter`.
"""

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from train.log import logger
from train.records.run_dir import check_config, write_config
from train.records.starts import record_start
from train.sparsity.schedules import Constant, DenseWarmup
from train.weights.checkpoint import check_initial_load_path, check_load_step, complete_steps
from train.weights.lora import add_lora


@dataclass(kw_only=True, slots=True)
class InitialConfig:
    weights: str = ""
    """Folder or file that the model's weights are read from before step 1, and never again."""
    required: bool = False
    """Whether there must be one, as where a trained model is adapted."""


def first_checkpoint(config: Any) -> int | None:
    """The step that the run goes on from, the last that any process sees; None where it is new.

    On storage that nodes share, some may not see for a while what others have written.

    Raises ValueError or OSError in a line if the config and what lies in the run's folder do not go
    together, or it takes no files. Nothing is written.
    """
    folder = Path(config.dump_folder)
    checkpoints = folder / config.checkpoint.folder
    check_load_step(checkpoints, config.checkpoint.load_step)
    steps = complete_steps(checkpoints)
    if steps:
        check_config(folder, config)
    step = _furthest(steps[-1] if steps and config.checkpoint.enable else None)
    _check_start(config, step is None)
    if dist.get_rank() == 0:
        there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        with TemporaryFile(dir=there):
            pass
    return step


def _furthest(mine: int | None) -> int | None:
    """The last step that any process sees: what one of them sees complete is there."""
    seen: list[int | None] = [None] * dist.get_world_size()
    dist.all_gather_object(seen, mine)
    return max((step for step in seen if step is not None), default=None)


def open_folder(config: Any, step: int | None) -> None:
    """The run's folder gets the config and a line about this start, once all ranks are here."""
    dist.barrier()
    if dist.get_rank() == 0:
        write_config(config.dump_folder, config)
        record_start(config.dump_folder, config, step or 0)


def _check_start(config: Any, fresh: bool) -> None:
    """Raise unless `first_model` could do its work; reads headers alone."""
    check_sizes(config)
    initial, step = config.initial, config.checkpoint.initial_load_path
    if fresh and initial.required and not (initial.weights or step):
        raise ValueError(
            "this run adapts a trained model: give --initial.weights DIR, the folder of its "
            "weights, or --checkpoint.initial-load-path DIR/step-N of an earlier run"
        )
    if initial.weights and step:
        raise ValueError(
            f"initial.weights is {initial.weights} and checkpoint.initial_load_path is {step}: "
            f"give one of them"
        )
    if fresh and step and not config.checkpoint.initial_load_in_hf:
        check_initial_load_path(step)
    if fresh and initial.weights:
        package = pretrained(config.model)
        package.check(config.model, initial.weights)
        check_times(config.flow, initial.weights, package)
    if config.lora.rank:
        with torch.device("meta"):
            add_lora(config.model.build(), config.lora)


def check_times(flow: Any, weights: str, package: Any) -> None:
    """Raise unless the weights are for all noise levels that they would be trained on."""
    least, most = getattr(package, "times_of", lambda path: (0.0, 1.0))(weights)
    if flow.least < least or flow.most > most:
        raise ValueError(
            f"{weights} is one of two models, for noise from {least:g} to {most:g}, and the run "
            f"has times from {flow.least:g} to {flow.most:g}: give --flow.least {least:g} "
            f"--flow.most {most:g}"
        )


def check_sizes(config: Any) -> None:
    """Raise unless the model takes the clips' sizes; that of its `video` is one of them."""
    into, out = (getattr(config.model, f"{way}_channels", None) for way in ("in", "out"))
    if into != out or getattr(config.model, "image_dim", None) is not None:
        raise ValueError(
            f"the model takes {into} channels and gives {out}, or pictures beside the text, as "
            f"image-to-video does: only text-to-video can be trained here"
        )
    if into is not None and getattr(config.dataloader, "channels", into) != into:
        raise ValueError(
            f"model.in_channels is {into}, dataloader.channels {config.dataloader.channels}: "
            f"give the number that the VAE has for both"
        )
    size, names = getattr(config.model, "video", None), ("num_frames", "height", "width")
    clips = tuple(getattr(config.dataloader, name, None) for name in names)
    buckets = [tuple(bucket) for bucket in getattr(config.dataloader, "buckets", ())]
    if size is not None and None not in clips and tuple(size) not in (buckets or [clips]):
        given = f"buckets are {buckets}: make it one of them"
        raise ValueError(
            f"model.video is {tuple(size)}, but the dataloader's "
            + (given if buckets else f"{', '.join(names)} are {clips}: give both the same")
        )
    if len(buckets) < 2:
        return
    if not getattr(config.model, "any_size", False):
        raise ValueError(
            f"dataloader.buckets are {len(buckets)} sizes, but {type(config.model).__qualname__} "
            "is built for one: leave out all but one, or train a model that takes any, as WanConfig"
        )
    if not isinstance(config.sparsity.schedule, Constant | DenseWarmup):
        raise ValueError(
            f"dataloader.buckets are {len(buckets)} sizes, but sparsity.schedule counts the tiles "
            "of one: leave out all but one, or the schedule"
        )


def outline(config: Any) -> nn.Module:
    """The model with its adapters and without memory: all of it is on the meta device."""
    with torch.device("meta"):
        model = config.model.build()
        add_lora(model, config.lora)
    _check_outline(model)
    if config.lora.rank:
        train = sum(p.numel() for p in model.parameters() if p.requires_grad)
        logger.info(f"LoRA of rank {config.lora.rank}: {train:,} parameters train")
    return model


def _check_outline(model: nn.Module) -> None:
    """Raise ValueError for tensors that no state dict has: nobody would fill them."""
    kept = model.state_dict().keys()
    lost = [name for name, _ in model.named_buffers() if name not in kept]
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, torch.Tensor) and value.is_meta:
                lost.append(f"{name}.{key}")
    if lost:
        raise ValueError(
            f"{type(model).__name__} has tensors that no checkpoint has ({len(lost)}, {lost[0]}): "
            "make them buffers with persistent=True, or compute them in forward"
        )


def first_model(config: Any) -> nn.Module:
    """The model as training begins, whole, in fp32 on the CPU; its adapters are new."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        if config.initial.weights:
            model = pretrained(config.model).load(config.model, config.initial.weights)
            logger.info(f"weights from {config.initial.weights}")
        else:
            model = config.model.build()
        add_lora(model, config.lora)
    return model


def fill(model: nn.Module, config: Any, device: torch.device, fresh: bool) -> None:
    """Give a sharded outline memory, and the values that training begins with.

    The first process alone has the whole model, on its host, and every rank takes its shards of
    what that sends, a tensor at a time: so all layouts begin alike, and no other host holds the
    whole. Where the run goes on (not `fresh`) the values are its checkpoint's affair.
    """
    model.to_empty(device=device)
    if fresh:
        whole = first_model(config).state_dict() if dist.get_rank() == 0 else {}
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(model, whole, options=options)


def pretrained(model: Any) -> Any:
    """The module `pretrained` for a model's config; ValueError if its package has none."""
    package = type(model).__module__.rpartition(".")[0]
    if not package or importlib.util.find_spec(f"{package}.pretrained") is None:
        raise ValueError(
            f"{type(model).__qualname__} knows no files but the trainer's own: its package has no "
            f"module {package}.pretrained; start from --checkpoint.initial-load-path DIR/step-N"
        )
    return importlib.import_module(f"{package}.pretrained")
