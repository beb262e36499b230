"""How far torch's compiled FlexAttention for CPUs is from eager fp64: why we use it nowhere.

    python -m benchmarks.studies.torch_cpu_kernel
    ATEN_CPU_CAPABILITY=avx2 python -m benchmarks.studies.torch_cpu_kernel

Appends a row for each call to ``benchmarks/results/torch_cpu_kernel.jsonl``. Inductor's code goes
to a cache of its own: the key of the usual one leaves the processor's capability out, so that a
process would be given what another compiled for another capability.
"""

from __future__ import annotations

import os
import tempfile

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from benchmarks.record import write_row

LENGTHS, DIMS = (40, 200, 256), (8, 16, 24, 64)


def add_head(score: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
    return score + h


def error(length: int, dim: int, has_score_mod: bool) -> float:
    """The largest error of the output, of about 1; inf where it has NaN."""
    torch.compiler.reset()  # or after eight shapes it is no longer compiled
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, length, dim) for _ in range(3))
    score_mod = add_head if has_score_mod else None
    with torch.no_grad():
        exact = flex_attention(q.double(), k.double(), v.double(), score_mod=score_mod)
        found = torch.compile(flex_attention, dynamic=False, fullgraph=True)(
            q, k, v, score_mod=score_mod
        )
    return torch.nan_to_num((found - exact).abs(), nan=torch.inf).max().item()


def main() -> None:
    for has_score_mod in (False, True):
        for dim in DIMS:
            for length in LENGTHS:
                row = write_row(
                    "torch_cpu_kernel",
                    "cpu",
                    score_mod=has_score_mod,
                    head_dim=dim,
                    length=length,
                    capability=torch.backends.cpu.get_cpu_capability(),
                    error=error(length, dim, has_score_mod),
                )
                print(row, flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        main()
