"""What the experiments train: one small video DiT on pixels, alike but for its attention.

Everything but the attention is the same for all runs of a seed: the initial weights, the clips and
their order, the noise and the times. The learning rate stays constant after its warmup, and losses
are those of averaged weights, so that each point of a curve may be compared with each of another:
with a rate that falls to the last step, a run is at its best there alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.evidence.clips import NormalisedLoader
from models.attention import BSA, VSA, Dense, Slot
from models.video_dit import VideoDiTConfig, dit_120m
from train.data.doom.__main__ import Options, record
from train.data.fetch import fetch_clips
from train.data.sources.recipes import RECIPES
from train.demo.model import LEAST_TIME, PixelDiTConfig
from train.flow import FlowConfig
from train.records.metrics import Metrics
from train.settings import TrainingConfig
from train.titan import LRSchedulersContainer, default_adamw
from train.trainer import Trainer
from train.validation import Validator
from train.weights.checkpoint import Checkpointer
from train.weights.ema import EMA

METHODS: dict[str, Any] = {
    "dense": Dense(),
    "vsa": VSA(sparsity=0.875),
    "bsa": BSA(sparsity=0.86, keep=0.5),  # 1 - 0.5 * 0.14 = 0.93, as in the paper
}
POINTS = 8  # of a curve, after the one before the first step


@dataclass(frozen=True)
class Film:
    """What of Freedoom's maps is filmed; validation is on maps of its own."""

    clips: int
    validation_clips: int
    size: Literal["160x120", "320x240", "640x480"] = "160x120"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes for one kind of machine. `model` says all but the attention."""

    name: str
    model: VideoDiTConfig
    fps: float
    batch: int = 1
    lr: float = 1e-3
    warmup: int = 20
    shift: float = 3.0
    ema: float = 0.98
    validation_clips: int = 32
    steps: int = 192
    """Of ablations and adaptation, where none are asked for."""
    film: Film = field(default_factory=lambda: Film(clips=480, validation_clips=64))
    compile: bool = False

    def trainer(
        self, attention: Slot, data: str, *, seed: int, steps: int, folder: Path
    ) -> Trainer.Config:
        """One run; `data` is a name of DATA. It saves itself at its end alone."""
        return Trainer.Config(
            model=PixelDiTConfig(replace(self.model, attention=attention)),
            dataloader=self.loader(data, seed),
            dump_folder=str(folder),
            training=TrainingConfig(steps=steps, local_batch_size=self.batch, seed=seed),
            flow=FlowConfig(shift=self.shift, least=LEAST_TIME),
            optimizer=default_adamw(lr=self.lr),
            lr_scheduler=LRSchedulersContainer.Config(
                warmup_steps=min(self.warmup, steps // 4), decay_ratio=0.0
            ),
            ema=EMA.Config(decay=self.ema),
            validation=Validator.Config(
                interval=max(1, steps // POINTS),
                clips=self.validation_clips,
                sample_steps=0,
            ),
            checkpoint=Checkpointer.Config(interval=steps, keep_latest_k=2),
            metrics=Metrics.Config(log_freq=10),
            compile=self.compile,
        )

    def prepare(self, data: str) -> None:
        """What clips take before any work, once."""
        DATA[data].prepare(self)

    def loader(self, data: str, seed: int) -> Any:
        """The loader's config for a name of DATA."""
        frames, height, width = self.model.video
        return NormalisedLoader.Config(
            num_frames=frames,
            height=height,
            width=width,
            fps=self.fps,
            stride=max(1, frames // 4),
            seed=seed,
            context_dim=self.model.context_dim,
            **DATA[data].options(self),
        )


CPU = Scale(
    name="cpu",
    model=VideoDiTConfig(
        channels=3, video=(16, 48, 64), patch=(1, 4, 4), dim=128, heads=2, layers=3, ffn=384
    ),
    fps=0,
)
GPU = Scale(
    name="gpu",
    model=VideoDiTConfig(
        channels=3, video=(16, 256, 256), patch=(1, 8, 8), dim=512, heads=8, layers=14, ffn=2048
    ),
    fps=8,
    film=Film(clips=4096, validation_clips=256, size="320x240"),
    lr=6e-4,
    warmup=100,
    ema=0.99,
    steps=1000,
    compile=True,
)
GPU_120M = replace(
    GPU,
    name="gpu-120m",
    model=replace(dit_120m(), channels=3, video=(16, 256, 256), patch=(1, 8, 8)),
    lr=4e-4,
)
SCALES = {scale.name: scale for scale in (CPU, GPU, GPU_120M)}


def here() -> Scale:
    """The scale for this machine."""
    return GPU if torch.accelerator.is_available() else CPU


@dataclass(frozen=True)
class Source:
    """Clips: how they are had, once and before any work, and what the loader is told."""

    prepare: Callable[[Scale], object]
    options: Callable[[Scale], dict[str, Any]]


def films(scale: Scale) -> Path:
    """The folder of walks through Freedoom's maps; more of them may be added to it."""
    return Path.home() / ".cache" / "flexsparse" / f"doom-{scale.film.size}"


DATA: dict[str, Source] = {
    "doom": Source(
        lambda scale: record(Options(out=films(scale), **vars(scale.film))),
        lambda scale: dict(path=str(films(scale)), mean=-0.72, std=0.22),
    ),
    "footage": Source(
        lambda scale: fetch_clips(RECIPES["real-footage"]),
        lambda scale: dict(source="real-footage", mean=-0.24, std=0.46),
    ),
}
