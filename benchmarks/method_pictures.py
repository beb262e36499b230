"""The pictures of docs/methods.md: `python -m benchmarks.method_pictures`.

A drawn scene of 24 x 36 tokens stands for a video of one frame; its colours and places are queries
and keys. What is shown as chosen is what the library chooses.
"""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from flexsparse import Mass, Neighbourhood, Threshold, TopK, VideoTiling, prune_queries
from flexsparse.bsa import bsa_tile_map
from flexsparse.choice.rules import Rule
from flexsparse.stages.coarse import coarse_attention
from flexsparse.stages.pooling import pool_tiles
from flexsparse.stages.queries import fill_slots
from flexsparse.vsa import block_scores, vsa_attention, vsa_tile_map
from train.demo.pictures import CHOSEN, QUERY

IMAGES = Path(__file__).parent.parent / "docs" / "images"
TILING = VideoTiling((1, 24, 36), tile=(1, 6, 6))  # 4 x 6 tiles
OF_PLACES, LOOKS, TOP_K = 9, 3, 5  # the query tile, and the tiles that it chooses
DARK, LEFT_OUT = "#3a3a3a", "#c9c9c9"


def scene() -> Tensor:
    """Sky, two hills, a sun and its reflection, as colours: [24, 36, 3] in 0 to 1."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(36.0), indexing="ij")
    picture = torch.stack((0.35 + y / 50, 0.6 + y / 80, 0.95 - y / 90), -1)
    for peak, middle, wide, colour in ((9, 9, 11, (0.3, 0.5, 0.35)), (6, 28, 8, (0.2, 0.42, 0.3))):
        hill = y > 17 - peak * torch.exp(-(((x - middle) / wide) ** 2))
        picture[hill] = torch.tensor(colour)
    picture[y > 17] = torch.tensor((0.25, 0.45, 0.7))
    for middle, radius, colour in (
        ((5, 21), 3.2, (1.0, 0.85, 0.3)),
        ((20.5, 21), 2, (1, 0.8, 0.4)),
    ):
        ball = (y - middle[0]) ** 2 + (x - middle[1]) ** 2 < radius**2
        picture[ball] = torch.tensor(colour)
    texture = torch.randn(24, 36, 1, generator=torch.Generator().manual_seed(0))
    return (picture + 0.02 * texture).clamp(0, 1)


def queries() -> Tensor:
    """Colours, and a little of the place, as queries and keys: tile-major [1, 1, tokens, 16]."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 24), torch.linspace(-1, 1, 36), indexing="ij")
    colours = scene()
    found = torch.cat((5 * (colours - colours.mean((0, 1))), 0.8 * torch.stack((y, x), -1)), -1)
    q = torch.nn.functional.pad(found.flatten(0, 1), (0, 11))
    return TILING.to_tiles(q[None, None])


def box(tile: int) -> tuple[int, int]:
    """Top left token of a tile, along the height and the width."""
    return tile // TILING.grid[2] * TILING.tile[1], tile % TILING.grid[2] * TILING.tile[2]


def show(axes: Axes, scenery: Tensor, bright: Any = None, looks: int | None = None) -> None:
    """The scene in its tiles; those not bright are dark, the query tile has a frame."""
    picture = scenery.numpy().copy()
    tiles = range(TILING.num_tiles)
    for tile in tiles:
        y, x = box(tile)
        if bright is not None and not bright[tile]:
            picture[y : y + 6, x : x + 6] *= 0.25
    axes.imshow(picture, extent=(0, 36, 24, 0), interpolation="nearest")
    for tile in tiles:
        chosen = bright is not None and bool(bright[tile])
        _frame(axes, tile, CHOSEN if chosen else "#ffffff", 2 if chosen else 0.4)
    if looks is not None:
        _frame(axes, looks, QUERY, 4)
    axes.axis("off")


def _frame(axes: Axes, tile: int, colour: str, width: float, rows: float = 1) -> None:
    y, x = box(tile)
    kind: Any = dict(fill=False, edgecolor=colour, linewidth=width, zorder=2 + width)
    axes.add_patch(Rectangle((x, y), 6 * rows, 6, **kind))


def save(figure: Any, name: str, images: Path) -> None:
    options: Any = dict(bbox_inches="tight", pad_inches=0.05, metadata={"Software": None})
    figure.savefig(images / f"methods-{name}.png", dpi=110, **options)
    plt.close(figure)


def panels(*titles: str, height: float = 3.1, **options: Any) -> tuple[Any, Any]:
    size = (11, height)
    figure, axes = plt.subplots(1, len(titles), figsize=size, layout="constrained", **options)
    for one, title in zip(np.atleast_1d(axes), titles):
        one.set_title(title, fontsize=11, loc="left")
    return figure, np.atleast_1d(axes)


