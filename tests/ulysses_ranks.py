"""What test_ulysses.py runs in four processes: every law by pairs of ranks, and by all four.

Ranks save what they have; the tests put it together, and compare.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.utils._python_dispatch import TorchDispatchMode

from flexsparse import Threshold, VideoTiling
from flexsparse.nn import BSA, VSA
from flexsparse.nn.ulysses import Ulysses
from flexsparse.slots import BSA as BSASlot
from flexsparse.slots import VSA as VSASlot
from flexsparse.slots import Dense, DenseAttention
from models.video_dit import VideoDiTConfig
from models.wan import WanConfig
from train.sparsity.attention_stats import attention_stats

WORLD = 4
DEGREES = 2, 4
BATCH, HEADS, DIM = 2, 8, 48
TILING = VideoTiling((3, 5, 6), (2, 2, 3), text=20)  # 12 tiles and 2 of text, of 16 rows
LENGTHS = torch.tensor([13, 20])
ROWS = {2: (101, 123), 4: (37, 1, 150, 36)}  # within tiles, and before the text
RASTER_ROWS = {2: (37, 73), 4: (20, 1, 60, 29)}

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "dense": DenseAttention,
    "dense with text": lambda: BSA(None),
    "dense with gates": lambda: VSA(DIM, HEADS, None, head_dim=16),
    "vsa": lambda: VSA(DIM, HEADS, 3, head_dim=16),
    "vsa by two tiles": lambda: VSA(DIM, HEADS, 3, head_dim=16, query_tiles=2),
    "bsa": lambda: BSA(Threshold(3), keep=0.5, window=(1, 2, 3)),
    "bsa with fewer keys": lambda: BSA(3, keep=0.3),
}
MODELS: dict[str, Any] = {
    "video_dit": VideoDiTConfig(
        channels=4,
        video=(3, 5, 6),
        patch=(1, 1, 1),
        dim=64,
        heads=4,
        layers=2,
        ffn=64,
        context_dim=8,
        attention=VSASlot(top_k=3, tile=(2, 2, 3)),
    ),
    "wan": WanConfig(
        in_channels=4,
        out_channels=4,
        video=(3, 10, 12),
        dim=64,
        heads=4,
        layers=2,
        ffn=64,
        text_dim=8,
        freq_dim=32,
        attention=BSASlot(kv=Threshold(3), tile=(2, 2, 3), window=(1, 2, 3)),
    ),
}
MODELS["raster"] = replace(MODELS["video_dit"], attention=Dense())
MODEL_ROWS = {2: (101, 91), 4: (37, 1, 118, 36)}
MODEL_RASTER_ROWS = {2: (20, 70), 4: (37, 1, 12, 40)}


@dataclass(frozen=True)
class Drawn:
    """Tensors of 4 x these heads, whose rows four ranks share as `quarters` says, or two."""

    heads: tuple[int, ...]
    batch: int
    dim: int
    quarters: tuple[int, int, int, int]
    seed: int
    dtype: torch.dtype

    def rows(self, degree: int) -> tuple[int, ...]:
        a, b, c, d = self.quarters
        return (a, b, c, d) if degree == 4 else (a + b, c + d)

    def whole(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        shapes = [(self.batch, 4 * h, sum(self.quarters), self.dim) for h in self.heads]
        return [torch.randn(shape, generator=generator).to(self.dtype) for shape in shapes]


class Sent(TorchDispatchMode):
    """Notes of each all-to-all how many numbers go to each rank."""

    def __init__(self) -> None:
        super().__init__()
        self.splits: list[list[int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops._c10d_functional.all_to_all_single.default:
            self.splits.append([args[0][0].numel() * rows for rows in args[2]])
        return func(*args, **(kwargs or {}))


def layer_inputs(name: str) -> tuple[list[Tensor], VideoTiling | None, Tensor | None]:
    """x, q, k and v, with NaN wherever no token is; tiling and text lengths."""
    raster = name == "dense"
    tokens = TILING.tokens if raster else TILING.padded_tokens
    kv_heads = HEADS // 2 if name == "bsa with fewer keys" else HEADS
    torch.manual_seed(1)
    x = torch.randn(BATCH, tokens, DIM)
    heads = [torch.randn(BATCH, h, tokens, 16) for h in (HEADS, kv_heads, kv_heads)]
    if raster:
        return [x, *heads], None, None
    valid = TILING.valid(text_lengths=LENGTHS)[..., None]
    soiled = [torch.where(valid[:, None], y, torch.nan) for y in heads]
    return [torch.where(valid, x, torch.nan), *soiled], TILING, LENGTHS


def layer_results(
    name: str,
    dtype: torch.dtype = torch.float32,
    shards: Ulysses | None = None,
) -> dict:
    """A layer's output and gradients, of whole sequences or of this rank's rows; its choice."""
    torch.manual_seed(0)
    layer = LAYERS[name]().to(dtype)
    inputs, tiling, lengths = layer_inputs(name)
    weight = torch.randn(inputs[1].shape)
    options = {}
    if shards is not None:
        inputs = [shards.shard(x, -2) for x in inputs]
        weight, options = shards.shard(weight, -2), {"shards": shards}
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    with Sent() as forward:
        out = layer(*leaves, tiling, lengths, **options)
    wanted, rule = leaves + list(layer.parameters()), dict(materialize_grads=True)
    with Sent() as backward:
        grads = torch.autograd.grad((out * weight).sum(), wanted, allow_unused=True, **rule)
    q, k = leaves[1:3] if shards is None else shards.to_heads(*leaves[1:3])
    return {
        "rows": [out.detach(), *grads[:4]],
        "parameters": list(grads[4:]),
        "choice": tiling and layer.choose(q, k, tiling),
        "sent": [forward.splits, backward.splits],
        "plain": type(out) is Tensor and out.transpose(1, 2).is_contiguous(),
    }


def awake(name: str) -> tuple[nn.Module, list[Tensor]]:
    """A model with no weight at zero, as a fresh one has, and a batch for it."""
    torch.manual_seed(0)
    config = MODELS[name]
    model = config.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=parameter.shape[-1] ** -0.5)
    x = torch.randn(BATCH, 4, *config.video)
    return model, [x, torch.rand(BATCH), torch.randn(BATCH, 5, 8)]


def model_results(model: nn.Module, batch: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of the parameters."""
    out = model(*batch)
    weight = torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), list(model.parameters()))]


