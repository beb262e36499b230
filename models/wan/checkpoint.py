"""Wan's checkpoints in and out: its own format, diffusers' and FastVideo's, see `formats`.

Everything is checked from the headers of the files before any memory is taken for weights; then
tensors are read one by one into the parameters, so that loading takes no more memory than weights.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.attention import VSA
from models.wan import formats
from models.wan.config import WanConfig
from models.wan.experts import TIMES
from models.wan.fit import check_fit, format_of, sizes_of
from models.wan.formats import Format, to_key
from models.wan.model import WanModel
from models.wan.shards import STEM, CheckpointError, Weights, shorten

logger = logging.getLogger(__name__)
HEAD_DIM = 128  # of every Wan


def read_config(path: str | Path) -> WanConfig:
    """The sizes of a checkpoint, from its `config.json` and from the shapes of its weights.

    Without a `config.json` heads are taken to have 128 channels, as in all of Wan's models. What a
    checkpoint doesn't say, `video` and `attention`, is for `dataclasses.replace`.

    Args:
        path: as in :func:`load`.

    Raises:
        FileNotFoundError, CheckpointError: as :func:`load`.
    """
    weights = Weights.open(path)
    sizes = sizes_of(weights, format_of(weights))
    if lacking := {"dim", "ffn", "text_dim", "freq_dim", "in_channels", "out_channels"} - {*sizes}:
        raise CheckpointError(
            f"{weights.path} is not whole: no weight says {shorten(sorted(lacking), 6)}"
        )
    heads, rest = divmod(sizes["dim"], HEAD_DIM)
    if "heads" not in sizes and rest:
        raise CheckpointError(
            f"{weights.path}: dim {sizes['dim']} is no multiple of {HEAD_DIM}, so how many heads? "
            f"put the config.json beside the weights, or give a WanConfig"
        )
    return WanConfig(**dict(heads=heads) | sizes)


def with_gates_of(slot: VSA, path: str | Path) -> VSA:
    """The slot with the gates that a checkpoint has, to be loaded as it is: none of a dense one,
    the coarse gate of one that was adapted, both of one that VSA pretrained.

    Raises:
        FileNotFoundError, CheckpointError: as :func:`load`.
    """
    keys = "\n".join(Weights.open(path).entries)
    return replace(slot, gates=".to_gate_" in keys, adapt=".to_gate_fine." not in keys)


def load(
    model: WanModel | WanConfig,
    path: str | Path,
    *,
    new_gates: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> WanModel:
    """Read a checkpoint into a model.

    ::

        config = dataclasses.replace(read_config(path), attention=VSA(sparsity=0.9, adapt=True))
        model = load(config, path, new_gates=True, dtype=torch.bfloat16)

    Args:
        model: a WanConfig to build it from; or a WanModel, whose parameters on the meta device get
            memory, while those that have memory are filled where they are, in their own dtype.
        path: the transformer's folder, a pipeline's folder that has a `transformer` folder, or a
            file: safetensors, in shards or not, or a pickle that torch.load takes with
            `weights_only=True, mmap=True`, whose mapped pages are resident beside the weights. Of
            ComfyUI's files, whose keys begin with `model.diffusion_model.` or `diffusion_model.`, a
            line says that this is left out.
        new_gates: take a checkpoint without VSA's gates for a model that has them. They start as
            the slot initialises them, with `VSA(adapt=True)` the coarse gate at zero; gates that
            have memory stay as they are.
        device: of what gets memory; default torch's default device.
        dtype: of what gets memory; default, for each parameter, what it is stored in. New gates
            take the dtype of their layer's `q`.

    Returns:
        The model, `model` itself where one was given.

    Raises:
        FileNotFoundError: nothing at `path`.
        CheckpointError: a ValueError in one line: broken files, a checkpoint that is not of Wan,
            another size, keys that are missing or left over, shapes that differ, gates that the
            checkpoint has and the model doesn't, or the other way round, without `new_gates`. The
            model is as it was.
        ValueError: a device or dtype for a model that has memory already.
    """
    weights = Weights.open(path)
    format = format_of(weights)
    if isinstance(model, WanConfig):
        with torch.device("meta"):
            model = WanModel(model)
    names = {to_key(name, format): name for name, _ in model.named_parameters()}
    bare = {name for name, parameter in model.named_parameters() if parameter.is_meta}
    if not bare and (device, dtype) != (None, None):
        raise ValueError(
            f"the model has its memory, so that device={device} and dtype={dtype} would change "
            f"nothing: leave them out, or give its config"
        )
    check_fit(model, names, weights, format, new_gates)
    if weights.prefix:
        left = f", without {weights.others} tensors that don't have it" if weights.others else ""
        logger.warning("%s: keys are read without %s%s", path, weights.prefix, left)
    device = torch.get_default_device() if device is None else torch.device(device)
    for key, name in names.items():
        if name in bare and key not in weights.entries:
            layer = name.split(".self_attn.slot.")[0]
            stored = weights.entries[to_key(f"{layer}.self_attn.q.weight", format)].dtype
            slot = model.get_submodule(f"{layer}.self_attn.slot")
            if any(parameter.is_meta for parameter in slot.parameters()):
                slot.to_empty(device=device).to(dtype or stored)
                cast(nn.Linear, slot).reset_parameters()
    for key, tensor in weights.stream(key for key in names if key in weights.entries):
        owner, _, leaf = names[key].rpartition(".")
        parameter = model.get_parameter(names[key])
        if names[key] in bare:
            tensor = tensor.to(device, dtype or tensor.dtype)
            filled = nn.Parameter(tensor, parameter.requires_grad)
            model.get_submodule(owner).register_parameter(leaf, filled)
        else:
            with torch.no_grad():
                parameter.copy_(tensor)
    return model


def save(
    model: WanModel,
    folder: str | Path,
    format: Format = "diffusers",
    max_shard_bytes: int = 5_000_000_000,
    times: tuple[float, float] = (0.0, 1.0),
) -> None:
    """Write a model's weights and `config.json` so that that format's own code loads them.

    Gates go under FastVideo's name, `blocks.N.to_gate_compress`, and `blocks.N.to_gate_fine`;
    diffusers warns of them and goes on without. The folder appears when it is complete.

    Args:
        model: with its weights in memory, whole.
        folder: new or empty; its parents are made.
        format: "diffusers" (and FastVideo) or "wan".
        max_shard_bytes: of one file, where a single tensor doesn't take more.
        times: the noise levels that the weights are for, of 0 to 1, as one of Wan 2.2's pairs has
            them; `config.json` says so, for :func:`models.wan.experts.times_of`.

    Raises:
        ValueError: a folder that is not empty, which stays as it is; a disk without room; a model
            on the meta device; no such format.
    """
    folder = Path(folder)
    if format not in formats.CLASSES:
        raise ValueError(f"format is {format!r}; give one of {', '.join(formats.CLASSES)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder: give a new one")
    tensors = {to_key(name, format): x.detach() for name, x in model.named_parameters()}
    if bare := [key for key, tensor in tensors.items() if tensor.is_meta]:
        raise ValueError(f"{len(bare)} weights are on the meta device ({shorten(bare)}): load them")
    folder.parent.mkdir(parents=True, exist_ok=True)
    size, free = sum(x.nbytes for x in tensors.values()), shutil.disk_usage(folder.parent).free
    if size > free:
        raise ValueError(f"{folder} takes {size:,} bytes, and only {free:,} are free there")
    with drafted(folder) as draft:
        _write_shards(tensors, draft, max_shard_bytes)
        said = {} if times == (0, 1) else {TIMES: times}
        _write_json(draft / "config.json", formats.to_json(model.config, format) | said)


@contextmanager
def drafted(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `folder`, new or empty, once that is done."""
    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    draft.mkdir()
    try:
        yield draft
        draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_shards(tensors: dict[str, Tensor], folder: Path, most: int) -> None:
    shards: list[dict[str, Tensor]] = []
    room = 0
    for key, tensor in tensors.items():
        if not shards or tensor.nbytes > room:
            shards.append({})
            room = most
        shards[-1][key] = tensor
        room -= tensor.nbytes
    where = {}
    for number, shard in enumerate(shards, 1):
        part = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        file = f"{STEM}{part}.safetensors"
        where |= dict.fromkeys(shard, file)
        save_file({k: x.contiguous() for k, x in shard.items()}, folder / file, {"format": "pt"})
    if len(shards) > 1:
        size = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": where}
        _write_json(folder / f"{STEM}.safetensors.index.json", index)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
