"""What precision the order of coarse scores needs: do rougher products choose other tiles?

    python -m benchmarks.studies.score_precision --run DIR

Takes q and k in bf16 from the demo's trained models on the grids of ``selections.py`` (DIR may be
the same; models are trained where it does not hold them yet) and from `video_like` at the sizes of
long videos. The same fp32 means of tiles give scores in fp64, which are the truth, and in
each of the `PRECISIONS`; TopK at 87.5 % and Threshold of the same k choose by them. Appends a row
for each input and rule to ``benchmarks/results/score_precision.jsonl``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.record import write_row
from benchmarks.studies.rounded_scores import PRECISIONS
from benchmarks.studies.selections import GRIDS, SPARSITY, seen, trained
from benchmarks.video_like import video_like
from flexsparse import Threshold, TopK, VideoTiling
from flexsparse.choice.choose import coarse_scores
from flexsparse.stages.pooling import pool_tiles

LIKE = VideoTiling((21, 45, 80), (3, 5, 4)), VideoTiling((40, 48, 80))
HEADS, DIM = 4, 128
SHARED = 8.0  # deviation, over channels, of what all keys share; of keys themselves it is about 1


@dataclass(frozen=True)
class Change:
    """How scores, and the choice by them, differ from the truth. Units of scores are standard
    deviations of the row's true scores; shares of rows are of all batches and heads."""

    error: float
    """Root mean square of the scores' error."""
    rows: float
    """Share of rows that choose otherwise: some tile wrongly, or leave some out wrongly."""
    tiles: float
    """Half of the number of such tiles, over tiles chosen in truth."""
    regret: float
    """The largest, over rows, of how far in truth the worst tile chosen wrongly lies under the best
    left out wrongly; under Threshold's line where none is left out (or that one over the line)."""
    mass: float
    """What the choice loses of the softmax over tiles: mean over rows."""
    worst_mass: float
    """The same in the worst row."""
    ties: float
    """Share of rows in which the last tile chosen and the best left out have equal scores."""
    shift: float | None
    """Index of a tile chosen wrongly less that of one left out wrongly, over n: means of each row,
    then over rows that have both. Below 0, early tiles are favoured. None without two such rows."""
    shift_error: float | None
    """Its standard error, over rows."""


def choice(rule: TopK | Threshold, scores: Tensor) -> Tensor:
    """The rule's tile map, of fp64 scores too, which the rule itself would compare in fp32."""
    if isinstance(rule, Threshold):
        return rule.admits(scores).scatter_(-1, scores.argmax(-1, keepdim=True), True)
    best = scores.sort(dim=-1, descending=True, stable=True).indices[..., : int(rule.k)]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)


