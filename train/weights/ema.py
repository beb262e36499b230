"""An exponential moving average of the weights, sharded as they are."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from train.titan import Configurable, canonical_fqn


class EMA(Stateful, Configurable):
    """After step n, average = d * average + (1 - d) * weights, d = min(decay, (1 + n) / (10 + n)).

    The bound on d lets a young average follow: it forgets the initial weights within some steps.
    Weights that do not train have none.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Configurable.Config):
        enable: bool = True
        decay: float = 0.999

        def __post_init__(self) -> None:
            if not 0 <= self.decay < 1:
                raise ValueError(f"ema.decay is {self.decay}; give 0 <= decay < 1, such as 0.999")

    def __init__(self, config: Config, *, model: nn.Module) -> None:
        self.decay = config.decay
        self.model = model
        trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
        weights = {canonical_fqn(name): p for name, p in trained}
        self.weights = list(weights.values())
        self.average = {name: p.detach().clone() for name, p in weights.items()}

    @torch.no_grad()
    def update(self, step: int, skip: Tensor | None = None) -> None:
        """Take in the weights after step `step`, counted from 1; nothing where `skip` (0-dim) is 1.

        The host does not wait to know.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, weights = _local(self.average.values()), _local(self.weights)
        if skip is None:
            get_ema_multi_avg_fn(decay)(averages, weights, step)
        else:
            share = [(1 - decay) * (1 - skip)] * len(weights)
            torch._foreach_lerp_(averages, weights, share)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def restart(self) -> None:
        """Forget the past: the average is the weights."""
        get_ema_multi_avg_fn(0)(_local(self.average.values()), _local(self.weights), 0)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it, the model has the averaged weights; after it, its own again, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, average in zip(
            _local(self.weights), _local(self.average.values()), strict=True
        ):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
        reshard(self.model)

    def state_dict(self) -> dict[str, Any]:
        return self.average

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, average in self.average.items():
                average.copy_(state_dict[name])


def _local(tensors) -> list[Tensor]:
    """This rank's shards, sharing memory with the tensors."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


def reshard(model: nn.Module) -> None:
    """Drop the gathered weights that FSDP keeps after a forward pass that no backward pass follows.

    The next forward pass would otherwise use them although the shards have changed since.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
