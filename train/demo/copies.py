"""A training on recurring content (`train/data/copies`), and what the trained model looks at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexsparse import VideoTiling
from models.video_dit import VideoDiTConfig
from train.data import VideoDataLoader
from train.data.copies.clips import RecurringClips
from train.data.copies.floors import Floors, copies_in, floors, mean_floors
from train.data.copies.layouts import Copies
from train.data.sources.open import open_clips
from train.flow import FlowConfig, keyed_generator, shifted
from train.records.metrics import Metrics
from train.settings import TrainingConfig
from train.sparsity.attention_stats import choice_of, watched_slots
from train.titan import LRSchedulersContainer, default_adamw
from train.trainer import Trainer
from train.validation import Validator
from train.weights.checkpoint import Checkpointer
from train.weights.ema import EMA

LEAST, MOST = 0.15, 0.5  # of noise: where more of it hides a token, its copies are hard to find too


def copies_config(
    model: VideoDiTConfig,
    copies: Copies,
    *,
    steps: int,
    folder: Path,
    lr: float = 4e-3,
    batch: int = 2,
    seed: int = 0,
    clips: int = 8,
    points: int = 12,
) -> Trainer.Config:
    """The rate falls to nothing, so that losses are at their best at the end; `points` validations
    on so many `clips`."""
    frames, height, width = model.video
    return Trainer.Config(
        model=model,
        dataloader=VideoDataLoader.Config(
            source="copies",
            copies=replace(copies, patch=model.patch),
            num_frames=frames,
            height=height,
            width=width,
            seed=seed,
            context_tokens=1,
            context_dim=model.context_dim,
        ),
        dump_folder=str(folder),
        training=TrainingConfig(steps=steps, local_batch_size=batch, seed=seed),
        flow=FlowConfig(least=LEAST, most=MOST),
        optimizer=default_adamw(lr=lr, weight_decay=0.0, betas=(0.9, 0.99)),
        lr_scheduler=LRSchedulersContainer.Config(
            warmup_steps=min(20, steps // 4), decay_ratio=0.5, min_lr_factor=0.02
        ),
        ema=EMA.Config(enable=False),
        validation=Validator.Config(interval=max(1, steps // points), clips=clips, sample_steps=0),
        checkpoint=Checkpointer.Config(enable=False),
        metrics=Metrics.Config(log_freq=10),
    )


def held_out(config: Trainer.Config) -> RecurringClips:
    """The clips that no training sees."""
    clips = open_clips(config.dataloader, "validation")
    assert isinstance(clips, RecurringClips)
    return clips


def floors_of(config: Trainer.Config, tiling: VideoTiling, others: tuple[int, ...] = ()) -> Floors:
    """Least losses of a config's validation: the mean over its clips, each as it lies, at the noise
    level at which it is met."""
    loader: Any = config.dataloader.build(split="validation")
    count, clips, flow = loader.keep(config.validation.clips), held_out(config), config.flow
    times = shifted((torch.arange(count) + 0.5) / count, flow.shift, flow.least, flow.most).tolist()
    return mean_floors(
        [
            floors(clips.copies, clips.layout(number), tiling, [time], others)
            for number, time in zip(loader.kept.tolist(), times, strict=True)
        ]
    )


@dataclass(frozen=True)
class Found:
    """What a model's layers looked at in some held-out clips.

    Attributes:
        shares: by layer, of the tiles that it chose beside each tile's own, those that hold copies;
            None of one that chose no others, and none at all if no layer did.
        heads: by layer, how many heads look at each tile from the tile in the middle of a clip, the
            first one.
        of_all: of all tiles, the share that holds copies of a tile.
    """

    shares: list[float | None]
    heads: list[list[int]]
    of_all: float


@torch.no_grad()
def found_by(
    model: Any, clips: RecurringClips, tiling: VideoTiling, time: float = 0.3, count: int = 4
) -> Found:
    """Of `count` clips at a noise level."""
    shares: dict[int, list[float]] = {}
    heads: list[list[int]] = []
    of_all = 0.0

    for number in range(count):
        truth = torch.from_numpy(copies_in(clips.layout(number), tiling)) > 0
        of_all += truth.double().mean().item() / count
        for slot, tile_map in tile_maps(model, clips, number, time):
            if number == 0:
                heads.append(tile_map[:, middle_of(tiling)].sum(0).tolist())
            of_slot = shares.setdefault(slot, [])
            if (tile_map & ~torch.eye(len(truth), dtype=torch.bool)).any():
                of_slot.append(right_share(tile_map, truth))
    means = [sum(x) / len(x) if x else None for x in shares.values()]
    return Found(means if any(shares.values()) else [], heads, of_all)


def tile_maps(
    model: Any, clips: RecurringClips, number: int, time: float
) -> Iterator[tuple[int, Tensor]]:
    """By layer, in its order: a key, and the tiles that its heads look at [H, n, n], on the CPU."""
    found: list[tuple[int, Tensor]] = []

    def see(slot: Any, given: tuple[Any, ...]) -> None:
        _, q, k, _, seen = given[:5]
        choice = choice_of(slot, q, k, seen, None) if hasattr(slot, "choose") and seen else None
        if choice is not None:
            found.append((id(slot), choice.tile_map[0].cpu()))

    with watched_slots(model, see):
        model(*noisy(model, clips, number, time))
    yield from found


def noisy(
    model: Any, clips: RecurringClips, number: int, time: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A clip as a model meets it."""
    device = next(model.parameters()).device
    x0 = clips[number]["video"][None].to(device)
    generator = keyed_generator(device, "copies", number)
    noise = torch.randn(x0.shape, generator=generator, device=device)
    context = torch.zeros(1, 1, model.config.context_dim, device=device)
    return (1 - time) * x0 + time * noise, torch.full((1,), time, device=device), context


def middle_of(tiling: VideoTiling) -> int:
    """The number of the tile in the middle of the video."""
    t, h, w = (size // 2 for size in tiling.grid)
    return (t * tiling.grid[1] + h) * tiling.grid[2] + w


def right_share(tile_map: Tensor, truth: Tensor) -> float:
    """Of the chosen tiles [H, n, n] but their own, the share that ``truth`` [n, n] has."""
    other = tile_map & ~torch.eye(len(truth), dtype=torch.bool, device=truth.device)
    return ((other & truth).sum() / other.sum()).item()
