"""For the tests that adapt Wan: runs of seconds on latents and dense weights that they write."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from models.wan import WanModel, debug
from models.wan.checkpoint import save
from train.configs import wan
from train.data.latents.records import SCHEMA, tensor_columns
from train.records.metrics import Metrics
from train.sparsity.annealing import SparsityConfig
from train.trainer import Trainer
from train.validation import Validator
from train.weights.checkpoint import Checkpointer
from train.weights.initial import InitialConfig
from train.weights.lora import LoRAConfig

LORA = LoRAConfig(rank=4, alpha=6.0)
QUIET = Validator.Config(interval=0)


def write_latents(folder: Path, clips: int = 8) -> Path:
    """Of the debug size, each with a text of another length."""
    rng, size = torch.Generator().manual_seed(0), debug()
    rows = []
    for i in range(clips):
        latent = torch.randn(size.in_channels, *size.video, generator=rng)
        text = torch.randn(i % 5 + 1, size.text_dim, generator=rng)
        columns = tensor_columns("vae_latent", latent) | tensor_columns("text_embedding", text)
        rows.append({name: None for name in SCHEMA.names} | columns)
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "a.parquet", row_group_size=3)
    return folder


def awake_wan(seed: int = 3, **changes: Any) -> WanModel:
    """The debug size, with no weight zero: a fresh model says zero and hides most of itself."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = debug(**changes).build()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape), alpha=parameter.shape[-1] ** -0.5)
    return model


def batch_for(model: WanModel) -> list[Tensor]:
    """x, t and context, for two clips."""
    generator, config = torch.Generator().manual_seed(0), model.config
    x = torch.randn(2, config.in_channels, *config.video, generator=generator)
    context = torch.randn(2, 5, config.text_dim, generator=generator)
    return [x, torch.rand(2, generator=generator), context]


def inputs(folder: Path) -> tuple[Path, Path]:
    """Latents, and dense weights in Wan's own format."""
    save(awake_wan(), folder / "weights", "wan")
    return write_latents(folder / "latents"), folder / "weights"


def adapting(name: str, folder: Path, given: tuple[Path, Path], **changes) -> Trainer.Config:
    """A run of `train/configs/wan.py`, without TensorBoard; the kernels are those of its schedule.

    `changes` are fields of the config, or `steps`.
    """
    latents, weights = given
    config: Trainer.Config = getattr(wan, name)()
    config.training.steps = changes.pop("steps", config.training.steps)
    settings = dict(
        initial=InitialConfig(weights=str(weights)),
        dataloader=replace(config.dataloader, path=str(latents), holdout=0.25),
        dump_folder=str(folder),
        sparsity=SparsityConfig(schedule=config.sparsity.schedule, break_even=0.0),
        checkpoint=Checkpointer.Config(interval=3),
        metrics=Metrics.Config(log_freq=1, enable_tensorboard=False),
    )
    return replace(config, **(settings | changes))


def lora(name: str, folder: Path, given: tuple[Path, Path], **changes) -> Trainer.Config:
    """The same with adapters, in 7 steps that are not validated."""
    return adapting(name, folder, given, **dict(lora=LORA, steps=7, validation=QUIET) | changes)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
