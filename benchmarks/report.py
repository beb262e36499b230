"""Write what the results say into docs/performance.md, and draw them.

    python -m benchmarks.report

The page's explanations are written by hand; what stands between ``<!-- name -->`` and
``<!-- /name -->`` is made from ``benchmarks/results/`` and from the kernels' tables. A test holds
the page to it. Pictures of GPU rows go to docs/images/.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import tables
from benchmarks.gpu.plots import draw
from benchmarks.record import RESULTS
from flexsparse.kernel_configs import (
    BACKWARD,
    BACKWARD_FP32,
    FORWARD,
    FORWARD_FP32,
    backward_config,
    forward_config,
)
from flexsparse.kernel_configs import (
    Row as Config,
)

ROOT = Path(__file__).parent.parent
PAGE, IMAGES = ROOT / "docs" / "performance.md", ROOT / "docs" / "images"
Row = dict[str, Any]


def read(name: str, results: Path = RESULTS) -> list[Row]:
    """The rows of ``results/<name>.jsonl``; none where there is no such file."""
    path = results / f"{name}.jsonl"
    return list(map(json.loads, path.read_text().splitlines())) if path.exists() else []


def gpu(results: Path) -> str:
    """What GPUs measured, or that none has; a rehearsal's rows are no GPU's."""
    rows = [row for row in read("gpu", results) if row.get("cuda")]
    if not rows:
        aims = tables.goals([])
        return f"**No GPU has run this yet: every figure below is an aim.**\n\n{aims}"
    parts = []
    for device in dict.fromkeys(row["device"] for row in rows):
        mine = [row for row in rows if row["device"] == device]
        pictures = "\n".join(
            f"![{title}](images/{path.name})" for path, title in draw(mine, IMAGES).items()
        )
        parts.append(f"#### {device}\n{pictures}\n\n{tables.tables(mine)}")
    return "\n\n".join(parts)


def configs(results: Path) -> str:
    """The tables of compute blocks with their reasons, and what the compiler made of each."""
    head = ["GPU", "D", "mask block", "compute blocks, stages, warps", "full", "ragged", "why"]
    rows = read("configs", results)
    parts = []
    for direction in ("forward", "backward"):
        groups: dict[tuple, list[Row]] = {}
        for row in rows:
            if row["direction"] == direction:
                key = row["arch"], row["head_dim"], row["dtype"], row["q_rows"], row["kv_rows"]
                groups.setdefault(key, []).append(row)
        lines = []
        for (arch, dim, dtype, q_rows, kv_rows), mine in groups.items():
            name = f"{dim}" if dtype == "bfloat16" else f"{dim}, {dtype}"
            cells = [_resources(mine, kind) for kind in ("full", "ragged")]
            blocks = f"{q_rows} x {kv_rows}"
            lines.append([arch, name, blocks, _shown(mine[0]["config"]), *cells, why(mine[0])])
        parts.append(f"{direction.capitalize()}:\n\n{tables.markdown(head, lines)}")
    return "\n\n".join(parts)


def why(row: Row) -> str:
    """The reason in the table's row from which ``row`` of ``configs.jsonl`` has its config."""
    forward = FORWARD_FP32 if row["dtype"] == "float32" else FORWARD
    backward = BACKWARD_FP32 if row["dtype"] == "float32" else BACKWARD
    table: list[Config] = [*(forward if row["direction"] == "forward" else backward)]
    for config in table:
        sizes = row["head_dim"] <= config.head_dim, row["q_rows"] >= config.q_rows
        if _major(row) in config.gpus and all(sizes) and row["kv_rows"] >= config.kv_rows:
            return config.why
    return "small: that it compiles"


def _major(row: Row) -> int:
    return int(row["arch"].removeprefix("sm_")) // 10


def _shown(config: list[int]) -> str:
    *blocks, stages, warps = config
    pairs = [f"{a} x {b}" for a, b in zip(blocks[::2], blocks[1::2])]
    return f"{', '.join(pairs)}; {stages}, {warps}"


def _resources(rows: list[Row], kind: str) -> str:
    mine = [row for row in rows if row["tiles"].startswith(kind)]
    shown = "{registers} / {spilled_bytes} / {shared_bytes:,}"
    return shown.format(**mine[0]) if mine else "-"


def today(row: Row) -> tuple[int, ...]:
    """The config that the tables give today for what a row of ``configs.jsonl`` compiled."""
    choose = forward_config if row["direction"] == "forward" else backward_config
    dtype = getattr(torch, row["dtype"])
    return tuple(choose(row["head_dim"], dtype, row["q_rows"], row["kv_rows"], _major(row)))


def lowering(results: Path) -> str:
    """Launches of whole layers, and the registers of their FlexAttention kernels."""
    rows = read("lowering", results)
    archs = "sm_80", "sm_90", "sm_100"
    found = {(row["case"], row["graph"], row["arch"]): row for row in rows}
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        line = [f"`{case}`"]
        for graph in ("forward", "backward"):
            mine = [found[case, graph, a] for a in archs if (case, graph, a) in found]
            names = "triton_launches", "flex_launches", "outside_calls"
            counts = dict.fromkeys(tuple(row[name] for name in names) for row in mine)
            line.append(" or ".join(f"{a} ({b}), {c}" for a, b, c in counts))
        for graph in ("forward", "backward"):
            used = [_flex_registers(found.get((case, graph, a))) for a in archs]
            line.append(" / ".join(used))
        lines.append(line)
    head = ["case", "forward: Triton (FlexAttention), other", "backward"]
    head += ["FlexAttention registers, forward", "backward"]
    return tables.markdown(head, lines)


