"""Write what the results say into docs/results/, docs/evidence.md and docs/data.md, and draw them.

    python -m benchmarks.report

The pages' explanations are written by hand; what stands between ``<!-- name -->`` and
``<!-- /name -->`` is made from ``benchmarks/results/`` and from the kernels' tables. A test holds
the pages to it. Pictures go to docs/images/.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from benchmarks import bounds_tables, clips, torch_versions
from benchmarks.evidence import page as evidence_page
from benchmarks.gpu import tables
from benchmarks.gpu.plots import draw
from benchmarks.gpu.report_coarse import coarse, lists, traffic
from benchmarks.record import RESULTS, Row, markdown, read
from benchmarks.studies.report_precision import score_precision
from flexsparse.engines.kernel_configs import (
    BACKWARD,
    BACKWARD_FP32,
    FORWARD,
    FORWARD_FP32,
    backward_config,
    forward_config,
)
from flexsparse.engines.kernel_configs import (
    Row as Config,
)

DOCS = Path(__file__).parent.parent / "docs"
EVIDENCE, IMAGES = DOCS / "evidence.md", DOCS / "images"


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
            f"![{title}](../images/{path.name})" for path, title in draw(mine, IMAGES).items()
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
        parts.append(f"{direction.capitalize()}:\n\n{markdown(head, lines)}")
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
    return markdown(head, lines)


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
    return markdown(head, lines)


Sections = Mapping[str, Callable[[Path], str]]
PAGES: dict[Path, Sections] = {
    DOCS / "results" / "gpu.md": {"gpu": gpu, "coarse": coarse},
    DOCS / "results" / "compiled.md": {
        "torch": torch_versions.table,
        "configs": configs,
        "lowering": lowering,
    },
    DOCS / "results" / "bounds.md": {
        "bound_training": bounds_tables.ratios,
        "bound_forward": partial(bounds_tables.ratios, graphs=("forward",)),
        "bounds": bounds_tables.layers,
        "bound_kernels": bounds_tables.kernels,
        "bound_changes": bounds_tables.changes,
        "bound_padded": partial(bounds_tables.changes, case="75k-40x128"),
        "bound_d64": partial(bounds_tables.changes, case="61k-12x64"),
        "bound_configs": bounds_tables.configs,
        "passes": bounds_tables.passes,
    },
    DOCS / "results" / "studies.md": {"columns": columns, "score_precision": score_precision},
    DOCS / "results" / "memory.md": {"traffic": traffic, "list_memory": lists},
    DOCS / "data.md": {"clips": clips.page},
}


def evidence(images: Path = IMAGES) -> Sections:
    """The sections of docs/evidence.md, which draw into `images`."""

    def drawing(make: Callable[[Path, Path], str]) -> Callable[[Path], str]:
        return lambda results: make(results, images)

    return {name: drawing(make) for name, make in evidence_page.SECTIONS.items()}


def render(page: str, sections: Sections, results: Path = RESULTS) -> str:
    """The page with its sections made anew.

    Raises:
        ValueError: a section's marks are not in the page.
    """
    for name, make in sections.items():
        marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
        if not marks.search(page):
            raise ValueError(f"the page has no <!-- {name} --> ... <!-- /{name} -->")
        made = make(results)
        page = marks.sub(lambda m: f"{m[1]}{made}\n{m[2]}", page)  # noqa: B023
    return page


def main() -> None:
    for path, sections in {**PAGES, EVIDENCE: evidence()}.items():
        path.write_text(render(path.read_text(), sections))
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
