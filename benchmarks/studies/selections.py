"""How evenly selections use key tiles, and what that does to FlexAttention's backward kernel.

    python -m benchmarks.studies.selections --run DIR

Trains the demo's dense and VSA models in DIR, on the demo's footage, where DIR does not hold them
yet (minutes). Shows them held-out clips, VSA also on a grid twice as long in every direction (dense
attention would take minutes on it), and makes tile maps of every layer's q and k, for TopK at
87.5 % and for Threshold of the same k. Then the same for `video_like` and for white noise. Three
clips at two noise levels take the place of heads, of which the models have two. Appends rows to
``benchmarks/results/selections.jsonl``.

A column is the query tiles that chose a key tile. What columns do to the kernel is a simulation, in
products of tiles and with nothing of a GPU but its number of slots: see `imbalance`.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.record import write_row
from benchmarks.video_like import video_like
from flexsparse import Threshold, TopK, VideoTiling
from flexsparse.vsa import vsa_tile_map
from train.data.fetch import fetch_clips
from train.data.loader import open_clips
from train.demo.measure import plain_copy, slot_calls
from train.demo.model import PixelDiT, PixelDiTConfig
from train.demo.run import noisy, one_a_caption
from train.demo.settings import CPU, RUNS, Settings
from train.weights.checkpoint import Checkpointer

STEPS, CLIPS, TIMES = 144, 3, (0.3, 0.7)
LARGER = replace(CPU, video=(32, 128, 192), fps=2 * CPU.fps)  # the same moments, seen more closely
GRIDS = {"dense": (CPU,), "vsa": (CPU, LARGER)}
SPARSITY, HEADS, DIM = 0.875, 12, 64
LIKE = (
    VideoTiling((16, 28, 52)),
    VideoTiling((21, 30, 52), (3, 5, 4)),
    VideoTiling((32, 32, 48)),
    VideoTiling((40, 48, 32)),
)
SLOTS = (132, 264)  # one or two blocks at a time on each multiprocessor of an H100
DKDV, DQ = 4, 3  # products for a pair of tiles: S, dP, dV, dK; and S, dP, dQ


@dataclass(frozen=True)
class Evenness:
    """Of the lengths of columns; means over batch and heads of each head's own."""

    max_over_mean: float
    p99_over_mean: float
    gini: float
    unchosen: float
    """Share of key tiles that no query tile chose."""


@dataclass(frozen=True)
class Imbalance:
    """When the last block ends, over when it would if the slots could share all work evenly."""

    launch_order: float
    longest_first: float
    bound: float
    """No order can be better than this: no block can end sooner than it takes alone."""

    @property
    def gain(self) -> float:
        """Percent of the time in launch order that no order could save more than."""
        return 100 * (1 - self.bound / self.launch_order)


def evenness(tile_map: Tensor) -> Evenness:
    """That of the columns of a tile map, bool ``[B, H, n, n]``, query tiles by key tiles."""
    columns = tile_map.sum(-2).double().sort(-1).values
    n, mean = columns.shape[-1], columns.mean(-1)
    rank = torch.arange(1, n + 1, device=columns.device, dtype=columns.dtype)
    found = (
        columns[..., -1] / mean,
        columns.quantile(0.99, dim=-1) / mean,
        ((2 * rank - n - 1) * columns).sum(-1) / (n * n * mean),
        (columns == 0).double().mean(-1),
    )
    return Evenness(*(x.mean().item() for x in found))


def launch_costs(tile_map: Tensor) -> list[int]:
    """Products of every block of the backward kernel, in the order in which they start.

    The grid of torch 2.11's template is ``(dK and dV blocks, then dQ blocks; batch; key heads)``,
    the first running fastest. A tile is one block here, and each query head has a key head.
    """
    columns, rows = tile_map.sum(-2), tile_map.sum(-1)
    costs = torch.cat([DKDV * columns, DQ * rows], -1)
    return costs.transpose(0, 1).flatten().tolist()


def makespan(costs: Sequence[int], slots: int) -> int:
    """When the last block ends, if each starts in its turn, on the slot that is free first."""
    free = [0] * slots
    for cost in costs:
        heapq.heapreplace(free, free[0] + cost)
    return max(free)


def imbalance(tile_map: Tensor, slots: int) -> Imbalance:
    """What uneven columns and rows cost the backward of a tile map ``[B, H, n, n]``.

    A block takes as long as it has products to make; loading, storing and what slots take from
    each other are left out.
    """
    costs = launch_costs(tile_map)
    even = sum(costs) / slots
    longest_first = sorted(costs, reverse=True)
    ends = makespan(costs, slots), makespan(longest_first, slots), max(even, longest_first[0])
    return Imbalance(*(end / even for end in ends))


