"""The attention slot: a frozen value that says which self-attention a model uses.

`models/` and `flexsparse.diffusers` know attention by it alone.

It is asked: how tokens are ordered in memory for it (`tiling`), how many tiles each query tile
selects (`top_k_for`) and how many rows of queries stand for a tile where they are pruned
(`q_rows_for`), and a layer's module (`build`; with no tiling, one for videos of any size). All
modules have one signature,

    forward(x, q, k, v, tiling) -> [B, H, L, D]

with x [B, L, dim] the layer's input and q, k, v [B, H, L, D], and `reset_parameters()`. L is
`tokens`, in raster order, when `tiling` is None, else `tiling.padded_tokens`, in tile-major order:
a model reorders its tokens once, at its door. Those that derive from `nn.AttentionLayer` run under
sequence parallelism as well, forward(..., shards=Ulysses(...)).
"""

from dataclasses import dataclass
from typing import Any, Protocol, get_args

import torch.nn.functional as F
from torch import Tensor, nn

import flexsparse.nn
from flexsparse.checks import check_options, check_query_tiles, check_sparsity
from flexsparse.choice.rules import Rule, Threshold, TopK
from flexsparse.choice.scaled import Scaled, as_rule
from flexsparse.choice.union import Unites
from flexsparse.nn.layer import AttentionLayer
from flexsparse.stages.queries import Fill
from flexsparse.stages.windows import FitWindow, Windows, check_window, fit_window
from flexsparse.tiling import VideoTiling


class Slot(Protocol):
    """What a model asks of its attention. `Dense`, `VSA` and `BSA` are some; yours may be more."""

    def tiling(self, grid: tuple[int, int, int], text: int = 0) -> VideoTiling | None: ...

    def top_k_for(self, tiling: VideoTiling | None) -> int | None: ...

    def q_rows_for(self, tiling: VideoTiling | None) -> int | None: ...

    def build(self, dim: int, num_heads: int, tiling: VideoTiling | None) -> nn.Module: ...


@dataclass(frozen=True)
class Dense:
    """Every token attends to every token, in raster order, by `scaled_dot_product_attention`."""

    def tiling(self, grid: tuple[int, int, int], text: int = 0) -> None:
        return None

    def top_k_for(self, tiling: VideoTiling | None) -> None:
        return None

    def q_rows_for(self, tiling: VideoTiling | None) -> None:
        return None

    def build(self, dim: int, num_heads: int, tiling: VideoTiling | None) -> nn.Module:
        return DenseAttention()


@dataclass(frozen=True)
class VSA:
    """Video Sparse Attention (arXiv 2505.13389): each query tile attends to its `top_k` best tiles.

    Args:
        sparsity: 1 - top_k / n wanted, in [0, 1). The nearest whole `top_k` is taken, at least 1;
            FastVideo's models want `top_k=flexsparse.choice.scaled.fastvideo_top_k(...)`.
        top_k: tiles per query tile, or a rule, in place of `sparsity`: not both.
        tile: tokens of a tile along (T, H, W); None lets `VideoTiling.fit` choose.
        adapt: go on from a dense checkpoint: no fine gate, and a coarse gate that starts at zero.
        query_tiles: adjacent query tiles that choose together, for fuller query blocks on a GPU.
        gates: False for a dense checkpoint made sparse without training: the fine stage alone, and
            no parameters.

    >>> VSA(sparsity=0.875).top_k_for(VideoTiling(video=(16, 32, 32)))
    32
    """

    sparsity: float = 0.875
    top_k: int | Unites | None = None
    tile: tuple[int, int, int] | None = (4, 4, 4)
    adapt: bool = False
    query_tiles: int = 1
    gates: bool = True

    def __post_init__(self) -> None:
        k = self.top_k
        if not (k is None or isinstance(k, Unites) or type(k) is int and k > 0):
            raise ValueError(f"top_k is {k!r}; give an int of at least 1, a rule, or a sparsity")
        check_sparsity(self.sparsity)
        if self.top_k is not None and self.sparsity != VSA.sparsity:
            raise ValueError(f"top_k={self.top_k} and sparsity={self.sparsity}: give one of them")
        check_options(self.tile, self.query_tiles)

    def tiling(self, grid: tuple[int, int, int], text: int = 0) -> VideoTiling:
        tiling = tiled(grid, self.tile, text)
        check_query_tiles(self.query_tiles, tiling)
        return tiling

    def top_k_for(self, tiling: VideoTiling) -> int:
        n = tiling.num_tiles
        if isinstance(self.top_k, Unites):
            return _about(as_rule(self.top_k, tiling), tiling, self.query_tiles)
        top_k = max(1, round(n * (1 - self.sparsity))) if self.top_k is None else self.top_k
        if not 1 <= top_k <= n:
            raise ValueError(
                f"top_k is {top_k}, but {tiling} has {n} tiles: give 1 <= top_k <= {n}"
            )
        return top_k

    def q_rows_for(self, tiling: VideoTiling) -> None:
        return None

    def build(
        self, dim: int, num_heads: int, tiling: VideoTiling | None, head_dim: int | None = None
    ) -> nn.Module:
        """A layer; ``head_dim`` where it is not ``dim // num_heads``."""
        options: Any = dict(adapt=self.adapt, gates=self.gates, query_tiles=self.query_tiles)
        options |= dict(head_dim=head_dim)
        if isinstance(self.top_k, Unites):
            top_k = self.top_k
        elif tiling is None:
            top_k = Scaled(None if self.top_k else self.sparsity, self.top_k)
        else:
            top_k = self.top_k_for(tiling)
        return flexsparse.nn.VSA(dim, num_heads, top_k, **options)


