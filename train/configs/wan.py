"""Runs of models/wan that make a trained Wan sparse: give `--initial.weights DIR`, a checkpoint in
Wan's own format or diffusers', and `--dataloader.path DIR`, latents in parquet files.

Clips have the sizes of VSA's paper (arXiv 2505.13389). Others are `--model.video` and the same
numbers for the loader, in latents. `--lora.rank 32` trains adapters and VSA's gates alone; it wants
a higher learning rate, some 1e-4.

Times are bent as Wan bends them when it samples, shift 3 at 480p and 5 at 720p: training visits the
noise levels that a sampler will.
"""

from typing import Any

from models.attention import BSA, VSA
from models.wan import WanConfig, debug, wan_1_3b, wan_14b
from train.data import LatentDataLoader
from train.flow import FlowConfig
from train.records.metrics import Metrics
from train.settings import TrainingConfig
from train.sparsity.annealing import SparsityConfig
from train.sparsity.schedules import FallingTiles, RisingSparsity, Schedule
from train.titan import LRSchedulersContainer, default_adamw
from train.trainer import Trainer
from train.validation import Validator
from train.weights.checkpoint import Checkpointer
from train.weights.initial import InitialConfig

CLIP_480P = (16, 56, 104)  # 61 frames at 448 x 832: 16 x 28 x 52 tokens, 364 tiles
CLIP_720P = (20, 96, 160)  # 77 frames at 768 x 1280: 20 x 48 x 80 tokens, 1200 tiles


def debug_vsa_adapt() -> Trainer.Config:
    """Dense, then 4 of 30 tiles fewer every other step, to 6."""
    slot = VSA(top_k=6, tile=(2, 2, 2), adapt=True)
    schedule = FallingTiles(dense_steps=2, every=2)
    return _debug(slot, schedule, "debug_vsa_adapt")


def debug_bsa_adapt() -> Trainer.Config:
    """Sparsity of the keys rises to 0.75 of 12 tiles."""
    slot = BSA(sparsity=0.75, tile=(2, 4, 4))
    return _debug(slot, RisingSparsity(by=0.25, every=4), "debug_bsa_adapt")


def wan_1_3b_vsa_adapt() -> Trainer.Config:
    """As VSA's paper adapts it, but for the number of steps: 4 tiles fewer every 50 steps take
    4,151 steps from 364 to 32, and the paper has 4,000 in all."""
    config = _adapt(
        wan_1_3b(video=CLIP_480P, attention=VSA(top_k=32, adapt=True)),
        FallingTiles(),
        name="wan_1_3b_vsa_adapt",
    )
    config.training.steps = 5000
    return config


def wan_1_3b_bsa_adapt() -> Trainer.Config:
    """As in BSA's paper (arXiv 2509.01085): sparsity of the keys rises by 0.03 every 30 steps."""
    size = wan_1_3b(video=CLIP_480P, attention=BSA(sparsity=0.9))
    return _adapt(size, RisingSparsity(), name="wan_1_3b_bsa_adapt")


def wan_14b_vsa_adapt() -> Trainer.Config:
    """To 120 of 1200 tiles; at 4 tiles every 50 steps that would take 13,500 steps, so 16."""
    size = wan_14b(video=CLIP_720P, attention=VSA(top_k=120, adapt=True))
    return _large(_adapt(size, FallingTiles(by=16), name="wan_14b_vsa_adapt"))


def wan_14b_bsa_adapt() -> Trainer.Config:
    size = wan_14b(video=CLIP_720P, attention=BSA(sparsity=0.9))
    return _large(_adapt(size, RisingSparsity(), name="wan_14b_bsa_adapt"))


def loader(model: WanConfig, **options: Any) -> LatentDataLoader.Config:
    """Latents of the size that the model takes, with its text."""
    frames, height, width = model.video
    return LatentDataLoader.Config(
        channels=model.in_channels,
        num_frames=frames,
        height=height,
        width=width,
        text_dim=model.text_dim,
        **options,
    )


def _debug(slot: Any, schedule: Schedule, name: str) -> Trainer.Config:
    """Some seconds on a CPU, from any weights."""
    model = debug(attention=slot)
    return Trainer.Config(
        model=model,
        dataloader=loader(model, text_tokens=8),
        dump_folder=f"out/{name}",
        training=TrainingConfig(steps=20, local_batch_size=2),
        flow=FlowConfig(shift=3.0),
        sparsity=SparsityConfig(schedule=schedule),
        optimizer=default_adamw(lr=1e-3),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=2, decay_ratio=0.0),
        validation=Validator.Config(interval=10, clips=4, sample_steps=4),
        checkpoint=Checkpointer.Config(interval=10),
        metrics=Metrics.Config(log_freq=1),
    )


def _adapt(model: WanConfig, schedule: Schedule, *, name: str) -> Trainer.Config:
    """The learning rate, once it is there, stays."""
    return Trainer.Config(
        model=model,
        initial=InitialConfig(required=True),
        dataloader=loader(model, num_workers=4),
        dump_folder=f"out/{name}",
        training=TrainingConfig(steps=4000),
        flow=FlowConfig(shift=3.0),
        sparsity=SparsityConfig(schedule=schedule),
        optimizer=default_adamw(lr=1e-5, weight_decay=0.01),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=50, decay_ratio=0.0),
        validation=Validator.Config(interval=500, clips=16),
        checkpoint=Checkpointer.Config(interval=500),
        activation_checkpoint="selective",
        compile=True,
    )


def _large(config: Trainer.Config) -> Trainer.Config:
    """At 720p, with all but the selection recomputed."""
    config.flow = FlowConfig(shift=5.0)
    config.activation_checkpoint = "full"
    return config