def trained(run: str, folder: Path) -> PixelDiT:
    """The demo's model, from `folder / run`; trained into it as far as it is not."""
    config = CPU.trainer(run, fetch_clips(), folder, STEPS)
    trainer = replace(config, checkpoint=Checkpointer.Config(interval=STEPS)).build()
    try:
        trainer.train()
        return plain_copy(trainer)
    finally:
        trainer.close()


def seen(model: PixelDiT, settings: Settings) -> Iterator[tuple[VideoTiling, Tensor, Tensor]]:
    """The tiling and tile-major q and k of each layer, with clips and times among the heads.

    No weight depends on the grid: the model is built anew for the clips of `settings`.
    """
    larger = PixelDiTConfig(replace(model.config, video=settings.video)).build().eval()
    larger.load_state_dict(model.state_dict())
    data = settings.trainer("vsa", fetch_clips(), Path(), STEPS).dataloader
    clips = one_a_caption(open_clips(data, "validation"), CLIPS)
    calls = [slot_calls(larger, *noisy(clip, larger, t)) for clip in clips for t in TIMES]
    for layer in zip(*calls):
        tiling = RUNS["vsa"].tiling(larger.config.grid)
        inputs = [call.inputs for call in layer]
        q, k = (torch.cat([x[i] for x in inputs], 1) for i in (1, 2))
        if inputs[0][-1] is None:  # dense attention, in raster order
            q, k = tiling.to_tiles(q), tiling.to_tiles(k)
        yield tiling, q, k


def sources(folder: Path) -> Iterator[tuple[str, int | None, VideoTiling, Tensor, Tensor]]:
    """All that is measured: name, layer, tiling, q and k."""
    for run, grids in GRIDS.items():
        model = trained(run, folder)
        for settings in grids:
            for layer, (tiling, q, k) in enumerate(seen(model, settings)):
                yield f"trained {run}", layer, tiling, q, k
    dist.destroy_process_group()
    for tiling in LIKE:
        q, k, _ = video_like(tiling, HEADS, DIM)
        yield "video_like", None, tiling, q, k
        noise = torch.Generator().manual_seed(0)
        q, k = (torch.randn(q.shape, generator=noise) for _ in range(2))
        yield "white noise", None, tiling, q, k


def measure(
    source: str,
    layer: int | None,
    tiling: VideoTiling,
    q: Tensor,
    k: Tensor,
    rule: TopK | Threshold,
) -> str:
    """Write a row; the line of the table."""
    tile_map = vsa_tile_map(q, k, tiling, top_k=rule)
    even, rows = evenness(tile_map), tile_map.sum(-1)
    orders = {slots: imbalance(tile_map, slots) for slots in SLOTS}
    spread = [rows.min().item(), round(rows.double().mean().item(), 1), rows.max().item()]
    name = type(rule).__name__
    write_row(
        "selections",
        "cpu",
        source=source,
        layer=layer,
        video=tiling.video,
        tile=tiling.tile,
        tiles=tiling.num_tiles,
        heads=tile_map.shape[1],
        rule=name,
        k=rule.k,
        columns=_rounded(**vars(even)),
        rows=spread,
        order={s: _rounded(gain_percent=o.gain, **vars(o)) for s, o in orders.items()},
    )
    shown = (
        f"{source:14}{'' if layer is None else layer:>6}{tiling.num_tiles:>6} {name:10}"
        f"{even.max_over_mean:8.2f}{even.p99_over_mean:8.2f}{even.gini:7.2f}{even.unchosen:8.1%}"
        f"{spread[0]:6}{spread[1]:7}{spread[2]:5}"
    )
    for o in orders.values():
        shown += f"{o.launch_order:9.3f}{o.longest_first:8.3f}{o.gain:6.1f}%"
    return shown


def _rounded(**figures: float) -> dict[str, float]:
    return {name: round(figure, 3) for name, figure in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="where the models are, or go")
    lines = []
    for source, layer, tiling, q, k in sources(parser.parse_args().run):
        top_k = round(tiling.num_tiles * (1 - SPARSITY))
        for rule in (TopK(top_k), Threshold(top_k)):
            lines.append(measure(source, layer, tiling, q, k, rule))
    print("columns: mean over heads; rows: tiles admitted; order: end of the last block over even")
    print(f"{'':37}{'columns':>29}{'rows':>18}" + "".join(f"{s:>18} slots" for s in SLOTS))
    order = f"{'launch':>9}{'longest':>8}{'gain':>7}"
    print(
        f"{'source':14}{'layer':>6}{'tiles':>6} {'rule':10}{'max':>8}{'p99':>8}{'Gini':>7}"
        f"{'none':>8}{'least':>6}{'mean':>7}{'most':>5}" + order * len(SLOTS)
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
