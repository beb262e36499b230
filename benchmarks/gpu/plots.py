"""Pictures of what a GPU measured, each with its roofline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.gpu.tables import best_dense, is_dense, latest, timed

Row = dict[str, Any]
STEPS = {"forward": "forward", "forward_backward": "forward and backward"}
TENSORS = {"forward": 4, "forward_backward": 12}  # q, k, v, out; read again, and their gradients
STYLES = {  # of the kinds that a plot shows: each one's fastest variant at 87.5 % or 95 %
    "fine 87.5%": ("fine stage, 87.5 %", "#3a9a5b", "s"),
    "vsa 87.5%": ("VSA, 87.5 %, pool to gate", "#e07b28", "o"),
    "bsa 95.0%": ("BSA, 95 %, prune to restore", "#8a4fb0", "D"),
    "flex_plain": ("FlexAttention, create_block_mask", "#b04f4f", "v"),
    "fastvideo": ("FastVideo", "#777777", "^"),
}


def draw(rows: list[Row], folder: Path) -> dict[Path, str]:
    """Time by tokens for 12 heads of 128 and of 64: the pictures' paths and titles."""
    drawn = {}
    device = rows[0]["device"].lower().replace(" ", "-")
    for heads, dim in ((12, 128), (40, 128), (12, 64)):
        mine = [r for r in timed(rows) if (r["shape"][1], r["shape"][3]) == (heads, dim)]
        if mine:
            path = folder / f"gpu-{device}-{heads}x{dim}.png"
            title = f"One attention layer, {heads} heads of {dim}, bf16"
            _draw(mine, latest(rows, "machine"), path, title)
            drawn[path] = f"{title}, on {rows[0]['device']}"
    return drawn


def _draw(rows: list[Row], machines: list[Row], path: Path, title: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, sharex=True)
    for (step, words), (speed, rate) in zip(STEPS.items(), axes.T):
        mine = [row for row in rows if row["step"] == step]
        cases = sorted({r["case"] for r in mine}, key=lambda c: _tokens(mine, c))
        dense = [best_dense(rows, case, step) for case in cases]
        _line(speed, rate, [r for r in dense if r], "dense, the fastest", "#3c6eb4", "o")
        for kind, (label, colour, marker) in STYLES.items():
            best = [_fastest(mine, case, kind) for case in cases]
            _line(speed, rate, [r for r in best if r], label, colour, marker)
        if machines:
            _roof(speed, rate, mine, cases, step, machines[-1])
        speed.set(xscale="log", yscale="log", ylabel="milliseconds (lower is better)")
        speed.set_title(words, loc="left")
        rate.set(xlabel="tokens", ylabel="TFLOP/s on what is computed", ylim=(0, None))
        ticks = sorted({row["shape"][2] for row in mine})
        for axis in (speed, rate):
            axis.set_xticks(ticks, [f"{t / 1000:.0f}K" for t in ticks], minor=False)
            axis.set_xticks([], minor=True)
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, fontsize=9)
    figure.suptitle(f"{title}, {rows[0]['device']}", x=0.01, ha="left", fontsize=13)
    path.parent.mkdir(exist_ok=True, parents=True)
    figure.savefig(path, dpi=110)


def _line(speed: Any, rate: Any, rows: list[Row], label: str, colour: str, marker: str) -> None:
    if rows:
        tokens = [row["shape"][2] for row in rows]
        style: dict[str, Any] = dict(color=colour, marker=marker, label=label, linewidth=2)
        speed.plot(tokens, [row["ms"] for row in rows], **style)
        rate.plot(tokens, [row["tflops"] for row in rows], **style)


def _roof(
    speed: Any, rate: Any, rows: list[Row], cases: list[str], step: str, machine: Row
) -> None:
    """The least time of the fine stage: its products at the rate of large matrix products, or its
    tensors once through memory, whichever is more; both measured in the same run."""
    found = [(r, floor_ms(r, step, machine)) for c in cases if (r := _fastest(rows, c, "fine"))]
    if found:
        tokens = [row["shape"][2] for row, _ in found]
        style: dict[str, Any] = dict(color="black", linestyle="--", linewidth=1.2)
        speed.plot(tokens, [ms for _, ms in found], label="roofline, 87.5 %", **style)
        rate.plot(tokens, [r["flops"] / ms / 1e9 for r, ms in found], **style)


def floor_ms(row: Row, step: str, machine: Row) -> float:
    """The least milliseconds that the FLOPs and the bytes of ``row`` can take on ``machine``."""
    size = 2 * row["shape"][0] * row["shape"][1] * row["shape"][2] * row["shape"][3]
    products = row["flops"] / machine["matmul_tflops"] / 1e9
    return max(products, TENSORS[step] * size / machine["copy_gbps"] / 1e6)


def _tokens(rows: list[Row], case: str) -> int:
    return next(row["shape"][2] for row in rows if row["case"] == case)


def _fastest(rows: list[Row], case: str, kind: str) -> Row | None:
    mine = [r for r in rows if r["case"] == case and r["method"].startswith(kind)]
    mine = [r for r in mine if not is_dense(r)]
    return min(mine, key=lambda r: r["ms"], default=None)
