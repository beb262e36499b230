"""BSA's query side: prune each tile's queries to those unlike their center, and restore rows."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from flexsparse.checks import check_text_lengths
from flexsparse.choice.selection import sort_keys
from flexsparse.choice.text import join, split, zero_text_padding
from flexsparse.stages.windows import Windows
from flexsparse.tiling import VideoTiling

if sys.platform == "linux":  # where the package depends on triton
    from flexsparse.kernels import prune_queries as prune_kernels
    from flexsparse.kernels import restore_rows as restore_kernels

Fill = Literal["nearest", "center"]


@dataclass(frozen=True)
class KeptQueries:
    """The queries that stay, tile by tile.

    Attributes:
        q: ``[B, H, num_tiles * windows.kept_rows, D]``, zeros in holes; then the rows of the text,
            of which none is pruned.
        index: the row of its tile that each came from, -1 in holes: int32
            ``[B, H, num_tiles, windows.kept_rows]``.
        windows: what they were pruned by.
        pooled: ``[B, H, num_tiles, D]``, the mean of each tile's kept queries in fp32 (fp64 for
            fp64), where the kernel that chose them made it; None: not made yet. No gradient flows
            through it.
        text_lengths: those of the batch, where they differ.
        factor: what ``q`` was multiplied by as it was written, by :func:`prune_scaled`.
    """

    q: Tensor
    index: Tensor
    windows: Windows
    pooled: Tensor | None = None
    text_lengths: Tensor | None = None
    factor: float = 1.0

    @property
    def q_rows(self) -> int:
        """Rows of ``q`` that stand for a tile."""
        return self.windows.tiling.rows if self.windows.keeps_all else self.windows.kept_rows

    @property
    def mask(self) -> Tensor:
        """Which rows they came from: bool ``[B, H, padded_tokens]``."""
        tiling, rows = self.windows.tiling, self.windows.tiling.rows
        stays = self.index.new_zeros(*self.index.shape[:3], rows + 1, dtype=torch.bool)
        stays.scatter_(-1, self.index.long() % (rows + 1), True)  # holes write past the end
        stays = stays[..., :rows].flatten(-2)
        if not tiling.text:
            return stays
        words = tiling.valid(stays.device, self.text_lengths)[..., tiling.video_rows :]
        words = words.view(-1, 1, words.shape[-1]).expand(*stays.shape[:2], -1)
        return torch.cat((stays, words), -1)

    def check_tiling(self, tiling: VideoTiling) -> None:
        """Raise ValueError if they were pruned in another tiling."""
        own = self.windows.tiling
        if tiling != own:
            raise ValueError(
                f"the queries were pruned in {own}, not in {tiling}: pass that tiling, or prune in "
                "this one"
            )


def prune_queries(
    q: Tensor,
    tiling: VideoTiling,
    *,
    keep: float = 0.5,
    window: tuple[int, int, int] | None = None,
    text_lengths: Tensor | None = None,
) -> KeptQueries:
    """Keep the queries least similar to their window's center, and the center (BSA, 2509.01085).

    Similarity is the cosine between a query and its window's center token, in fp32 (fp64 for
    fp64); a query of length 0 has similarity 0. Of equal similarities the lower index stays. The
    number that stays depends on the tiling alone, see :class:`Windows`. ``keep=1`` is the identity.

    Args:
        q: tile-major ``[B, H, padded_tokens, D]``; padding is never read.
        tiling: the shape.
        keep: fraction of each window's queries that stays, in (0, 1].
        window: a divisor of the tile; None is the whole tile.
        text_lengths: where texts of the batch differ in length, int ``[B]``.

    Returns:
        KeptQueries; ``.q`` is differentiable in q, the choice has no gradient.

    Raises:
        ValueError: q is not tile-major, or ``keep`` or ``window`` do not fit.

    >>> tiling = VideoTiling((8, 8, 8))
    >>> kept = prune_queries(torch.randn(1, 2, tiling.padded_tokens, 16), tiling, window=(2, 2, 2))
    >>> kept.q.shape, kept.index.shape
    (torch.Size([1, 2, 256, 16]), torch.Size([1, 2, 8, 32]))
    """
    return prune_scaled(q, tiling, 1.0, keep=keep, window=window, text_lengths=text_lengths)


def prune_scaled(
    q: Tensor,
    tiling: VideoTiling,
    factor: float,
    *,
    keep: float,
    window: tuple[int, int, int] | None,
    text_lengths: Tensor | None = None,
) -> KeptQueries:
    """:func:`prune_queries` whose kernel multiplies what it writes; nothing else does."""
    tiling.check_tiled(q, "q")
    if q.dim() != 4:
        raise ValueError(f"q must be [batch, heads, tokens, dim], not {tuple(q.shape)}")
    if not q.numel():
        raise ValueError(f"q must not be empty: {tuple(q.shape)}")
    windows = Windows(tiling, keep, window)
    check_text_lengths(text_lengths, tiling, q)
    if tiling.text:
        video, words = split(q, tiling)
        kept = prune_queries(video, tiling.of_video, keep=keep, window=window)
        rows = torch.cat((kept.q, zero_text_padding(words, tiling, text_lengths)), -2)
        return replace(kept, q=rows, windows=windows, text_lengths=text_lengths)
    if windows.keeps_all:
        row = torch.arange(tiling.rows, dtype=torch.int32, device=q.device)
        index = torch.where(row < tiling.counts(q.device)[:, None], row, -1)
        return KeptQueries(q, index.expand(*q.shape[:2], -1, -1), windows)
    if q.is_cuda:
        sizes = windows.keep, windows.per_window, windows.kept_rows
        rows, index, pooled = prune_kernels.prune_queries(q, *_shape(windows), *sizes, factor)
        return KeptQueries(rows, index, windows, pooled, factor=factor)
    index = choose_queries(q.detach(), windows)
    rows = gather_rows(q, index, tiling.rows, holes=windows.has_holes)
    return KeptQueries(rows, index, windows)


def restore_queries(
    out: Tensor, kept: KeptQueries, tiling: VideoTiling, *, fill: Fill = "nearest"
) -> Tensor:
    """Give every query of the video a row of ``out``: its own if it stayed, else another's.

    Kept rows come back bit-equal. A dropped query takes the row of the kept one that is nearest in
    its window, by Euclidean distance in the grid, ties to the lower index (``"nearest"``; BSA in
    the reading of a secondary source), or its window's center's (``"center"``, ours: it was
    dropped for being similar to it). Its gradient flows to the row that it took.

    Args:
        out: ``[B, H, rows of kept.q, Dv]``, attention of ``kept.q``.
        kept: from :func:`prune_queries`.
        tiling: the shape that they were pruned in.
        fill: where dropped rows come from.

    Returns:
        tile-major ``[B, H, padded_tokens, Dv]``, zeros in padding.

    Raises:
        ValueError: ``kept`` of another tiling, ``out`` of another length, an unknown fill.
    """
    kept.check_tiling(tiling)
    windows, due = kept.windows, kept.q.shape[:3]
    if fill not in get_args(Fill):
        raise ValueError(f"fill={fill!r} must be one of {', '.join(map(repr, get_args(Fill)))}")
    if out.dim() != 4 or out.shape[:3] != due:
        raise ValueError(
            f"out is {tuple(out.shape)}; attention of the kept queries is {(*due, 'Dv')}"
        )
    if tiling.text:
        own = video_queries(kept)
        video, words = out[..., : own.q.shape[2], :], out[..., own.q.shape[2] :, :]
        video = restore_queries(video, own, tiling.of_video, fill=fill)
        return join(video, zero_text_padding(words, tiling, kept.text_lengths))
    if windows.keeps_all:
        return tiling.zero_padding(out)
    if out.is_cuda:
        how = windows.per_window, fill == "center"
        return restore_kernels.restore_rows(out, kept.index, *_shape(windows), *how)[0]
    slots = fill_slots(kept.index, windows, fill)
    wide = out.to(torch.promote_types(out.dtype, torch.float32))  # its gradients are added up
    rows = gather_rows(wide, slots, windows.kept_rows, holes=tiling.has_padding)
    return rows.to(out.dtype)


def video_queries(kept: KeptQueries) -> KeptQueries:
    """Those of the video alone."""
    windows = replace(kept.windows, tiling=kept.windows.tiling.of_video)
    rows = kept.q[..., : windows.tiling.num_tiles * kept.q_rows, :]
    return replace(kept, q=rows, windows=windows, text_lengths=None)


def _shape(windows: Windows) -> tuple[list[int], list[int], int, list[int]]:
    """The shape as kernels take it: video, tile, rows, window."""
    tiling = windows.tiling
    return list(tiling.video), list(tiling.tile), tiling.rows, list(windows.size)


def choose_queries(q: Tensor, windows: Windows) -> Tensor:
    """The rows of each tile that stay: int32 ``[B, H, num_tiles, kept_rows]``, -1 in holes.

    The choice is topk on distinct integer keys, as that of tiles is, for the same reasons.
    """
    rows, center, quota, _ = windows.tables(q.device)
    n, W, V = rows.shape
    token, slot = (torch.arange(x, device=q.device) for x in (V, windows.per_window))
    of_window = rows.expand(*q.shape[:2], n, W, V)
    x = gather_rows(q, of_window.flatten(-2), windows.tiling.rows, holes=False)
    similarity = cosine_to_center(x.unflatten(2, (n, W, V)), center)
    similarity = torch.where(similarity.isnan(), -2, similarity)  # NaN stays, and shows
    similarity = torch.where(token == center[..., None], -3, similarity)
    similarity = torch.where(rows < 0, torch.inf, similarity)
    best = sort_keys(-similarity).topk(windows.per_window, dim=-1).indices
    best = torch.where(slot < quota[..., None], best, V).sort(-1).values
    kept = F.pad(of_window, (0, 1), value=-1).gather(-1, best).flatten(-2)
    return F.pad(kept, (0, windows.kept_rows - kept.shape[-1]), value=-1).int()


def cosine_to_center(x: Tensor, center: Tensor) -> Tensor:
    """Of each window's tokens to its center: ``[.., n, W, V, D]``, int64 ``[n, W]`` -> [.., V]."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    at = center[..., None].expand(*x.shape[:-2], 1)
    c = x.gather(-2, at[..., None].expand(*at.shape, x.shape[-1]))
    length = torch.linalg.vector_norm(x, dim=-1)
    dot, lengths = (x * c).sum(-1), length * length.gather(-1, at)
    return dot / lengths.clamp(min=torch.finfo(x.dtype).tiny)


