"""What the benchmark of Wan runs: one set of weights under every attention, and its inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from benchmarks.gpu.layers import KEEP, WINDOWS
from flexsparse import VideoTiling
from flexsparse.choice.scaled import Scaled
from flexsparse.flops import attention_flops
from models.attention import BSA, VSA, Dense, Slot
from models.wan import WanConfig, WanModel

Grid = tuple[int, int, int]
WORDS = 512  # text tokens, which Wan was trained on
LEVEL = 0.7  # of noise; no time depends on it
GATES = 0.02  # deviation of their weights: at zero, what is wrong with the coarse stage is hidden
BACKEND = "inductor"


class Method(NamedTuple):
    """A way to attend: ``slot``, and ``whole``, the same with no tile and no query left out."""

    name: str
    slot: Slot
    whole: Slot


def methods(grid: Grid, kinds: list[str], query_tiles: int = 1) -> list[Method]:
    """Dense attention, to which all ratios are, and those of ``kinds``; tiles fit the grid."""
    tile = VideoTiling.fit(grid).tile
    tiles: Any = dict(tile=tile, query_tiles=query_tiles)
    found = [Method("dense", Dense(), Dense())]
    slot: Any
    if "vsa" in kinds:
        for sparsity in (0.875, 0.9):
            slot = VSA(sparsity=sparsity, adapt=True, **tiles)
            found.append(Method(f"vsa {sparsity:.1%}", slot, replace(slot, sparsity=0.0)))
    if "bsa" in kinds:
        slot = BSA(sparsity=0.875, keep=KEEP, window=WINDOWS.get(tile), **tiles)
        whole = replace(slot, kv=Scaled(0.0), keep=1.0)
        found.append(Method(f"bsa {1 - (1 - slot.sparsity) * KEEP:.1%}", slot, whole))
    for method in found:
        method.slot.tiling(grid)  # raises where it does not fit
    return found


def dense_model(
    config: WanConfig, device: torch.device, dtype: torch.dtype, one_block: bool = False
) -> WanModel:
    """With random weights, none of which is zero; ``one_block`` for all layers saves memory."""
    model = _on_meta(config, one_block).to(dtype).to_empty(device=device)
    torch.manual_seed(0)
    model.init_weights()
    with torch.no_grad():
        for parameter in model.parameters():  # a fresh model says zero and hides most of itself
            parameter.add_(torch.randn_like(parameter), alpha=parameter[0].numel() ** -0.5)
    return model.requires_grad_(False)


def with_slot(
    model: WanModel, slot: Slot, *, layers: int | None = None, gates: float = GATES
) -> WanModel:
    """The model with another attention, on the same memory but for VSA's gates; or its first
    layers. Gates have weights of deviation ``gates``."""
    blocks = list(model.layers.values())
    layers = len(blocks) if layers is None else layers
    config = replace(model.config, attention=slot, layers=layers)
    other = _on_meta(config, one_block=len(set(blocks)) < len(blocks))
    other.load_state_dict(model.state_dict(), strict=False, assign=True)
    like = model.patch_embedding.weight
    for own in slots_of(other):
        own.to_empty(device=like.device).to(like.dtype)
        for parameter in own.parameters():
            nn.init.normal_(parameter, std=gates)
    return other.requires_grad_(False)


def _on_meta(config: WanConfig, one_block: bool) -> WanModel:
    with torch.device("meta"):
        model = WanModel(config)
    if one_block:
        model.layers = nn.ModuleDict(dict.fromkeys(model.layers, model.layers["0"]))
    return model


def slots_of(model: WanModel) -> list[nn.Module]:
    """Each once."""
    return list(dict.fromkeys(cast(Any, block).self_attn.slot for block in model.layers.values()))


def weight_bytes(model: WanModel) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def bytes_of(config: WanConfig, dtype: torch.dtype) -> int:
    """That its weights would take."""
    return weight_bytes(_on_meta(config, one_block=False).to(dtype))


def draw(config: WanConfig, grid: Grid, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """A noisy latent of one video, its level of noise, and text."""
    generator = torch.Generator(device).manual_seed(1)
    size = [tokens * side for tokens, side in zip(grid, config.patch)]
    shapes = (1, config.in_channels, *size), (1, WORDS, config.text_dim)
    x, text = (torch.randn(s, generator=generator, device=device).to(dtype) for s in shapes)
    return [x, torch.tensor([LEVEL], device=device), text]


def attention_inputs(model: WanModel, batch: list[Tensor]) -> tuple:
    """What the first layer's slot is called with."""
    first = with_slot(model, model.config.attention, layers=1)
    seen: list[tuple] = []
    (slot,) = slots_of(first)
    slot.register_forward_pre_hook(lambda _, given: seen.append(given))
    with torch.no_grad():
        first(*batch)
    return seen[0]


def compile_alone(module: nn.Module) -> Callable[..., Tensor]:
    return torch.compile(module, fullgraph=True, dynamic=False, backend=BACKEND)


def compile_blocks(model: WanModel) -> None:
    """As the trainer compiles a model: each block, which all share one program."""
    for block in dict.fromkeys(model.layers.values()):
        block.compile(fullgraph=True, dynamic=False, backend=BACKEND)


def forward_flops(config: WanConfig, grid: Grid, slot: Slot) -> tuple[int, int]:
    """FLOPs of one forward's blocks, and of self-attention among them, gates not included: a
    multiply and an add are two, and padding counts."""
    tiling = slot.tiling(grid)
    tokens = grid[0] * grid[1] * grid[2]
    rows = tokens if tiling is None else tiling.padded_tokens
    given: Any = dict(tiling=tiling, top_k=slot.top_k_for(tiling), q_rows=slot.q_rows_for(tiling))
    attention = attention_flops(tokens, config.heads, config.head_dim, **given)
    gates = sum(x.numel() for x in _gates(config, slot) if x.dim() == 2)
    weights = 6 * config.dim**2 + 2 * config.dim * config.ffn + gates  # that each row meets
    cross = 4 * WORDS * config.dim**2 + 4 * rows * WORDS * config.dim
    return config.layers * (2 * rows * weights + cross + attention), config.layers * attention


def _gates(config: WanConfig, slot: Slot) -> list[Tensor]:
    with torch.device("meta"):
        return list(slot.build(config.dim, config.heads, None).parameters())
