"""What held-out clips tell at fixed noise: to compare between steps, and between runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from train.attention_stats import attention_stats
from train.flow import FlowConfig, flow_loss, keyed_generator, sample, shifted
from train.metrics import Metrics
from train.ranks import DataRanks
from train.titan import Configurable


class Validator(Configurable):
    """Holds the clips and meets them with the same noise and times whenever it is asked.

    Clip i of n has noise keyed by (seed, i) and the time (i + 1/2) / n: spread evenly, so that a
    few clips see all noise levels. Sampled clips start from noise keyed by (seed, i), with the
    clips' captions.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Configurable.Config):
        interval: int = 500
        """Steps between two, besides one before the first step and one at the end; 0: none."""
        batches: int = 4
        """How many to take at most, each of training.local_batch_size clips on each rank."""
        sample_steps: int = 20
        """Steps of the sampler for one batch of clips at each validation; 0: no samples."""
        seed: int = 0

    def __init__(
        self,
        config: Config,
        *,
        dataloader: Any,
        device: torch.device,
        flow: FlowConfig,
        ranks: DataRanks,
    ) -> None:
        self.config, self.device, self.flow, self.ranks = config, device, flow, ranks
        self.batches = list(islice(dataloader, config.batches))
        if not self.batches:
            raise ValueError(
                "the validation split has no clips: hold some out, or set interval to 0"
            )

    @torch.no_grad()
    def loss(self, model: nn.Module) -> float:
        """Mean over all clips, the same on every rank."""
        size = len(self.batches[0]["video"])
        clips = len(self.batches) * self.ranks.size * size
        total = torch.zeros((), device=self.device)
        for i, batch in enumerate(self.batches):
            x0 = batch["video"].to(self.device)
            first = (i * self.ranks.size + self.ranks.rank) * size
            positions = range(first, first + size)
            noise = self._noise(x0, positions)
            even = (torch.tensor(positions, device=self.device) + 0.5) / clips
            t = shifted(even, self.flow.shift, self.flow.least)
            total += flow_loss(model, x0, batch["context"].to(self.device), noise, t).sum()
        return self.ranks.total(total).item() / clips

    def noisy(self, time: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
        """This rank's first clip as a model meets it: x_t [1, C, T, H, W], t, context."""
        size = len(self.batches[0]["video"])
        x0, context = (self.batches[0][name][:1].to(self.device) for name in ("video", "context"))
        noise = self._noise(x0, [self.ranks.rank * size])
        return (1 - time) * x0 + time * noise, torch.full((1,), time, device=self.device), context

    def run(self, model: nn.Module, metrics: Metrics, step: int) -> float:
        """The loss; logged with samples, and with what each layer's attention does to a clip."""
        loss = self.loss(model)
        metrics.scalars(step, validation__loss=loss)
        if self.config.sample_steps:
            metrics.clips("samples", self.sample(model), step)
        layers = attention_stats(model, *self.noisy())
        metrics.attention(layers, self.batches[0]["video"], step)
        return loss

    def sample(self, model: nn.Module) -> Tensor:
        """One clip for each of this rank's first captions: [B, C, T, H, W], about [-1, 1]."""
        first = self.batches[0]
        return sample(
            model,
            first["context"].to(self.device),
            first["video"].shape[1:],
            steps=self.config.sample_steps,
            seed=self.config.seed,
            shift=self.flow.shift,
        )

    def _noise(self, x0: Tensor, positions: Sequence[int]) -> Tensor:
        """Like x0, for the clips at these positions."""
        noise = torch.empty_like(x0)
        for row, position in zip(noise, positions, strict=True):
            key = ("validation", self.config.seed, position)
            row.normal_(generator=keyed_generator(self.device, *key))
        return noise
