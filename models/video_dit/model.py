"""The video diffusion transformer: noisy video, time and condition in, velocity out.

patchify -> tile once, at the door -> blocks -> head -> back to raster -> unpatchify
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from flexsparse.by_noise import band_of, settle
from flexsparse.nn.ulysses import Ulysses
from models.video_dit.blocks import Block, Head
from models.video_dit.config import VideoDiTConfig
from models.video_dit.embed import patchify, timestep_embedding, unpatchify
from models.video_dit.rope import rotary_table

TIME_CHANNELS = 256


class VideoDiT(nn.Module):
    """Predicts the velocity `noise - x0` at `x_t = (1 - t) * x0 + t * noise`, t in [0, 1].

    Attributes:
        config: the VideoDiTConfig that it was built from.
        grid, tokens: the grid of tokens (T, H, W), and their number (without padding).
        tiling: the order of the tokens inside, a VideoTiling, or None for raster order.
        top_k: tiles that a query tile selects; None for dense attention.
        q_rows: rows of queries for a tile, where attention prunes them; else None.
        layers: the blocks "0", "1", ...: what activation checkpointing, compile and FSDP wrap.
        sequence_group: the ranks that share the rows of each clip (`Ulysses`), or None.
            They call the model together, with the same input, and all get the whole output; the
            gradients of a rank's weights are the part that its rows have in them.

    A new model is initialised; one built under `torch.device("meta")` wants `to_empty` and then
    `init_weights`. There are no buffers.
    """

    sequence_group: ProcessGroup | None = None

    def __init__(self, config: VideoDiTConfig):
        super().__init__()
        self.config = config
        self.grid = config.grid
        self.tokens = math.prod(config.grid)
        self.tiling = config.attention.tiling(config.grid)
        self.q_rows = config.attention.q_rows_for(self.tiling)
        dim = config.dim
        # Only init_weights may draw numbers: a slot's own layers would shift what all others get.
        with torch.random.fork_rng(devices=[]):
            self.patch_in = nn.Linear(config.patch_dim, dim)
            self.context_in = nn.Linear(config.context_dim, dim)
            self.time_in = nn.Linear(TIME_CHANNELS, dim)
            self.time_out = nn.Linear(dim, dim)
            self.modulation = nn.Linear(dim, 6 * dim)
            self.layers = nn.ModuleDict(
                {str(i): Block(config, self.tiling) for i in range(config.layers)}
            )
            self.head = Head(config)
        self.init_weights()
        slots = [cast(Block, block).self_attention.slot for block in self.layers.values()]
        self.top_k = settle(config.attention, slots, self.tiling)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Velocity [B, C, T, H, W] in x's dtype; computed in the weights'.

        Args:
            x: the noisy video [B, C, T, H, W].
            t: its noise level [B], from 0 (data) to 1 (noise). Keep it in fp32: bf16 merges levels.
            context: condition tokens [B, N, context_dim].
        """
        self._check(x, t, context)
        config, dtype = self.config, self.patch_in.weight.dtype
        patches = patchify(x, config.patch).to(dtype)
        rotary = rotary_table(self.grid, config.head_dim, x.device)
        if self.tiling is not None:
            patches, rotary = self.tiling.to_tiles(patches), self.tiling.to_tiles(rotary)
        shards = None
        if self.sequence_group is not None:
            shards = Ulysses.even(self.sequence_group, patches.shape[1])
            patches, rotary = shards.shard(patches, 1), shards.shard(rotary, 1)
        time = self.time_in(timestep_embedding(t, TIME_CHANNELS).to(dtype))
        time = self.time_out(F.silu(time))
        modulation = self.modulation(F.silu(time)).unflatten(-1, (6, -1))
        modulation = modulation.to(torch.promote_types(dtype, torch.float32))
        band = band_of(config.attention, t)
        context = self.context_in(context.to(dtype))
        rows = self.patch_in(patches)
        for block in self.layers.values():
            rows = block(rows, modulation, context, rotary, self.tiling, shards, band)
        out = self.head(rows, time)
        if shards is not None:
            out = shards.gather(out, 1)
        if self.tiling is not None:
            out = self.tiling.from_tiles(out)
        return unpatchify(out, self.grid, config.patch).to(x.dtype)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Fill every parameter from torch's global generator.

        Linear layers keep the variance of their input: std 1 / sqrt(fan_in), a rule that does not
        care whether projections are fused. Modulation, the last projection of cross-attention and
        the head start at zero: whatever its depth, a new model is the identity from patch_in to the
        head and says exactly zero velocity, so that the first loss is the variance of the target
        and no more. Of the factors of a product only one is zero, or no gradient could open it: the
        head learns at the first step, gates and cross-attention at the second, all at the third.

        The slots' own parameters come last: after the same `torch.manual_seed`, a dense and a
        sparse model start from the same weights.
        """
        blocks = cast(list[Block], list(self.layers.values()))
        slots = [block.self_attention.slot for block in blocks]
        in_slots = {module for slot in slots for module in slot.modules()}
        for module in self.modules():
            if module in in_slots:
                continue
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
                module.reset_parameters()
        if self.config.mimetic:
            for block in blocks:
                query, key, _ = block.self_attention.qkv.weight.chunk(3)
                key.copy_(query)
        zero = [self.modulation, self.head.modulation, self.head.out]
        for linear in zero + [block.cross_attention.out for block in blocks]:
            nn.init.zeros_(linear.weight)
        for block in blocks:
            nn.init.zeros_(block.table)
        for slot in slots:
            cast(nn.Linear, slot).reset_parameters()

    def _check(self, x: Tensor, t: Tensor, context: Tensor) -> None:
        config = self.config
        if x.shape[1:] != (config.channels, *config.video):
            raise ValueError(
                f"x is {list(x.shape)}, but this model takes [B, {config.channels}, "
                f"{', '.join(map(str, config.video))}]: crop or resize it, or build the model from "
                f"dataclasses.replace(config, video=...), which takes the same weights"
            )
        if t.shape != x.shape[:1]:
            raise ValueError(f"t is {list(t.shape)}; give one time per video: [{x.shape[0]}]")
        if context.ndim != 3 or context.shape[::2] != (x.shape[0], config.context_dim):
            raise ValueError(
                f"context is {list(context.shape)}; give condition tokens [{x.shape[0]}, N, "
                f"{config.context_dim}]"
            )


VideoDiTConfig.model_class = VideoDiT
