"""The tensors that methods of one setting share, and how they are let go."""

from __future__ import annotations

import gc

import torch
from torch import Tensor

from benchmarks.gpu.cases import Setting
from benchmarks.gpu.layers import draw
from benchmarks.gpu.run import DTYPE, Run


class Drawn:
    """The tensors of the last setting: one at a time has a GPU's memory."""

    def __init__(self) -> None:
        self.key, self.tensors = "", []

    def of(self, run: Run, setting: Setting) -> list[Tensor]:
        if self.key != f"{setting}":
            self.key, self.tensors = "", []
            forget()
            self.tensors = draw(setting, torch.device(run.device), DTYPE)
            self.key = f"{setting}"
        return self.tensors


DRAWN = Drawn()


def forget() -> None:
    """Free what earlier programs hold; raises where a GPU's context is lost."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
