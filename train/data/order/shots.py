"""Where a video is cut, and which windows of it train and which validate."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

Split = Literal["train", "validation"]

LEAST_CHANGE = 12.0  # mean absolute difference of two frames, of 255, under which nothing is a cut
TIMES_USUAL = 3.0  # how far above its neighbours' median a change must stand
NEIGHBOURS = 8  # changes looked at on either side
BREAK = math.inf  # the change where a film is broken off and goes on elsewhere


def frame_change(before: np.ndarray, after: np.ndarray) -> float:
    """Mean absolute difference of two frames [H, W, 3] uint8, on every fourth row and column."""
    difference = after[::4, ::4].astype(np.int16) - before[::4, ::4].astype(np.int16)
    return float(np.abs(difference).mean())


def find_shots(changes: Sequence[float]) -> list[tuple[int, int]]:
    """Frame ranges [start, stop) without a cut inside, from the changes between successive frames.

    A cut is a change that is large in itself and stands out among its neighbours. The rule rather
    cuts once too often (a flash, an object that jumps into view) than lets a window cross a cut.
    A BREAK is a cut, too.
    """
    c = np.asarray(changes, dtype=np.float64)
    cuts = [0]
    for i in np.flatnonzero(c > LEAST_CHANGE):
        around = np.concatenate([c[max(0, i - NEIGHBOURS) : i], c[i + 1 : i + 1 + NEIGHBOURS]])
        around = around[around < BREAK]
        usual = float(np.median(around)) if len(around) else 0.0
        if c[i] > TIMES_USUAL * (usual + 1):
            cuts.append(int(i) + 1)
    cuts.append(len(c) + 1)
    return list(itertools.pairwise(cuts))


def breaks_in(changes: Sequence[float]) -> str:
    """What a log says of the breaks among a film's changes; "" for none."""
    n = list(changes).count(BREAK)
    return f"its times jump, or frames are damaged ({n} times): each ends a shot" if n else ""


def windows_of_shot(
    shot: tuple[int, int], num_frames: int, stride: int, holdout: float, split: Split
) -> list[int]:
    """First frames of the windows of `num_frames` that `split` has in this shot.

    The shot's tail is held out for validation: the last `holdout` of its frames, but at least one
    window, where the shot is long enough to leave a window for training; a shorter shot trains.
    No frame is in both splits. `holdout=0` holds nothing out.
    """
    start, stop = shot
    tail = max(num_frames, round((stop - start) * holdout)) if holdout else 0
    border = stop - tail if stop - start - tail >= num_frames else stop
    if split == "train":
        return list(range(start, border - num_frames + 1, stride))
    return list(range(border, stop - num_frames + 1, stride))
