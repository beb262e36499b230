"""BSA's kernels on queries, pruning and restoring: how each is called, and what is right."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.gpu.cases import Setting
from benchmarks.gpu.layers import KEEP, window_of
from benchmarks.gpu.unit import HEADS, Moves, Unit, accurate, kernel
from flexsparse import prune_queries, restore_queries
from flexsparse.selfcheck.accuracy import error_ratios
from flexsparse.selfcheck.laws import Ratios, best_first, differ
from flexsparse.stages.queries import cosine_to_center, fill_slots, gather_rows


def prune(setting: Setting, tensors: list[Tensor], moves: Moves) -> Unit:
    tiling, window, q = setting.tiling, window_of(setting), tensors[0]
    windows = prune_queries(q, tiling, keep=KEEP, window=window).windows
    rows, center, quota, _ = windows.tables(q.device)

    def call(q: Tensor) -> list[Tensor]:
        kept = prune_queries(q, tiling, keep=KEEP, window=window)
        pooled = [] if kept.pooled is None else [kept.pooled]  # where the kernel makes them
        return [kept.q, kept.index, *pooled]

    def unlike(x: Tensor) -> Tensor:
        """How unlike its center each token is; NaN where a window has none, and for centers."""
        at = rows.flatten(1).expand(*x.shape[:2], -1, -1)
        x = gather_rows(x, at, tiling.rows, holes=False).unflatten(2, rows.shape)
        token = torch.arange(rows.shape[-1], device=x.device)
        contest = (rows >= 0) & (token != center[..., None])
        return torch.where(contest, -cosine_to_center(x, center), math.nan)

    def judge(found: list[Tensor], grad: Tensor) -> Ratios:
        out, index, *pooled, dq = (x[:, HEADS] for x in found)
        given = q[:, HEADS].detach().requires_grad_()
        due = gather_rows(given, index, tiling.rows, holes=True)
        (dq_due,) = torch.autograd.grad(due, given, grad[:, HEADS])
        chosen = (rows[..., None] == index[..., None, None, :]).any(-1) & (rows >= 0)
        exact, plain = (unlike(given.detach().to(x)) for x in (torch.float64, torch.float32))
        at_center = center[..., None].expand(*chosen.shape[:-1], 1)
        centers = (quota == 0) | chosen.gather(-1, at_center)[..., 0]
        right = torch.equal(chosen.sum(-1), quota.expand_as(centers)) and bool(centers.all())
        ratios = {
            "best first": best_first(chosen, exact, plain, dim=-1),
            "number and centers": 0.0 if right else math.inf,
            "rows": differ(out, due),
            "gradient": differ(dq, dq_due),
        }
        for means in pooled:
            of_tile = due.detach().unflatten(2, (tiling.num_tiles, -1))
            plain, exact = (
                of_tile.sum(3, dtype=x) / quota.sum(-1)[:, None]
                for x in (torch.float32, torch.float64)
            )
            ratios["means"] = error_ratios([means], [[plain]], [exact])[0]
        return ratios

    return kernel(call, [q], judge, moves)


def restore(setting: Setting, tensors: list[Tensor], moves: Moves) -> Unit:
    tiling, window = setting.tiling, window_of(setting)
    kept = prune_queries(tensors[0], tiling, keep=KEEP, window=window)
    slots = fill_slots(kept.index[:, HEADS], kept.windows, "nearest")

    def twin(x: Tensor) -> list[Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # gradients are added up
        rows = gather_rows(wide, slots, kept.windows.kept_rows, holes=tiling.has_padding)
        return [rows.to(x.dtype)]

    inputs = [kept.q.detach()]
    judge = accurate(inputs, twin, parts=tiling.num_tiles)
    return kernel(lambda x: [restore_queries(x, kept, tiling)], inputs, judge, moves)