def _flex_registers(row: Row | None) -> str:
    kernels = row["kernels"] if row else []
    used = [k["registers"] for k in kernels if k["kernel"].startswith("triton_tem_fused_")]
    return str(max(used)) if used else "-"


def columns(results: Path) -> str:
    """How unevenly key tiles are chosen, and what ordering the backward's work could gain."""
    head = [
        "selection",
        "tiles",
        "rule",
        "columns: longest / mean",
        "Gini",
        "rows: least, mean, most",
    ]
    head += ["launch order / even, 132 slots", "264 slots", "ordering gains at most"]
    lines = []
    for row in read("selections", results):
        order = row["order"]
        layer = "" if row.get("layer") is None else f", layer {row['layer']}"
        least, mean, most = row["rows"]
        gains = [order[slots]["gain_percent"] for slots in ("132", "264")]
        lines.append(
            [
                f"{row['source']}{layer}",
                row["tiles"],
                row["rule"],
                f"{row['columns']['max_over_mean']:.1f}",
                f"{row['columns']['gini']:.2f}",
                f"{least}, {mean:.0f}, {most}",
                *(f"{order[slots]['launch_order']:.3f}" for slots in ("132", "264")),
                " / ".join(f"{gain:.1f} %" for gain in gains),
            ]
        )
    return tables.markdown(head, lines)


def score_precision(results: Path) -> str:
    """What scores in lower precision choose otherwise: means over layers, and largest regrets."""
    inputs: dict[str, dict[str, list[Row]]] = {}
    for row in read("score_precision", results):
        if row["source"].endswith("q x 64"):  # chooses as q itself does
            continue
        kind = "trained" if row["source"].startswith("trained") else row["source"]
        rules = inputs.setdefault(f"{kind}, {row['tiles']} tiles", {})
        rules.setdefault(row["rule"], []).append(row)
    gaps, lines = [], []
    for name, rules in inputs.items():
        top = rules["TopK"]
        mean = _mean(row["offset"] for row in top)
        gap = [_short(_mean(row["gap"][x] for row in top)) for x in ("median", "p1")]
        count = sum(row["heads"] * row["tiles"] for row in top)
        gaps.append([name, f"{count:,}", f"{mean:.1f}", *gap])
        for precision in top[0]["precisions"]:
            by_top, by_line = (
                [row["precisions"][precision] for row in rules[r]] for r in ("TopK", "Threshold")
            )
            mass = _mean(x["mass"] for x in by_top), max(x["worst_mass"] for x in by_top)
            lines.append(
                [
                    name,
                    precision,
                    _short(_mean(x["error"] for x in by_top)),
                    *_differences(by_top),
                    ", ".join(map(_short, mass)),
                    _percent(_mean(x["ties"] for x in by_top)),
                    _shift(by_top),
                    *_differences(by_line),
                ]
            )
    head = ["queries and keys", "rows", "mean of scores, of either sign", "gap, median", "1 %"]
    found = ["queries and keys", "scores in", "error", "TopK: rows", "tiles", "regret"]
    found += ["mass lost: mean, worst row", "ties", "shift", "Threshold: rows", "tiles", "regret"]
    return f"{tables.markdown(head, gaps)}\n\n{tables.markdown(found, lines)}"


def _differences(found: list[Row]) -> list[str]:
    rows, tiles = (_percent(_mean(x[name] for x in found)) for name in ("rows", "tiles"))
    return [rows, tiles, _short(max(x["regret"] for x in found))]


def _shift(found: list[Row]) -> str:
    """Mean and standard error over layers; - where chance alone could make it large."""
    known = [x for x in found if x["shift"] is not None]
    error = math.hypot(*(x["shift_error"] for x in known)) / max(1, len(known))
    if not known or error > 0.05:
        return tables.NONE
    return f"{_mean(x['shift'] for x in known):.3f} ± {error:.3f}"


def _mean(figures: Iterable[float]) -> float:
    return statistics.fmean(figures)


def _percent(share: float) -> str:
    return f"{_short(100 * share)} %" if share else "0"


def _short(figure: float) -> str:
    """Two digits: 0.0015, 2.1e-7."""
    return f"{figure:.2g}".replace("e-0", "e-") if figure else "0"


SECTIONS: dict[str, Callable[[Path], str]] = {
    "gpu": gpu,
    "configs": configs,
    "lowering": lowering,
    "columns": columns,
    "score_precision": score_precision,
}


def render(page: str, results: Path = RESULTS) -> str:
    """The page with its sections made anew.

    Raises:
        ValueError: a section's marks are not in the page.
    """
    for name, make in SECTIONS.items():
        marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
        if not marks.search(page):
            raise ValueError(f"the page has no <!-- {name} --> ... <!-- /{name} -->")
        made = make(results)
        page = marks.sub(lambda m: f"{m[1]}{made}\n{m[2]}", page)  # noqa: B023
    return page


def main() -> None:
    PAGE.write_text(render(PAGE.read_text()))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