def fill_slots(index: Tensor, windows: Windows, fill: Fill) -> Tensor:
    """The slot whose output each row takes: int64 ``[B, H, num_tiles, rows]``, -1 in padding."""
    rows, center, _, place = windows.tables(index.device)
    (W, V), K = rows.shape[1:], windows.per_window
    # the window's token in each slot, V in holes
    kept = index[..., : W * K].unflatten(-1, (W, K)).long()
    token = torch.arange(V, device=index.device)
    found = kept.unsqueeze(-1) == rows.unsqueeze(-2)
    held = torch.where(found & (kept > -1).unsqueeze(-1), token, 0).sum(-1)
    held = torch.where(kept < 0, V, held)

    if fill == "nearest":
        goal = squared_distances(windows, index.device)
    else:
        goal = torch.where(token == center[..., None], 0, 1)[..., None, :]
        goal = torch.where(token[:, None] == token, -1, goal)
    far = F.pad(goal, (0, 1), value=1 << 20)  # [.., V, V + 1]
    shape = *held.shape[:-1], V
    cost = far.expand(*shape, V + 1).gather(-1, held.unsqueeze(-2).expand(*shape, K))
    nearest = (cost * K + torch.arange(K, device=index.device)).amin(-1) % K
    slots = nearest + K * torch.arange(W, device=index.device)[:, None]

    # from windows to rows: padding, -1, reads the entry past the end
    slots = F.pad(slots.flatten(-2), (0, 1), value=-1)
    return slots.gather(-1, (place % (W * V + 1)).expand(*slots.shape[:-1], -1))


def squared_distances(windows: Windows, device: torch.device) -> Tensor:
    """Between the places of a window: int64 ``[V, V]``."""
    at = torch.cartesian_prod(*(torch.arange(s, device=device) for s in windows.size))
    return (at[:, None] - at).square().sum(-1)


def gather_rows(x: Tensor, index: Tensor, block: int, *, holes: bool) -> Tensor:
    """Rows of each block: ``[B, H, n * block, D]``, ``[B, H, n, m]`` -> ``[B, H, n * m, D]``.

    Where index is negative, zeros if there may be ``holes``, else any row of the block.
    """
    blocks = torch.arange(index.shape[:3].numel(), device=x.device)[:, None] * block
    place = (index.flatten(0, 2).clamp(min=0) + blocks).flatten()
    found = x.flatten(0, 2).index_select(0, place)
    if holes:
        found = torch.where(index.reshape(-1, 1) < 0, 0, found)
    return found.view(*x.shape[:2], -1, x.shape[3])
