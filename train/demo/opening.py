"""The demo's first act: clips in which content recurs, and whether sparse attention finds it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template

import torch

from models.attention import VSA
from models.video_dit import VideoDiTConfig
from train.data.copies.floors import Floors, copies_in
from train.data.copies.layouts import Copies
from train.demo.copies import Found, copies_config, floors_of, found_by, held_out, middle_of
from train.demo.copies_pictures import draw_between, draw_looks, says_of
from train.trainer import Trainer

TILE = (2, 2, 4)
SMALL = VideoDiTConfig(
    channels=3,
    video=(8, 32, 32),
    patch=(1, 4, 4),
    dim=96,
    heads=1,
    layers=2,
    ffn=192,
    context_dim=16,
    mimetic=True,
)


@dataclass(frozen=True)
class Opening:
    """Its task, and how long a model of it is trained."""

    model: VideoDiTConfig = replace(SMALL, attention=VSA(sparsity=0.875, tile=TILE))
    copies: Copies = Copies(where="shuffle", cell=TILE, alike=2.0)
    steps: int = 360

    def trainer(self, folder: Path) -> Trainer.Config:
        return copies_config(self.model, self.copies, steps=self.steps, folder=folder)


@dataclass(frozen=True)
class Opened:
    """What was found: the last loss, and of the tile in the middle of a clip, in the first layer,
    how many others it looks at, how many of them are copies, and how many of those there are."""

    loss: float
    least: Floors
    found: Found
    tiles: int
    looks: int
    right: int
    copies: int
    steps: int


def open_demo(opening: Opening, out: Path, say: Callable[[str], object]) -> Opened:
    """Train it, and draw copies.png and copies_losses.png into `out`.

    KeyboardInterrupt where it was told to stop.
    """
    shutil.rmtree(out / "copies", ignore_errors=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a second one gains nothing with so few tokens, and may wait for long
    trainer = opening.trainer(out / "copies").build()
    try:
        validation = trainer.train().validation
        if trainer.step < opening.steps:
            raise KeyboardInterrupt
        clips, tiling = held_out(trainer.config), trainer.model.tiling
        found = found_by(trainer.model, clips, tiling)
    finally:
        trainer.close()
        torch.set_num_threads(threads)
    least = floors_of(trainer.config, tiling)
    own, heads = middle_of(tiling), found.heads[0]
    truth = copies_in(clips.layout(0), tiling)[own] > 0
    looked = [bool(n) and i != own for i, n in enumerate(heads)]
    opened = Opened(
        loss=validation[-1][1],
        least=least,
        found=found,
        tiles=tiling.num_tiles,
        looks=sum(looked),
        right=sum(x and bool(y) for x, y in zip(looked, truth)),
        copies=int(truth.sum()),
        steps=opening.steps,
    )
    say(f"     {sentence(opened)}")
    draw_looks(out / "copies.png", clips, tiling, heads)
    draw_between(out / "copies_losses.png", validation, least)
    return opened


def sentence(opened: Opened) -> str:
    """What the picture shows."""
    return says_of(opened.looks, opened.right, opened.copies, opened.tiles)


SECTION = Template("""\
## Does it find what it needs?

A made-up clip, cut into $tiles tiles. Each tile comes again at $copies other places, drawn by lot.
The model sees the clip under noise and is to say what the noise is: the more copies of a tile it
compares, the better it can. So it pays to look far, if one knows where.

![A clip, and the tiles that one tile looks at; dark ones cost nothing](copies.png)

**$sentence**, in the first layer of Video Sparse Attention
(VSA), after $steps steps of training. The clip is shown clean; the model chose under noise. Nobody
told it where copies are: it starts with equal queries and keys, which find most copies by
themselves; what training teaches is to use them. Over all tiles of four clips it was not trained
on, $shares of the other tiles that it looks at are copies$by_layer; of tiles drawn by lot it would
be $chance.

![The loss between what a tile by itself can reach and what all copies allow](copies_losses.png)

A tile that sees only itself can reach $tile at best, however long it trains. VSA ends at $loss;
with all copies it could be $everything.
""")


def section(opened: Opened) -> str:
    """The report's first part."""
    first, *others = [share or 0.0 for share in opened.found.shares] or [0.0]
    layers = "".join(f", {share:.0%} in layer {i}" for i, share in enumerate(others, start=2))
    return SECTION.substitute(
        tiles=opened.tiles,
        copies=opened.copies,
        sentence=sentence(opened),
        steps=opened.steps,
        shares=f"{first:.0%}",
        by_layer=layers,
        chance=f"{opened.copies / (opened.tiles - 1):.0%}",
        tile=f"{opened.least.tile:.2f}",
        loss=f"{opened.loss:.2f}",
        everything=f"{opened.least.everything:.2f}",
    )