def shared_model(name: str, group: ProcessGroup) -> dict:
    model, batch = awake(name)
    model.sequence_group = group
    rows = (MODEL_RASTER_ROWS if name == "raster" else MODEL_ROWS)[group.size()]
    uneven = Ulysses(group.group_name, group.rank(), rows)
    with mock.patch.object(Ulysses, "even", lambda given, length: uneven):
        results = model_results(model, batch)
        stats = attention_stats(model, *batch)
    return {"results": results, "stats": stats, "even": model_results(model, batch)}


def travelled(drawn: Drawn, group: ProcessGroup) -> dict:
    """What to_heads, its inverse, gather and gather_heads make of the drawn tensors."""
    shards = Ulysses(group.group_name, group.rank(), drawn.rows(group.size()))
    whole = drawn.whole()
    mine = [shards.shard(x, 2).requires_grad_() for x in whole]
    heads = shards.to_heads(*mine)
    back = [shards.to_sequence(x) for x in heads]
    gathered = shards.gather(mine[0], 2)
    (gradient,) = torch.autograd.grad((gathered * whole[0]).sum(), mine[0])
    return {
        "heads": [x.detach() for x in heads],
        "back": [torch.equal(x, y) for x, y in zip(back, mine, strict=True)],
        "gathered": torch.equal(gathered, whole[0]),
        "gradient": torch.equal(gradient, mine[0]),
        "gathered heads": torch.equal(shards.gather_heads(heads[0]), whole[0]),
    }


def run(rank: int, folder: str, drawn: list[Drawn]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(minutes=5),
    )
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    for degree in DEGREES:
        group = pairs[rank // 2] if degree == 2 else dist.group.WORLD
        found: dict = {"drawn": [travelled(one, group) for one in drawn]}
        for name in LAYERS:
            rows = RASTER_ROWS if name == "dense" else ROWS
            shards = Ulysses(group.group_name, group.rank(), rows[degree])
            found[name] = layer_results(name, shards=shards)
        for name in MODELS:
            found[name] = shared_model(name, group)
        torch.save(found, Path(folder, f"{degree}_{rank}.pt"))
    dist.destroy_process_group()