def draw_tiling(images: Path) -> None:
    figure, (left, right) = panels(
        "The grid of tokens, each with its place in raster order",
        "In memory, tile after tile; the padding that fills up rows is dark",
        width_ratios=[1, 1.15],
    )
    tiling = VideoTiling((1, 6, 10), tile=(1, 4, 4), rows=16)
    layout = tiling.layout()
    owner = torch.full((60,), -1)
    for tile, rows in enumerate(layout):
        owner[rows[rows >= 0]] = tile
    for axes, numbers, of in (
        (left, torch.arange(60).view(6, 10), owner.view(6, 10)),
        (right, layout, torch.arange(6)[:, None].expand(6, 16)),
    ):
        shade = np.array([plt.get_cmap("Pastel1").colors[i] for i in of.flatten()])  # pyright: ignore
        shade = shade.reshape(*of.shape, 3)
        shade[(numbers < 0).numpy()] = 0.23
        axes.imshow(shade)
        for (i, j), number in np.ndenumerate(numbers.numpy()):
            axes.text(j, i, number if number >= 0 else "", ha="center", va="center", fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    right.set_yticks(range(6), [f"tile {i}" for i in range(6)])
    save(figure, "tiling", images)


def draw_vsa(images: Path) -> None:
    q = queries()
    scores, chosen = block_scores(q, q, TILING, 1)[0, 0], TopK(TOP_K)(block_scores(q, q, TILING, 1))
    figure, axes = panels(
        "1  Means of tiles", "2  Scores between them", "3  The best of each row", "4  Attention"
    )
    colours = scene().view(4, 6, 6, 6, 3).mean((1, 3))
    show(axes[0], colours, looks=LOOKS)
    axes[1].imshow(scores.numpy(), cmap="magma")
    axes[2].imshow(~chosen[0, 0].numpy(), cmap="gray", vmin=-0.3)
    for one in axes[1:3]:
        row = Rectangle((-0.5, LOOKS - 0.5), 24, 1, fill=False, edgecolor=QUERY, linewidth=2.5)
        one.add_patch(row)
        one.set_xlabel("key tiles")
        one.set_xticks([])
        one.set_yticks([])
    axes[1].set_ylabel("query tiles")
    show(axes[3], scene(), chosen[0, 0, LOOKS], LOOKS)
    save(figure, "vsa", images)


def draw_gates(images: Path) -> None:
    q = queries()
    v = TILING.to_tiles(torch.nn.functional.pad(scene().flatten(0, 1), (0, 13))[None, None])
    means = coarse_attention(*(pool_tiles(x, TILING) for x in (4 * q, q, v)))
    fine = vsa_attention(4 * q, q, v, TILING, top_k=TOP_K)
    mean, fine = (
        TILING.from_tiles(x)[0, 0, :, :3].view(24, 36, 3) for x in (TILING.spread(means), fine)
    )
    figure, axes = panels(
        "v", "coarse: one row for each tile", "fine: one for each token", "their sum"
    )
    for one, picture in zip(axes, (scene(), mean, fine, 0.3 * mean + 0.7 * fine)):
        show(one, picture.clamp(0, 1))
    for one, words in zip(axes[1:], ("x  gate, here 0.3", "x  gate, here 0.7", "")):
        one.text(18, 26.5, words, ha="center", fontsize=11)
    save(figure, "gates", images)


def draw_query_tiles(images: Path) -> None:
    q = queries()
    first = LOOKS - LOOKS % 2
    titles = (
        "query_tiles=1: each tile chooses",
        "the tile beside it",
        "query_tiles=2: they choose together",
    )
    figure, axes = panels(*titles, height=2.9)
    for one, tile, together in zip(axes, (first, first + 1, first), (1, 1, 2)):
        chosen = vsa_tile_map(q, q, TILING, top_k=TOP_K, query_tiles=together)
        show(one, scene(), chosen[0, 0, tile])
        _frame(one, tile, QUERY, 4, together)
    save(figure, "query-tiles", images)


def rows_of_scores() -> tuple[Tensor, Tensor]:
    """Normal scores of 48 tiles, and scores of which a few stand out."""
    share = (torch.arange(48) + 0.5) / 48
    normal = torch.tensor([NormalDist().inv_cdf(1 - x) for x in share.tolist()])
    return normal, torch.cat((torch.tensor([4.2, 3.9, 3.1]), 0.35 * normal[3:]))


def draw_rule(images: Path, name: str, rule: Rule) -> None:
    figure, axes = panels("scores as noise has them", "a few tiles stand out", height=2.5)
    for one, scores in zip(axes, rows_of_scores()):
        admitted = rule(scores[None])[0]
        weights = scores.softmax(0) if name == "mass" else scores
        floor = 0.0 if name == "mass" else -2.6
        colours = [CHOSEN if found else LEFT_OUT for found in admitted]
        one.bar(range(48), (weights - floor).numpy(), bottom=floor, color=colours, width=0.85)
        what = "softmax weight" if name == "mass" else "score"
        one.set_ylabel(what)
        one.set_xlabel("key tiles, best first")
        one.set_xticks([])
        count = int(admitted.sum())
        said = f"{count} of 48 tiles"
        if name == "threshold":
            line = scores.mean() + scores.std(correction=0) * NormalDist().inv_cdf(1 - 8 / 48)
            one.axhline(line.item(), color=DARK, linewidth=1.2, linestyle="--")
        if name == "mass":
            said += f" hold {weights[admitted].sum():.0%}"
        one.text(0.97, 0.85, said, transform=one.transAxes, ha="right", fontsize=11, color=DARK)
        for side in ("top", "right"):
            one.spines[side].set_visible(False)
    save(figure, name, images)


def draw_places(images: Path) -> None:
    q, near = queries(), Neighbourhood((1, 3, 3))
    rules = TopK(TOP_K), near, TopK(TOP_K) | near
    figure, axes = panels(
        "TopK(5)", "Neighbourhood((1, 3, 3))", "TopK(5) | Neighbourhood((1, 3, 3))"
    )
    for one, rule in zip(axes, rules):
        show(one, scene(), vsa_tile_map(q, q, TILING, top_k=rule)[0, 0, OF_PLACES], OF_PLACES)
    save(figure, "places", images)


def draw_pruning(images: Path) -> None:
    """One tile that lies across an edge: what stays without windows, and with them; restoring."""
    tiling = VideoTiling((1, 8, 8), tile=(1, 8, 8))
    colours = scene()[1:9, 17:25]
    q = torch.nn.functional.pad((colours - 0.4).flatten(0, 1), (0, 13))[None, None]
    figure, axes = panels("keep=0.25, window=None", "window=(1, 4, 4)", "restored from the nearest")
    for number, one in enumerate(axes):
        window = (1, 4, 4) if number else None
        kept = prune_queries(tiling.to_tiles(q), tiling, keep=0.25, window=window)
        stays = tiling.from_tiles(kept.mask[..., None].float())[0, 0, :, 0].bool().view(8, 8)
        one.imshow(colours.numpy(), extent=(0, 8, 8, 0), interpolation="nearest")
        one.axis("off")
        cuts = (0, 4, 8) if number else (0, 8)
        for at in cuts:
            one.plot([at, at], [0, 8], color="white", linewidth=2)
            one.plot([0, 8], [at, at], color="white", linewidth=2)
        side = 4 if number else 8
        for y, x in np.ndindex(8, 8):
            center = y % side == side // 2 and x % side == side // 2
            face = CHOSEN if stays[y, x] else "none"
            edge = "black" if center else DARK
            size: Any = dict(markersize=13, markeredgewidth=3.0 if center else 1.0)
            one.plot(x + 0.5, y + 0.5, "o", color=face, markeredgecolor=edge, **size)
        if number == 2:
            index = kept.index[0, 0, 0]
            source = index[fill_slots(kept.index, kept.windows, "nearest")[0, 0, 0]]
            for row, own in enumerate(source.tolist()):
                (y, x), (to_y, to_x) = divmod(row, 8), divmod(own, 8)
                if row != own:
                    line: Any = dict(arrowstyle="->", color="white", linewidth=1.4)
                    ends = (x + 0.5, y + 0.5), (to_x + 0.5, to_y + 0.5)
                    one.annotate("", *ends, arrowprops=line)
    save(figure, "pruning", images)


def draw_bsa(images: Path) -> None:
    q = queries()
    kept = prune_queries(q, TILING, keep=0.5, window=(1, 3, 3))
    stays = TILING.from_tiles(kept.mask[..., None].float())[0, 0].view(24, 36, 1)
    chosen = bsa_tile_map(kept, q, TILING, kv=Threshold(TOP_K))[0, 0]
    figure, axes = panels(
        "1  Queries that stay", "2  Key tiles that a rule admits", "3  Attention of those that stay"
    )
    show(axes[0], scene() * (0.25 + 0.75 * stays), looks=LOOKS)
    axes[1].imshow(~chosen.numpy(), cmap="gray", vmin=-0.3)
    row = Rectangle((-0.5, LOOKS - 0.5), 24, 1, fill=False, edgecolor=QUERY, linewidth=2.5)
    axes[1].add_patch(row)
    axes[1].set_xlabel("key tiles")
    axes[1].set_ylabel("query tiles")
    axes[1].set_xticks([])
    axes[1].set_yticks([])
    show(axes[2], scene(), chosen[LOOKS], LOOKS)
    save(figure, "bsa", images)


RULES = {"topk": TopK(8), "threshold": Threshold(8), "mass": Mass(0.5)}


def main(images: Path = IMAGES) -> None:
    with plt.rc_context({"font.family": "DejaVu Sans", "font.size": 10}):
        for draw in (
            draw_tiling,
            draw_vsa,
            draw_gates,
            draw_query_tiles,
            draw_bsa,
            draw_pruning,
            draw_places,
        ):
            draw(images)
        for name, rule in RULES.items():
            draw_rule(images, name, rule)


if __name__ == "__main__":
    main()
