"""Activation checkpointing: what of a block is kept for the backward pass, and what made again.

    none        all are kept
    selective   attention, every second matmul and the selection are kept
    full        the selection is kept, and nothing else

The selection (of tiles and of BSA's queries: `topk` on a CPU, kernels of ours on a GPU) is kept in
every mode: one that came out differently when it was made again would give gradients of
another function than the one whose loss was reported.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import create_selective_checkpoint_contexts

import flexsparse  # noqa: F401, registers its operators
from train.titan import ActivationCheckpointing, SelectiveAC

Mode = Literal["none", "selective", "full"]

SELECTION = [
    torch.ops.aten.topk.default,
    torch.ops.flexsparse.select_tiles.default,
    torch.ops.flexsparse.prune_queries.default,
]


class Selective(SelectiveAC):
    """torchtitan's policy, which keeps `topk` and FlexAttention; attention on CPU is added here."""

    @dataclass(kw_only=True, slots=True)
    class Config(SelectiveAC.Config):
        pass

    def get_save_ops(self) -> set:
        return super().get_save_ops() | {
            *SELECTION,
            torch.ops.flexsparse.block_sparse_attention.default,
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        }


class Full(ActivationCheckpointing):
    """Everything is recomputed but the selection; torchtitan's FullAC would recompute that too."""

    @dataclass(kw_only=True, slots=True)
    class Config(ActivationCheckpointing.Config):
        pass

    def _wrap_block(self, module: nn.Module, *, base_fqn: str | None = None) -> nn.Module:
        return checkpoint_wrapper(
            module,
            context_fn=partial(create_selective_checkpoint_contexts, SELECTION),
            early_stop=False,
        )


def apply_activation_checkpointing(model: nn.Module, mode: Mode) -> None:
    """Wrap every block in `model.layers`."""
    if mode == "selective":
        Selective.Config().build().apply(model)
    elif mode == "full":
        Full.Config().build().apply(model)
    elif mode not in get_args(Mode):
        modes = ", ".join(map(repr, get_args(Mode)))
        raise ValueError(f"activation_checkpoint is {mode!r}; give one of {modes}")
