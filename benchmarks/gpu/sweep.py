"""Kernel options tried on selections of a video's kind: what ``kernel_configs.py`` should say.

A target is the fine stage of one setting, with query blocks of one size. Its options go to
FlexAttention as ``kernel_options``, the first of them being none: what the tables have today.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from benchmarks.gpu.cases import VIDEOS, Method, Setting
from benchmarks.gpu.layers import KEEP, window_of
from flexsparse.engines.kernel_configs import backward_config, forward_config
from flexsparse.stages.windows import Windows

Options = dict[str, Any]


class Target(NamedTuple):
    """A fine stage whose kernels are tuned."""

    setting: Setting
    method: Method

    @property
    def blocks(self) -> tuple[int, int]:
        """Rows of the mask's blocks, of queries and of keys."""
        tiling = self.setting.tiling
        rows = tiling.rows
        if self.method.kind == "bsa_fine":
            rows = Windows(tiling, KEEP, window_of(self.setting)).kept_rows
        return self.method.query_tiles * rows, tiling.rows


def targets(rehearse: bool = False) -> list[Target]:
    """In the order in which they are swept while time is left."""
    if rehearse:
        setting = Setting("full", (8, 8, 12), (4, 4, 4), 2, 16)
        return [Target(setting, Method("fine", 0.5, 2)), Target(setting, Method("bsa_fine", 0.75))]
    long, wan = VIDEOS["61k"], VIDEOS["33k"]
    wide = Setting("61k-t128", long[0], (4, 4, 8), 12, 128)
    at = [Setting("61k", *long, 12, 128), Setting("61k", *long, 12, 64)]
    padded = Setting("33k", *wan, 12, 128)
    return [
        Target(at[0], Method("fine", 0.875, 2)),
        Target(at[0], Method("fine", 0.875, 1)),
        Target(at[0], Method("bsa_fine", 0.95, 4)),
        Target(wide, Method("fine", 0.875, 1)),
        Target(at[1], Method("fine", 0.875, 2)),
        Target(padded, Method("fine", 0.875, 2)),
        Target(at[1], Method("fine", 0.875, 1)),
        Target(at[0], Method("bsa_fine", 0.95, 2)),
        Target(wide._replace(dim=64), Method("fine", 0.875, 1)),
    ]


def options(target: Target, rehearse: bool = False) -> dict[str, list[Options]]:
    """What is tried, by the step that is timed: one change at a time, then the likely pairs."""
    q_rows, kv_rows = target.blocks
    dim = target.setting.dim
    major = torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else 9
    ahead = forward_config(dim, torch.bfloat16, q_rows, kv_rows, major)
    back = backward_config(dim, torch.bfloat16, q_rows, kv_rows, major)
    forward: list[Options] = [
        {},
        {"fwd_num_stages": 2},
        {"fwd_num_stages": 3},
        {"fwd_num_stages": 4},
        {"fwd_num_warps": 12 - ahead.warps},
        {"fwd_num_warps": 12 - ahead.warps, "fwd_num_stages": 2},
        {"fwd_USE_TMA": True},
        {"fwd_USE_TMA": True, "fwd_num_stages": 2},
        {"fwd_USE_TMA": True, "fwd_num_stages": 4},
        {"fwd_BLOCK_N": 32},
        {"fwd_BLOCK_N": 32, "fwd_num_stages": 4},
        {"fwd_BLOCK_N": 128, "fwd_num_stages": 2},
        {"fwd_BLOCK_M": 64, "fwd_num_warps": 4},
        {"fwd_ROWS_GUARANTEED_SAFE": False},
        {"fwd_PRESCALE_QK": True},
    ]
    backward: list[Options] = [
        {},
        {"bwd_num_stages": 1},
        {"bwd_num_stages": 2},
        {"bwd_num_stages": 3},
        {"bwd_num_warps": 12 - back.warps},
        {"bwd_USE_TMA": True},
        {"bwd_USE_TMA": True, "bwd_num_stages": 3},
        {"bwd_BLOCK_M1": 32},
        {"bwd_BLOCK_M1": 32, "bwd_BLOCK_N2": 32},
        {"bwd_BLOCK_M1": 32, "bwd_BLOCK_N2": 32, "bwd_num_stages": 3},
        {"bwd_BLOCK_M2": 64},
        {"bwd_BLOCK_N1": 128, "bwd_BLOCK_M2": 128},
    ]
    found = {
        "forward": _distinct(forward, {f"fwd_{k}": v for k, v in _named(ahead).items()}),
        "forward_backward": _distinct(backward, {f"bwd_{k}": v for k, v in _named(back).items()}),
    }
    if kv_rows == 128:  # FlashAttention 4 takes no smaller blocks, and says so where it is not here
        for tried in found.values():
            tried.append({"BACKEND": "FLASH"})
    limits = {"fwd_BLOCK_M": q_rows, "fwd_BLOCK_N": kv_rows, "bwd_BLOCK_M1": q_rows}
    limits |= {"bwd_BLOCK_N1": kv_rows, "bwd_BLOCK_M2": q_rows, "bwd_BLOCK_N2": kv_rows}
    fitting = {
        step: [x for x in tried if not any(limit % x.get(k, 1) for k, limit in limits.items())]
        for step, tried in found.items()
    }
    return {step: tried[: 2 if rehearse else None] for step, tried in fitting.items()}


def _named(config: Any) -> Options:
    """A config in the words of ``kernel_options``."""
    names = {"stages": "num_stages", "warps": "num_warps"}
    items = config._asdict().items()
    return {names.get(key, f"BLOCK_{key.upper()}"): value for key, value in items}


def _distinct(tried: list[Options], default: Options) -> list[Options]:
    """Without those that say what the default says anyway."""
    return [x for x in tried if not x or any(default.get(key) != v for key, v in x.items())]
