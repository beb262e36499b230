"""Runs of models/video_dit: the debug ones take seconds on a CPU, the others `--dataloader.path`.

A run of your own is a function like these, in any module: take one, and change what differs.
"""

from typing import Any

from models.attention import BSA, VSA, Dense
from models.video_dit import VideoDiTConfig, debug, dit_1b4, dit_60m, dit_120m, dit_410m
from train.data import VideoDataLoader
from train.flow import FlowConfig
from train.records.metrics import Metrics
from train.settings import TrainingConfig
from train.sparsity.annealing import SparsityConfig
from train.sparsity.schedules import FallingTiles, RisingSparsity
from train.titan import LRSchedulersContainer, default_adamw
from train.trainer import Trainer
from train.validation import Validator
from train.weights.checkpoint import Checkpointer


def debug_dense() -> Trainer.Config:
    return _digits(debug(video=(4, 32, 32), attention=Dense()), "debug_dense")


def debug_vsa() -> Trainer.Config:
    return _digits(debug(video=(4, 32, 32), attention=VSA(sparsity=0.5)), "debug_vsa")


def debug_bsa() -> Trainer.Config:
    slot = BSA(sparsity=0.5, window=(2, 2, 2))
    return _digits(debug(video=(4, 32, 32), attention=slot), "debug_bsa")


def debug_bsa_anneal() -> Trainer.Config:
    """Sparsity rises from dense attention on, to 0.75."""
    slot = BSA(sparsity=0.75, window=(2, 2, 2))
    config = _digits(debug(video=(4, 32, 32), attention=slot), "debug_bsa_anneal")
    config.sparsity = SparsityConfig(schedule=RisingSparsity(by=0.25, every=4))
    return config


def dit_60m_dense() -> Trainer.Config:
    return _folder(dit_60m, Dense(), lr=6e-4, name="dit_60m_dense")


def dit_60m_vsa() -> Trainer.Config:
    return _folder(dit_60m, VSA(), lr=6e-4, name="dit_60m_vsa")


def dit_60m_bsa() -> Trainer.Config:
    return _folder(dit_60m, BSA(), lr=6e-4, name="dit_60m_bsa")


def dit_120m_dense() -> Trainer.Config:
    return _folder(dit_120m, Dense(), lr=4e-4, name="dit_120m_dense")


def dit_120m_vsa() -> Trainer.Config:
    return _folder(dit_120m, VSA(), lr=4e-4, name="dit_120m_vsa")


def dit_120m_bsa() -> Trainer.Config:
    return _folder(dit_120m, BSA(), lr=4e-4, name="dit_120m_bsa")


def dit_120m_vsa_adapt() -> Trainer.Config:
    """As VSA's paper (arXiv 2505.13389) adapts a dense model: give it a checkpoint of one,
    `--checkpoint.initial-load-path .../step-N`."""
    slot = VSA(top_k=32, adapt=True)
    config = _folder(dit_120m, slot, lr=1e-5, name="dit_120m_vsa_adapt")
    config.sparsity = SparsityConfig(schedule=FallingTiles())
    config.training.steps = 4000
    return config


def dit_120m_bsa_anneal() -> Trainer.Config:
    """As in BSA's paper (arXiv 2509.01085), where the sparsity of the keys rises to 0.9."""
    config = _folder(dit_120m, BSA(sparsity=0.9), lr=4e-4, name="dit_120m_bsa_anneal")
    config.sparsity = SparsityConfig(schedule=RisingSparsity())
    return config


def dit_410m_dense() -> Trainer.Config:
    return _folder(dit_410m, Dense(), lr=3e-4, name="dit_410m_dense")


def dit_410m_vsa() -> Trainer.Config:
    return _folder(dit_410m, VSA(), lr=3e-4, name="dit_410m_vsa")


def dit_410m_bsa() -> Trainer.Config:
    return _folder(dit_410m, BSA(), lr=3e-4, name="dit_410m_bsa")


def dit_1b4_dense() -> Trainer.Config:
    return _folder(dit_1b4, Dense(), lr=2e-4, name="dit_1b4_dense")