def border(scores: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The worst score that is chosen and the best that is not, of each row."""
    lowest = scores.masked_fill(~chosen, math.inf).amin(-1)
    return lowest, scores.masked_fill(chosen, -math.inf).amax(-1)


def change(rule: TopK | Threshold, truth: Tensor, right: Tensor, scores: Tensor) -> Change:
    """From the fp64 scores ``truth`` and the choice ``right`` by them to ``scores``."""
    n, chosen = truth.shape[-1], choice(rule, scores)
    deviation = truth.std(-1, correction=0, keepdim=True)
    error = (scores - truth).div_(deviation).square_().mean().sqrt()
    differs = (chosen ^ right).any(-1)
    s, wrong, missed = truth[differs], (chosen & ~right)[differs], (right & ~chosen)[differs]
    worst, best = s.masked_fill(~wrong, math.inf).amin(-1), border(s, ~missed)[1]
    if isinstance(rule, Threshold):
        line = s.mean(-1) + deviation[differs][:, 0] * NormalDist().inv_cdf(1 - float(rule.k) / n)
        line = torch.minimum(line, s.amax(-1))  # one tile is admitted in any case
        worst, best = torch.minimum(worst, line), torch.maximum(best, line)
    regret = (best - worst) / deviation[differs][:, 0]
    lost = (s.softmax(-1) * (missed.double() - wrong.double())).sum(-1)
    both = wrong.any(-1) & missed.any(-1)
    index = torch.arange(n, dtype=torch.float64) / n
    of_wrong, of_missed = ((x[both] * index).sum(-1) / x[both].sum(-1) for x in (wrong, missed))
    shift, several = of_wrong - of_missed, both.sum() > 1
    return Change(
        error=error.item(),
        rows=differs.double().mean().item(),
        tiles=((wrong.sum() + missed.sum()) / (2 * right.sum())).item(),
        regret=max([0.0, *regret.tolist()]),
        mass=lost.sum().item() / differs.numel(),
        worst_mass=max([0.0, *lost.tolist()]),
        ties=torch.eq(*border(scores, chosen)).double().mean().item(),
        shift=shift.mean().item() if several else None,
        shift_error=shift.std().item() / math.sqrt(len(shift)) if several else None,
    )


def sources(folder: Path) -> Iterator[tuple[str, int | None, VideoTiling, Tensor, Tensor]]:
    """Name, layer, tiling, and q and k in bf16 of all that is measured."""
    for run, grids in GRIDS.items():
        model = trained(run, folder)
        for settings in grids:
            for layer, (tiling, q, k) in enumerate(seen(model, settings)):
                yield f"trained {run}", layer, tiling, q.bfloat16(), k.bfloat16()
    dist.destroy_process_group()
    for tiling in LIKE:
        q, k, _ = video_like(tiling, HEADS, DIM)
        yield "video_like", None, tiling, q.bfloat16(), k.bfloat16()
        yield "video_like, q x 64", None, tiling, 64 * q.bfloat16(), k.bfloat16()
        # What all keys share adds the same to all scores of a row, and changes no order.
        shared = SHARED * torch.randn(DIM, generator=torch.Generator().manual_seed(0))
        yield "video_like, a part in all keys", None, tiling, q.bfloat16(), (k + shared).bfloat16()


def measure(
    source: str,
    layer: int | None,
    tiling: VideoTiling,
    q: Tensor,
    k: Tensor,
    rule: TopK | Threshold,
) -> None:
    """Write a row, and print it."""
    q, k = pool_tiles(q, tiling), pool_tiles(k, tiling)
    truth = coarse_scores(q.double(), k.double())
    right = choice(rule, truth)
    deviation = truth.std(-1, correction=0)
    last, best_out = border(truth, right)
    gap = ((last - best_out) / deviation).flatten()
    changes = {p: change(rule, truth, right, scores(q, k)) for p, scores in PRECISIONS.items()}
    row = write_row(
        "score_precision",
        "cpu",
        source=source,
        layer=layer,
        video=tiling.video,
        tile=tiling.tile,
        tiles=tiling.num_tiles,
        heads=q.shape[1],
        dim=q.shape[-1],
        rule=type(rule).__name__,
        k=rule.k,
        offset=_short((truth.mean(-1).abs() / deviation).median().item()),
        gap={"median": _short(gap.median().item()), "p1": _short(gap.quantile(0.01).item())},
        precisions={p: {x: _short(v) for x, v in asdict(c).items()} for p, c in changes.items()},
    )
    print(*(row[x] for x in ("source", "layer", "tiles", "rule", "offset", "gap")))
    for name, found in row["precisions"].items():
        print(f"  {name:18}", *(f"{x} {v}" for x, v in found.items()), flush=True)


def _short(figure: float | None) -> float | None:
    return None if figure is None else float(f"{figure:.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="where the models are, or go")
    for source, layer, tiling, q, k in sources(parser.parse_args().run):
        top_k = round(tiling.num_tiles * (1 - SPARSITY))
        for rule in (TopK(top_k), Threshold(top_k)):
            measure(source, layer, tiling, q, k, rule)


if __name__ == "__main__":
    main()