@dataclass(frozen=True)
class BSA:
    """Bidirectional Sparse Attention (arXiv 2509.01085): queries pruned, key tiles by a threshold.

    It has no parameters: a checkpoint of a dense model fits as it is, for training and without.

    Args:
        sparsity: of the keys, 1 - k/n wanted, in [0, 1): `Threshold(k)`, about k of n tiles.
        kv: another rule, in place of `sparsity`; an int means TopK.
        keep: fraction of the queries of each window that stays.
        window: tokens of a window along (T, H, W), a divisor of the tile's; None: the whole tile.
            Along an axis where one tile spans the video, the whole of it if need be. "fit": 2 along
            the tile's even sides, the whole of the odd ones, which for 4x4x4 is 2x2x2.
        fill: where the output of a pruned query comes from, "nearest" or "center".
        tile: tokens of a tile along (T, H, W); None lets `VideoTiling.fit` choose.
        query_tiles: adjacent query tiles that choose together, for fuller query blocks on a GPU.

    >>> BSA(sparsity=0.875).top_k_for(VideoTiling(video=(16, 32, 32)))
    32
    """

    sparsity: float = 0.875
    kv: Unites | int | None = None
    keep: float = 0.5
    window: FitWindow = "fit"
    fill: Fill = "nearest"
    tile: tuple[int, int, int] | None = (4, 4, 4)
    query_tiles: int = 1

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        kv = self.kv
        if not (kv is None or isinstance(kv, Unites) or type(kv) is int and kv > 0):
            raise ValueError(f"kv={kv!r} must be a rule, or an int of at least 1, tiles for TopK")
        if self.fill not in get_args(Fill):
            raise ValueError(f"fill={self.fill!r} must be one of {', '.join(get_args(Fill))}")
        check_options(self.tile, self.query_tiles)
        check_window(self.window, self.keep)

    def tiling(self, grid: tuple[int, int, int], text: int = 0) -> VideoTiling:
        tiling = tiled(grid, self.tile, text)
        self.q_rows_for(tiling)  # a window that does not fit is named before any work
        check_query_tiles(self.query_tiles, tiling)
        return tiling

    def rule_for(self, tiling: VideoTiling) -> Rule:
        rule = self._rule_for_any() if self.kv is None else self.kv
        return as_rule(rule, tiling, "kv")

    def _rule_for_any(self) -> Unites:
        if self.kv is None:
            return Scaled(self.sparsity, rule=Threshold)
        kv = self.kv
        if type(kv) is TopK and isinstance(kv.k, int) and kv == TopK(kv.k):
            kv = kv.k
        return kv if isinstance(kv, Unites) else Scaled(top_k=kv)

    def top_k_for(self, tiling: VideoTiling) -> int:
        """Tiles that a query tile admits: for Threshold about so many, for Mass and unions at
        most."""
        return _about(self.rule_for(tiling), tiling, self.query_tiles)

    def q_rows_for(self, tiling: VideoTiling) -> int:
        windows = Windows(tiling, self.keep, fit_window(self.window, tiling))
        return tiling.rows if windows.keeps_all else windows.kept_rows

    def build(
        self, dim: int, num_heads: int, tiling: VideoTiling | None, head_dim: int | None = None
    ) -> nn.Module:
        """A layer, the same for heads of any width."""
        return flexsparse.nn.BSA(
            self._rule_for_any() if tiling is None else self.rule_for(tiling),
            keep=self.keep,
            window=self.window,
            fill=self.fill,
            query_tiles=self.query_tiles,
        )


def _about(rule: Rule, tiling: VideoTiling, query_tiles: int) -> int:
    least, most = rule.bounds(tiling.num_tiles, query_tiles)
    return min(most, max(least, round(getattr(rule, "k", most))))


def tiled(
    grid: tuple[int, int, int], tile: tuple[int, int, int] | None, text: int = 0
) -> VideoTiling:
    """The tiling of a grid by `tile`, or by the one that fits it best."""
    return VideoTiling.fit(grid, text=text) if tile is None else VideoTiling(grid, tile, text=text)


class DenseAttention(AttentionLayer):
    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, tiling: None, text_lengths: None = None
    ) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)
