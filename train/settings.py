"""The trainer's own settings, and how they are resolved on the machine at hand."""

from dataclasses import dataclass, replace
from typing import Literal

import torch


@dataclass(kw_only=True, slots=True)
class TrainingConfig:
    steps: int = 10_000
    local_batch_size: int = 1
    """Clips that a rank takes through the model at once, alone or with those that share them."""
    global_batch_size: int = -1
    """Clips in a step, over all ranks and accumulated passes; -1: one pass on each rank."""
    max_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    max_skipped: int = 3
    """So many steps in a row with a non-finite loss or gradient, which are skipped, end the run:
    when they are read off the device, every metrics.log_freq steps."""
    seed: int = 0
    """Of the initial weights, the noise and the times."""
    param_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype that weights (kept in fp32) are used in; auto: bfloat16 on a GPU, float32 on a CPU."""

    def resolved(self, ranks: int, device: torch.device) -> "TrainingConfig":
        """With values in place of -1 and auto; ValueError where the batch sizes do not divide.

        `ranks` is how many have clips of their own.
        """
        if self.max_skipped < 1:
            raise ValueError(
                f"training.max_skipped is {self.max_skipped}: give at least 1, which ends the run "
                "at the first step that is skipped"
            )
        one_pass = self.local_batch_size * ranks
        total = one_pass if self.global_batch_size == -1 else self.global_batch_size
        if self.local_batch_size < 1 or total < 1 or total % one_pass:
            raise ValueError(
                f"training.global_batch_size is {total}, not a multiple of local_batch_size "
                f"{self.local_batch_size} x {ranks} ranks with clips of their own: give one of "
                f"{max(1, one_pass)}"
            )
        dtype = self.param_dtype
        if dtype == "auto":
            dtype = "float32" if device.type == "cpu" else "bfloat16"
        return replace(self, global_batch_size=total, param_dtype=dtype)
