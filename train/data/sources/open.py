"""From a loader's config to the clips of a split."""

from pathlib import Path
from typing import Any

from train.data.copies.clips import RecurringClips
from train.data.order.shots import Split
from train.data.sources.digits import MovingDigits
from train.data.sources.recipes import RECIPES, missing, recipe_folder
from train.data.sources.video_folder import VideoFolder


def open_clips(config: Any, split: Split) -> MovingDigits | RecurringClips | VideoFolder:
    """The clips of a split, as a VideoDataLoader.Config names them."""
    size = {"num_frames": config.num_frames, "height": config.height, "width": config.width}
    size["buckets"] = config.buckets
    if config.source == "digits":
        train, validation = 1024, 64
        if split == "train":
            return MovingDigits(train, **size)
        return MovingDigits(validation, first=train, **size)
    if config.source == "copies":
        if config.buckets:
            raise ValueError('clips of source="copies" have one size: leave buckets out')
        train, validation = 1 << 20, 256
        first, length = (0, train) if split == "train" else (train, validation)
        pixels = config.num_frames, config.height, config.width
        return RecurringClips(config.copies, length, first=first, size=pixels)
    path = config.path
    if config.source in RECIPES:
        path = path or _fetched(config.source)
    elif config.source != "folder":
        known = ", ".join(f'"{name}"' for name in ("folder", "digits", "copies", *RECIPES))
        raise ValueError(f'source="{config.source}": it is one of {known}')
    if not path:  # Path("") is the current directory
        raise ValueError("give --dataloader.path, a folder of videos")
    return VideoFolder(
        path,
        **size,
        fps=config.fps,
        split=split,
        stride=config.stride,
        holdout=config.holdout,
        cache_dir=config.cache_dir,
    )


def _fetched(recipe: str) -> Path:
    """Its folder; ValueError where clips are wanting, which takes a network to mend."""
    folder = recipe_folder(RECIPES[recipe])
    if lacking := missing(RECIPES[recipe], folder):
        raise ValueError(
            f"{folder} lacks clips of {len(lacking)} of {len(RECIPES[recipe])} packages: run "
            f"`python -m train.data.fetch {recipe}` first, or give --dataloader.path, a folder of "
            "videos, with --dataloader.source folder"
        )
    return folder
