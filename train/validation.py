"""What held-out clips tell at fixed noise: to compare between steps, and between runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from train.distributed.ranks import DataRanks
from train.feed import clips_replaced
from train.flow import FlowConfig, flow_loss, keyed_generator, sample, shifted
from train.records.metrics import Metrics
from train.sparsity.attention_stats import attention_stats
from train.titan import Configurable


class Validator(Configurable):
    """Holds the clips and meets them with the same noise and times whenever it is asked.

    Clip i of n has noise keyed by (seed, i) and the time (i + 1/2) / n: spread evenly, so that a
    few clips see all noise levels. The loss is their mean, each counted once, however they are
    divided among ranks and batches. Sampled clips start from noise keyed by (seed, i), with the
    clips' captions.

    Where attention changes at some noise `levels`, the model is called for each clip by itself.

    The loader is one of the split "validation", with `keep` and `numbers` as `VideoDataLoader` has.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Configurable.Config):
        interval: int = 500
        """Steps between two, besides one before the first step and one at the end; 0: none."""
        clips: int = 16
        """Of those that are held out, drawn by lot, the same in every run; at most all."""
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
        levels: Sequence[float] = (),
    ) -> None:
        self.config, self.device, self.flow, self.ranks = config, device, flow, ranks
        self.levels = levels
        if config.clips < 1:
            raise ValueError(f"validation.clips is {config.clips}: at least one is wanted")
        if config.sample_steps and flow.most < 1:
            raise ValueError(
                f"flow.most is {flow.most}, and samples start from noise, at 1, which this model "
                f"does not learn: give --validation.sample-steps 0"
            )
        if config.sample_steps:
            last = shifted(torch.tensor(1 / config.sample_steps), flow.shift).item()
            if last < flow.least - 1e-6:
                raise ValueError(
                    f"flow.least is {flow.least}, and samples of {config.sample_steps} steps go "
                    f"down to time {last:.3f}, which this model does not learn: give "
                    f"--validation.sample-steps 0, or fewer"
                )
        self.clips = dataloader.keep(config.clips)
        self.batches = [
            batch if ranks.sharing is None else _as_the_first_has_it(batch, ranks, device)
            for batch in dataloader
        ]
        self.replaced = clips_replaced(dataloader, ranks, device).item()
        self.numbers = [dataloader.numbers(i) for i in range(len(self.batches))]
        if not self.batches:
            raise ValueError(
                "the validation split has no clips: hold some out, or set interval to 0"
            )

    @torch.no_grad()
    def loss(self, model: nn.Module) -> float:
        """Mean over all clips, the same on every rank."""
        total = torch.zeros((), device=self.device)
        for batch, numbers in zip(self.batches, self.numbers, strict=True):
            x0, context = (batch[name].to(self.device) for name in ("video", "context"))
            given = [number or 0 for number in numbers]
            even = (torch.tensor(given, device=self.device) + 0.5) / self.clips
            t = shifted(even, self.flow.shift, self.flow.least, self.flow.most)
            clips = x0, context, self._noise(x0, given), t
            calls = zip(*(x.split(1) for x in clips), strict=True) if self.levels else [clips]
            losses = torch.cat([flow_loss(model, *call) for call in calls])
            counts = torch.tensor([n is not None for n in numbers], device=self.device)
            total += losses.where(counts, 0.0).sum()
        return self.ranks.total(total).item() / self.clips

    def noisy(self, time: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
        """This rank's first clip as a model meets it: x_t [1, C, T, H, W], t, context."""
        time = min(max(time, self.flow.least), self.flow.most)
        x0, context = (self.batches[0][name][:1].to(self.device) for name in ("video", "context"))
        noise = self._noise(x0, [self.numbers[0][0] or 0])
        return (1 - time) * x0 + time * noise, torch.full((1,), time, device=self.device), context

    def run(self, model: nn.Module, metrics: Metrics, step: int) -> float:
        """The loss; logged with samples, and with what each layer's attention does to a clip.

        Where `validation/clips_replaced` is not 0, the loss is of other clips than it would be of.
        """
        loss = self.loss(model)
        metrics.scalars(step, validation__loss=loss, validation__clips_replaced=self.replaced)
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

    def _noise(self, x0: Tensor, numbers: Sequence[int]) -> Tensor:
        """Like x0, for the clips of these numbers."""
        noise = torch.empty_like(x0)
        for row, number in zip(noise, numbers, strict=True):
            key = ("validation", self.config.seed, number)
            row.normal_(generator=keyed_generator(self.device, *key))
        return noise


def _as_the_first_has_it(batch: Any, ranks: DataRanks, device: torch.device) -> dict[str, Tensor]:
    """A batch for ranks that share clips, of which some may have read others."""
    return {name: ranks.alike(batch[name].to(device)).cpu() for name in ("video", "context")}
