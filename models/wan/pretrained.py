"""What the trainer asks of Wan's checkpoints: `train.weights.initial` finds it beside WanConfig."""

from pathlib import Path

import torch

from models.wan import checkpoint
from models.wan.adapter import save_adapter
from models.wan.checkpoint import save
from models.wan.config import WanConfig
from models.wan.experts import times_of
from models.wan.fit import check_fit, format_of
from models.wan.formats import to_key
from models.wan.model import WanModel
from models.wan.shards import Weights

__all__ = ["FORMATS", "check", "load", "save", "save_adapter", "times_of"]

FORMATS = "diffusers", "wan"


def check(config: WanConfig, path: str | Path) -> None:
    """Raise what :func:`load` would raise, from the headers of the files alone."""
    weights = Weights.open(path)
    format = format_of(weights)
    with torch.device("meta"):
        model = config.build()
    names = {to_key(name, format): name for name, _ in model.named_parameters()}
    check_fit(model, names, weights, format, new_gates=True)


def load(config: WanConfig, path: str | Path) -> WanModel:
    """The model in fp32 on the CPU, with new gates where the checkpoint has none.

    Raises:
        FileNotFoundError, CheckpointError: as :func:`models.wan.checkpoint.load`.
    """
    return checkpoint.load(config, path, new_gates=True, device="cpu", dtype=torch.float32)
