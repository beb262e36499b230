"""Wan 2.1's diffusion transformer: noisy latent, time, text and picture in, velocity out.

patchify -> tile once, at the door -> blocks -> head -> back to raster -> unpatchify
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from flexsparse import VideoTiling
from flexsparse.by_noise import band_of, settle
from flexsparse.nn.ulysses import Ulysses
from models.video_dit.embed import patchify, timestep_embedding
from models.wan.blocks import Block, Head
from models.wan.config import WanConfig
from models.wan.embed import ImageEmbedding, Triple, unpatchify, wide
from models.wan.rope import rotary_table


class WanModel(nn.Module):
    """Predicts the velocity `noise - x0` at `x_t = (1 - t) * x0 + t * noise`, t in [0, 1].

    Wan (arXiv 2503.20314) in the plain: parameters have the names of its own checkpoints, but
    `layers` for `blocks`. The latent may have another size at every call.

    Weights may be of one dtype, or the time embedding, the modulation tables and the affine norms
    may stay in fp32 while the rest is bf16, as diffusers loads them.

    Attributes:
        config: the WanConfig that it was built from.
        grid, tokens, tiling, top_k, q_rows: of a latent of the size `config.video`: the grid of
            tokens (T, H, W); their number without padding; their order inside, a VideoTiling, or
            None for raster order; tiles that a query tile selects, None for dense attention; rows
            of queries for a tile where attention prunes them, else None.
        layers: the blocks "0", "1", ...: what activation checkpointing, compile and FSDP wrap.
        sequence_group: the ranks that share the rows of each latent, as VideoDiT has it, or None.

    A new model is initialised; one built under `torch.device("meta")` wants `to_empty` and then
    `init_weights`, or a checkpoint. There are no buffers.

    >>> from models.attention import VSA
    >>> from models.wan import debug
    >>> model = debug(attention=VSA(sparsity=0.5)).build()
    >>> x, text = torch.randn(1, 16, 3, 10, 14), torch.zeros(1, 512, 32)
    >>> model(x, torch.tensor([0.7]), text).shape
    torch.Size([1, 16, 3, 10, 14])
    """

    sequence_group: ProcessGroup | None = None

    def __init__(self, config: WanConfig):
        super().__init__()
        self.config = config
        self.grid = config.grid
        self.tokens = math.prod(config.grid)
        self.tiling = config.attention.tiling(config.grid)
        self.q_rows = config.attention.q_rows_for(self.tiling)
        dim = config.dim
        # Only init_weights may draw numbers: a slot's own layers would shift what all others get.
        with torch.random.fork_rng(devices=[]):
            self.patch_embedding = nn.Conv3d(config.in_channels, dim, config.patch, config.patch)
            self.text_embedding = nn.Sequential(
                nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
            )
            self.time_embedding = nn.Sequential(
                nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
            )
            self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
            if config.image_dim is not None:
                self.img_emb = ImageEmbedding(config, config.image_dim)
            self.layers = nn.ModuleDict({str(i): Block(config) for i in range(config.layers)})
            self.head = Head(config)
        self.init_weights()
        slots = [cast(Block, block).self_attn.slot for block in self.layers.values()]
        self.top_k = settle(config.attention, slots, self.tiling)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, image: Tensor | None = None) -> Tensor:
        """Velocity [B, out_channels, T, H, W] in x's dtype; computed in the weights'.

        Args:
            x: the noisy latent [B, in_channels, T, H, W], of any size that patches divide. For
                image-to-video: 16 channels of noisy latent, 4 of mask, 16 of the picture's latent.
            t: its noise level [B], from 0 (data) to 1 (noise). Keep it in fp32: bf16 merges levels.
            context: text tokens [B, N, text_dim]. All N are attended to: Wan was trained on 512,
                those after the text's end being zero.
            image: picture tokens [B, M, image_dim], 257 of CLIP's for one picture, for two one
                after the other; if and only if the config has `image_dim`.

        Raises:
            ValueError: a shape that is none of these, with what would do.
        """
        self._check(x, t, context, image)
        config, weight = self.config, self.patch_embedding.weight
        # torch.compile makes symbols of ints that change, but none of a range: tiles and lists have
        # static sizes, and each size of the latent is a program of its own
        frames, height, width = (len(range(size)) for size in x.shape[2:])
        grid = config.grid_of((frames, height, width))
        tiling = self._tiling_of(grid)
        # the convolution has no overlap: a product, which can go after the (narrower) tiling
        patches = patchify(x, config.patch).to(weight.dtype)
        rotary = rotary_table(grid, config.head_dim, x.device)
        if tiling is not None:
            patches, rotary = tiling.to_tiles(patches), tiling.to_tiles(rotary)
        shards = None
        if self.sequence_group is not None:
            shards = Ulysses.even(self.sequence_group, patches.shape[1])
            patches, rotary = shards.shard(patches, 1), shards.shard(rotary, 1)
        rows = F.linear(patches, weight.flatten(1), self.patch_embedding.bias)
        first = cast(nn.Linear, self.time_embedding[0])
        time = timestep_embedding(t, config.freq_dim).to(first.weight.dtype)
        time = self.time_embedding(time).to(weight.dtype)
        modulation = wide(self.time_projection(time)).unflatten(-1, (6, -1))
        band = band_of(config.attention, t)
        text = self.text_embedding(context.to(weight.dtype))
        if image is not None:
            image = self.img_emb(image.to(weight.dtype))
        for block in self.layers.values():
            rows = block(rows, modulation, text, image, rotary, tiling, shards, band)
        out = self.head(rows, time)
        if shards is not None:
            out = shards.gather(out, 1)
        if tiling is not None:
            out = tiling.from_tiles(out)
        return unpatchify(out, grid, config.patch).to(x.dtype)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Fill every parameter from torch's global generator, as VideoDiT does.

        Linear layers keep the variance of their input: std 1 / sqrt(fan_in). Modulation, the last
        projection of cross-attention and the head start at zero: a new model is the identity from
        patches to head and says exactly zero velocity.

        The slots' own parameters come last: after the same `torch.manual_seed`, a dense and a
        sparse model start from the same weights.
        """
        blocks = cast(list[Block], list(self.layers.values()))
        slots = [block.self_attn.slot for block in blocks]
        in_slots = {module for slot in slots for module in slot.modules()}
        for module in self.modules():
            if module in in_slots:
                continue
            if isinstance(module, nn.Linear | nn.Conv3d):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                nn.init.zeros_(cast(Tensor, module.bias))
            elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
                module.reset_parameters()
            elif isinstance(module, ImageEmbedding) and module.emb_pos is not None:
                nn.init.zeros_(module.emb_pos)
        zero = [cast(nn.Linear, self.time_projection[1]), self.head.head]
        for linear in zero + [block.cross_attn.o for block in blocks]:
            nn.init.zeros_(linear.weight)
        for module in (self.head, *blocks):
            nn.init.zeros_(module.modulation)
        for slot in slots:
            cast(nn.Linear, slot).reset_parameters()

    def _tiling_of(self, grid: Triple) -> VideoTiling | None:
        if not (sizes := self._tile_and_rows(grid)):
            return None
        t, h, w, rows = map(int, sizes.split())
        return VideoTiling(grid, (t, h, w), rows)

    @torch.compiler.assume_constant_result
    def _tile_and_rows(self, grid: Triple) -> str:
        """Config and grid alone decide, so that torch.compile need not look into a slot's search
        for the best tile. As text, since of a constant's numbers it would want to guard each."""
        tiling = self.config.attention.tiling(grid)
        return "" if tiling is None else " ".join(map(str, (*tiling.tile, tiling.rows)))

    def _check(self, x: Tensor, t: Tensor, context: Tensor, image: Tensor | None) -> None:
        config, batch = self.config, x.shape[0] if x.ndim else 0
        if not _fits(x, None, config.in_channels, None, None, None):
            raise ValueError(
                f"x is {list(x.shape)}; give latents [B, {config.in_channels}, T, H, W]"
            )
        if not _fits(t, batch):
            raise ValueError(f"t is {list(t.shape)}; give one time per video: [{batch}]")
        if not _fits(context, batch, None, config.text_dim):
            raise ValueError(
                f"context is {list(context.shape)}; give text tokens [{batch}, N, "
                f"{config.text_dim}]"
            )
        if config.image_dim is None and image is not None:
            raise ValueError(
                f"image is {list(image.shape)}, but this model knows text alone: leave it out, or "
                f"build the model of an image-to-video checkpoint, whose config has image_dim"
            )
        tokens = config.pos_embed_seq_len
        if config.image_dim and (
            image is None or not _fits(image, batch, tokens, config.image_dim)
        ):
            raise ValueError(
                f"image is {None if image is None else list(image.shape)}; give picture tokens "
                f"[{batch}, {tokens or 'M'}, {config.image_dim}]"
            )


WanConfig.model_class = WanModel


def _fits(x: Tensor, *due: int | None) -> bool:
    """Whether x has this shape, None standing for any size."""
    return x.ndim == len(due) and all(d is None or s == d for s, d in zip(x.shape, due))
