"""What the demo runs: an opening, then one small model three times, alike but for its attention."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from models.attention import BSA, VSA, Dense
from models.video_dit import VideoDiTConfig
from train.data import VideoDataLoader
from train.demo.model import LEAST_TIME, PixelDiTConfig
from train.demo.opening import Opening
from train.flow import FlowConfig
from train.records.metrics import Metrics
from train.settings import TrainingConfig
from train.titan import LRSchedulersContainer, default_adamw
from train.trainer import Trainer
from train.validation import Validator
from train.weights.checkpoint import Checkpointer
from train.weights.ema import EMA

RUNS = {
    "dense": Dense(),
    "vsa": VSA(sparsity=0.875, tile=(4, 4, 4)),
    "bsa": BSA(sparsity=0.875, keep=0.5, window=(2, 2, 2), tile=(4, 4, 4)),
}
NAMES = {"dense": "dense", "vsa": "VSA", "bsa": "BSA"}
TITLES = {
    "dense": "dense attention",
    "vsa": "sparse attention (VSA)",
    "bsa": "sparse attention (BSA)",
}


@dataclass(frozen=True)
class Settings:
    """Sizes of the demo. `steps` are taken if all trainings fit into `seconds`, else fewer."""

    video: tuple[int, int, int] = (16, 64, 96)
    patch: tuple[int, int, int] = (1, 4, 4)
    dim: int = 128
    heads: int = 2
    layers: int = 2
    ffn: int = 256
    fps: float = 12
    lr: float = 3e-3
    shift: float = 5.0
    steps: int = 200
    seconds: float = 180
    validations: int = 8
    samples: int = 2
    sample_steps: int = 20
    repeats: int = 5
    opening: Opening = field(default_factory=Opening)

    def trainer(self, run: str, clips: Path, folder: Path, steps: int) -> Trainer.Config:
        """The config of one of the RUNS, which goes to `folder / run`."""
        model = VideoDiTConfig(
            channels=3,
            video=self.video,
            patch=self.patch,
            dim=self.dim,
            heads=self.heads,
            layers=self.layers,
            ffn=self.ffn,
            attention=RUNS[run],
        )
        frames, height, width = self.video
        data = VideoDataLoader.Config(
            path=str(clips),
            num_frames=frames,
            height=height,
            width=width,
            fps=self.fps,
            stride=max(1, frames // 4),
            context_dim=model.context_dim,
        )
        return Trainer.Config(
            model=PixelDiTConfig(model),
            dataloader=data,
            dump_folder=str(folder / run),
            training=TrainingConfig(steps=steps),
            flow=FlowConfig(shift=self.shift, least=LEAST_TIME),
            optimizer=default_adamw(lr=self.lr),
            lr_scheduler=LRSchedulersContainer.Config(
                warmup_steps=min(10, steps // 4), decay_type="cosine", min_lr_factor=0.05
            ),
            ema=EMA.Config(enable=False),
            validation=Validator.Config(interval=turn(steps, self.validations), sample_steps=0),
            checkpoint=Checkpointer.Config(enable=False),
            metrics=Metrics.Config(log_freq=1),
        )


def turn(steps: int, validations: int) -> int:
    """Steps from one validation to the next."""
    return max(1, round(steps / validations))


CPU = Settings()
GPU = replace(
    CPU, video=(32, 128, 192), patch=(2, 4, 4), dim=256, heads=4, layers=6, ffn=1024, steps=600
)


def settings() -> Settings:
    """Those for this machine."""
    return GPU if torch.accelerator.is_available() else CPU
