"""The tables of docs/models.md: `python tests/pipelines/models_table.py` writes them."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from small_models import SMALL, Small, run

from flexsparse.diffusers import VSA, sparsify
from flexsparse.diffusers.families import _REFUSED, family_of

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def row(small: Small) -> str:
    """Of a small model, made sparse and run: its layers, and whether other tokens are beside."""
    model = small.model(0)
    family = family_of(model)
    names = sorted({re.sub(r"\.\d+\.", ".*.", name) for name, _ in family.layers(model)})
    kinds = family.processor if isinstance(family.processor, Mapping) else {}
    own = {type(attn.processor).__name__ for _, attn in family.layers(model)}
    known = [kind.__name__ for kind in kinds if kind.__name__ in own] or sorted(own)
    sparsify(model, VSA())
    call: Any = next(m.processor.call for m in model.modules() if hasattr(m, "slot"))
    tile, texts = call._tile_and_rows, set()

    def noted(grid: Any, text: int) -> str:
        texts.add(text > 0)
        return tile(grid, text)

    call._tile_and_rows = noted
    with torch.no_grad():
        run(model, small.batch((2, 4, 5), 0))
    (joint,) = texts
    layers = ", ".join(f"`{name}`" for name in names)
    beside = "yes" if joint else "no"
    return f"| `{type(model).__name__}` | {layers} | `{known[0]}` | {beside} |"


def lines() -> Iterator[str]:
    yield "| model | layers that become sparse | in place of | others attend with the video |"
    yield "|---|---|---|---|"
    yield from sorted({row(small) for small in SMALL.values()})
    yield ""
    yield "| refused | since |"
    yield "|---|---|"
    yield from (f"| `{name}` | {reason} |" for name, reason in sorted(_REFUSED.items()))


def written(page: str) -> str:
    table = "\n".join(lines())
    return re.sub(
        r"(?<=<!-- models -->\n).*(?=\n<!-- /models -->)", lambda _: table, page, flags=re.S
    )


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