def dit_1b4_vsa() -> Trainer.Config:
    return _folder(dit_1b4, VSA(), lr=2e-4, name="dit_1b4_vsa")


def dit_1b4_bsa() -> Trainer.Config:
    return _folder(dit_1b4, BSA(), lr=2e-4, name="dit_1b4_bsa")


def real_footage_dense() -> Trainer.Config:
    """Real clips, `python -m train.data.fetch real-footage`, the tail of each shot held out: few
    enough to be learnt by heart."""
    return _real_footage(Dense(), "real_footage_dense")


def real_footage_vsa() -> Trainer.Config:
    return _real_footage(VSA(), "real_footage_vsa")


def real_footage_bsa() -> Trainer.Config:
    return _real_footage(BSA(), "real_footage_bsa")


def doom_dense() -> Trainer.Config:
    """Clips that `python -m train.data.doom --out DIR` films, validated on maps held out; as many
    as wanted. `--dataloader.path DIR`"""
    return _doom(Dense(), "doom_dense")


def doom_vsa() -> Trainer.Config:
    return _doom(VSA(), "doom_vsa")


def doom_bsa() -> Trainer.Config:
    return _doom(BSA(), "doom_bsa")


def loader(model: VideoDiTConfig, **options: Any) -> VideoDataLoader.Config:
    """Clips of the size that the model takes."""
    frames, height, width = model.video
    return VideoDataLoader.Config(
        num_frames=frames,
        height=height,
        width=width,
        context_dim=model.context_dim,
        **options,
    )


def _digits(model: VideoDiTConfig, name: str) -> Trainer.Config:
    """Some seconds of moving digits on a CPU."""
    return Trainer.Config(
        model=model,
        dataloader=loader(model, source="digits"),
        dump_folder=f"out/{name}",
        training=TrainingConfig(steps=20, local_batch_size=2),
        optimizer=default_adamw(lr=2e-3),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=5, decay_type="cosine"),
        validation=Validator.Config(interval=10, clips=4, sample_steps=4),
        checkpoint=Checkpointer.Config(interval=10),
        metrics=Metrics.Config(log_freq=1),
    )


def _real_footage(attention: Any, name: str) -> Trainer.Config:
    """Two seconds at 128 x 192: 32 x 16 x 24 tokens."""
    model = dit_60m(channels=3, video=(32, 128, 192), patch=(1, 8, 8), attention=attention)
    data = loader(model, source="real-footage", fps=15, stride=8, num_workers=4)
    return _pixels(model, data, lr=6e-4, name=name)


def _doom(attention: Any, name: str) -> Trainer.Config:
    """32 of the 33 frames, at 96 x 128: 32 x 12 x 16 tokens."""
    model = dit_60m(channels=3, video=(32, 96, 128), patch=(1, 8, 8), attention=attention)
    return _pixels(model, loader(model, num_workers=4), lr=6e-4, name=name)


def _folder(size: Any, attention: Any, *, lr: float, name: str) -> Trainer.Config:
    """Two seconds of pixels at 256 x 256: 16 x 32 x 32 tokens, VSA's pretraining grid."""
    model = size(channels=3, video=(16, 256, 256), patch=(1, 8, 8), attention=attention)
    return _pixels(model, loader(model, fps=8, num_workers=4), lr=lr, name=name)


def _pixels(
    model: VideoDiTConfig, data: VideoDataLoader.Config, *, lr: float, name: str
) -> Trainer.Config:
    return Trainer.Config(
        model=model,
        dataloader=data,
        dump_folder=f"out/{name}",
        training=TrainingConfig(steps=20_000, local_batch_size=4),
        flow=FlowConfig(shift=3.0),
        optimizer=default_adamw(lr=lr, weight_decay=0.01),
        lr_scheduler=LRSchedulersContainer.Config(
            warmup_steps=1000, decay_type="cosine", min_lr_factor=0.1
        ),
        validation=Validator.Config(interval=500, clips=64),
        checkpoint=Checkpointer.Config(interval=500),
        activation_checkpoint="selective",
        compile=True,
    )
