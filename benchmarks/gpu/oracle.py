"""What a layer must give: outputs and gradients of one head, tile by tile, in fp64.

A whole video's scores fit no memory, so the oracle takes a few query tiles at a time and gathers
the key tiles that they chose; the choice itself is the layer's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.cases import Method, Setting
from benchmarks.gpu.layers import KEEP, Layer, rule_of, window_of
from flexsparse import VideoTiling, bsa, prune_queries, reference, vsa
from flexsparse.bsa import bsa_tile_map
from flexsparse.choice.rules import Rule
from flexsparse.selfcheck.accuracy import error_ratios, recomputed_attention
from flexsparse.stages.queries import fill_slots
from flexsparse.vsa import vsa_tile_map

CHUNK = 1 << 28  # bytes of scores at a time
Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def check(
    method: Method,
    setting: Setting,
    layer: Layer,
    tensors: list[Tensor],
    heads: Sequence[int] = (0, -1),
) -> dict[str, float]:
    """Error over the largest allowed (``error_ratios`` of the self-check), by result.

    Results are the output and the gradients of the layer's inputs, of some heads, and the output
    without gradients, which is another program; right up to 1. The worst tile of the worst head
    counts. For layers on tile-major tensors, all but dense ones.
    """
    out = layer.attend(*layer.inputs)
    with torch.no_grad():
        alone = layer.attend(*layer.inputs)
    generator = torch.Generator(out.device).manual_seed(2)
    grad = torch.randn(out.shape, device=out.device, generator=generator).to(out.dtype)
    tiling = setting.tiling
    if _is_tiled(grad, tiling):
        grad = tiling.zero_padding(grad)
    sure = settled(method, setting, tensors)
    if sure is not None:  # [1, H, rows, 1]
        sure = sure.repeat_interleave(tiling.rows, -1)[..., None]
        grad = torch.where(sure, grad, 0)
    grads = torch.autograd.grad(out, layer.inputs, grad)
    names = ["out", "dq", "dk", "dv", "dgate_coarse", "dgate_fine"][: 1 + len(grads)]
    worst = dict.fromkeys([*names, "out_without_grad"], 0.0)
    for head in {h % out.shape[1] for h in heads}:
        one = slice(head, head + 1)
        given = [x.detach()[:, one] for x in (*layer.inputs, grad)]

        def results(dtype: torch.dtype, attention: Attention) -> list[Tensor]:
            found = _results(method, setting, tensors, head, given, dtype, attention)  # noqa: B023
            return [x.to(dtype) for x in (*found, found[0])]

        exact = results(torch.float64, reference.attention)
        plain = [results(out.dtype, a) for a in (reference.attention, recomputed_attention)]
        ours = [x.detach()[:, one] for x in (out, *grads, alone)]
        # what stands in the padding of an output or a gradient is nobody's
        ours, exact, *plain = (
            [tiling.zero_padding(x) if _is_tiled(x, tiling) else x for x in found]
            for found in (ours, exact, *plain)
        )
        if sure is not None:
            for found in (ours, exact, *plain):
                found[0], found[-1] = (
                    torch.where(sure[:, one], x, 0) for x in (found[0], found[-1])
                )
        ratios = error_ratios(ours, plain, exact, given, parts=tiling.num_tiles)
        for name, ratio in zip(worst, ratios, strict=True):
            worst[name] = max(worst[name], ratio, key=lambda x: (x != x, x))  # NaN is worst
    return worst


def settled(method: Method, setting: Setting, tensors: list[Tensor]) -> Tensor | None:
    """Which query tiles choose the same however scores are rounded: bool ``[1, H, n]``.

    A compiled layer makes its choice in other kernels than the oracle asks; where two scores, or a
    score and a threshold, are nearly equal, it may be another. Of other tiles' rows nothing is
    asked. None for methods whose choice is made before.
    """
    tiling, size = setting.tiling, method.query_tiles
    if method.kind in ("vsa", "vsa_ungated"):
        scores = vsa.block_scores(tensors[0], tensors[1], tiling, size)
    elif method.kind in ("bsa", "bsa_top"):
        kept = prune_queries(tensors[0], tiling, keep=KEEP, window=window_of(setting))
        scores = bsa.block_scores(kept, tensors[1], tiling, size)
    else:
        return None
    same = settled_rows(rule_of(method, setting), scores)
    return same.repeat_interleave(size, -1)[..., : tiling.num_tiles]


def settled_rows(rule: Rule, scores: Tensor) -> Tensor:
    """Which rows of fp32 scores ``[..., n]`` a rule treats the same however they are rounded."""
    slack = 1e-5 * scores.abs().amax()
    generator = torch.Generator(scores.device).manual_seed(3)
    chosen = rule(scores)
    same = torch.ones_like(chosen[..., 0])
    for _ in range(8):  # what a hundredth of this slack flips, each draw flips about half of
        noise = torch.rand(scores.shape, device=scores.device, generator=generator)
        same &= (rule(scores + slack * (2 * noise - 1)) == chosen).all(-1)
    return same


def _is_tiled(x: Tensor, tiling: VideoTiling) -> bool:
    return x.shape[2] == tiling.padded_tokens  # kept queries and their gradients are not


def _results(
    method: Method,
    setting: Setting,
    tensors: list[Tensor],
    head: int,
    given: list[Tensor],
    dtype: torch.dtype,
    attention: Attention,
) -> list[Tensor]:
    q, k, v, *gates, g = given
    tiling = setting.tiling
    choice = dict(query_tiles=method.query_tiles)
    rule = rule_of(method, setting)
    if method.kind.startswith("bsa"):
        kept = prune_queries(tensors[0], tiling, keep=KEEP, window=window_of(setting))
        chosen = bsa_tile_map(kept, tensors[1], tiling, kv=rule, **choice)[0, head]
        if method.kind == "bsa_fine":
            return of_head(q, k, v, g, chosen, tiling, dtype, attention)
        slots = fill_slots(kept.index[:, head : head + 1], kept.windows, "nearest")[0, 0]
        index = kept.index[0, head].long()
        return _pruned(q, k, v, g, index, slots, chosen, tiling, dtype, attention)
    chosen = vsa_tile_map(tensors[0], tensors[1], tiling, top_k=rule, **choice)[0, head]
    if not gates:
        return of_head(q, k, v, g, chosen, tiling, dtype, attention)
    return _gated(q, k, v, gates, g, chosen, tiling, dtype, attention)


def of_head(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    chosen: Tensor,
    tiling: VideoTiling,
    dtype: torch.dtype,
    attention: Attention,
) -> list[Tensor]:
    """Output and gradients of q, k and v, computed in ``dtype`` and added up over tiles in fp32 at
    least: q and g ``[1, 1, n * q_rows, D]``, k and v ``[1, 1, n * rows, D]``, chosen bool ``[n,
    n]``, query tiles by key tiles."""
    wide = torch.promote_types(dtype, torch.float32)
    n, rows, dim = tiling.num_tiles, tiling.rows, q.shape[-1]
    q, g = (x.to(wide).view(n, -1, dim) for x in (q, g))
    k, v = (x.to(wide).view(n, rows, dim).requires_grad_() for x in (k, v))
    valid = tiling.valid(q.device).view(n, rows)
    counts = chosen.sum(-1)
    most = int(counts.max())
    tiles = chosen.int().argsort(dim=-1, descending=True, stable=True)[:, :most]
    listed = torch.arange(most, device=q.device) < counts[:, None]
    size = max(1, CHUNK // (8 * most * rows * q.shape[1]))
    out, dq, dk, dv = (torch.zeros_like(x, requires_grad=False) for x in (q, q, k, v))
    for some in torch.arange(n, device=q.device).split(size):
        queries = q[some].requires_grad_()
        keys, values = (x[tiles[some]].flatten(1, 2).to(dtype)[:, None] for x in (k, v))
        see = (listed[some][..., None] & valid[tiles[some]]).flatten(1)[:, None, None]
        part = attention(queries.to(dtype)[:, None], keys, values, see)[:, 0]
        a, b, c = torch.autograd.grad(part, (queries, k, v), g[some].to(dtype))
        out[some], dq[some] = part.detach().to(wide), a
        dk += b
        dv += c
    return [x.flatten(0, 1)[None, None] for x in (out, dq, dk, dv)]


def _gated(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: list[Tensor],
    g: Tensor,
    chosen: Tensor,
    tiling: VideoTiling,
    dtype: torch.dtype,
    attention: Attention,
) -> list[Tensor]:
    coarse_gate, *fine_gates = (x.to(dtype) for x in gates)
    fine_gate = fine_gates[0] if fine_gates else torch.ones_like(coarse_gate)
    g = g.to(dtype)
    fine, *of_fine = of_head(q, k, v, g * fine_gate, chosen, tiling, dtype, attention)
    inputs = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    counts = tiling.counts(q.device)[:, None]
    pooled = [x.unflatten(2, (-1, tiling.rows)).sum(3) / counts for x in inputs]
    qc, kc, vc = (x.to(dtype) for x in pooled)
    scores = qc @ kc.mT / q.shape[-1] ** 0.5
    coarse = (scores.softmax(-1) @ vc).repeat_interleave(tiling.rows, 2)
    of_coarse = torch.autograd.grad(coarse, inputs, g * coarse_gate)
    coarse = coarse.detach()
    out = coarse * coarse_gate + fine * fine_gate
    grads = [a + b for a, b in zip(of_fine, of_coarse)]
    return [out, *grads, g * coarse, *([g * fine] if fine_gates else [])]


def _pruned(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    index: Tensor,
    slots: Tensor,
    chosen: Tensor,
    tiling: VideoTiling,
    dtype: torch.dtype,
    attention: Attention,
) -> list[Tensor]:
    """``index [n, kept]``: the row of its tile that each kept query came from, -1 in holes;
    ``slots [n, rows]``: the kept query whose output each row takes, -1 in padding."""
    wide = torch.promote_types(dtype, torch.float32)
    n, rows, dim = *slots.shape, q.shape[-1]
    stays = F.one_hot(index.clamp(min=0), rows).to(wide) * (index >= 0)[..., None]
    takes = F.one_hot(slots.clamp(min=0), index.shape[1]).to(wide) * (slots >= 0)[..., None]
    q, g = (x.to(wide).view(n, rows, dim) for x in (q, g))
    queries, grads = (x.to(dtype).view(1, 1, -1, dim) for x in (stays @ q, takes.mT @ g))
    out, dq, dk, dv = of_head(queries, k, v, grads, chosen, tiling, dtype, attention)
    out, dq = (x.to(wide).view(n, -1, dim) for x in (out, dq))
    spread = [x.flatten(0, 1)[None, None] for x in (takes @ out, stays.mT @ dq)]
    return [*spread, dk, dv]
