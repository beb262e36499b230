"""The layers whose bounds are known, as ``benchmarks.gpu`` times them, and their rows of results.

A process that has not used torch yet: it pretends that there is an H200.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from benchmarks.bounds.launches import Layer, launches
from benchmarks.bounds.model import Launch, bound
from benchmarks.compiled import capture, machine_code
from benchmarks.compiled.layers import long_case
from benchmarks.compiled.machine_code import Assembly
from benchmarks.compiled.rows import GRAPHS, versions
from benchmarks.gpu.cases import Method, Setting
from benchmarks.gpu.layers import KEEP, window_of
from benchmarks.gpu.traffic import traffic
from benchmarks.record import Row
from flexsparse.stages.windows import Windows

METHODS = (
    Method("dense_flex"),
    Method("vsa", 0.875, 2),
    Method("vsa", 0.875, 1),
    Method("bsa", 0.95, 4),
)
_assemble = cache(machine_code.assembly)


def rows_of(setting: Setting, method: Method) -> Iterator[Row]:
    """A row for each launch of the method's forward and backward.

    Raises:
        RuntimeError: no graph a direction; with what stopped the compiler as its cause.
    """
    kind = method.kind.partition("_")[0]
    sizes = setting.video, setting.tile, setting.heads
    case = long_case(*sizes, kind, setting.dim, method.query_tiles)
    sources, error = capture.graphs(case)
    if error is not None or len(sources) != len(GRAPHS):
        said = f"{setting.key} {method.name} gave {len(sources)} graphs in place of 2"
        raise RuntimeError(said) from error
    layer = layer_of(setting, method)
    key = dict(case=setting.key, method=method.name)
    found = [[*_rows(x, layer, **key, graph=graph)] for graph, x in zip(GRAPHS, sources)]
    for rows in found:  # all or none: half a run would be counted as part of the next
        yield from rows


def _rows(source: str, layer: Layer, **key: str) -> Iterator[Row]:
    for name, made, launch in launches(source, layer, _assemble):
        yield {**key, "kernel": name, **figures(made, launch), **versions()}


def figures(made: Assembly, launch: Launch) -> Row:
    """What a row says of a kernel. FlexAttention's backward has two kinds of programs, for dQ and
    for dK and dV, and two figures of what is ``issued``."""
    found = bound(launch)
    return {
        **made.kernel._asdict(),
        "programs": round(sum(x.count for x in launch.programs)),
        "issued": [round(x.issued) for x in launch.programs if x.issued],
        "blocks": found.blocks,
        "cycles": {what: round(x) for what, x in found.cycles.items()},
        "binds": found.binds,
        "bound_ms": round(found.ms, 5),
        "apart_ms": round(found.apart, 5),
    }


def layer_of(setting: Setting, method: Method) -> Layer:
    tiling = setting.tiling
    n, rows = tiling.num_tiles, tiling.padded_tokens
    if method.kind.startswith("dense"):
        return Layer(setting, tiling.tokens, tiling.tokens, tiling.tokens, 0, {})
    share = (1 - method.sparsity) / (KEEP if method.kind == "bsa" else 1)
    queries = rows
    if method.kind == "bsa":
        queries = n * Windows(tiling, KEEP, window_of(setting)).kept_rows
    keys = round(n * share) * tiling.rows
    return Layer(setting, keys, queries, rows, method.query_tiles, traffic(setting))


def print_row(row: Row) -> None:
    if "search" in row:
        what = f"{row['case']:11} {row['search']:8} x{row['query_tiles']} {row['config']!s:28}"
    else:
        what = f"{row['case']:11} {row['method']:14} {row['graph']:8} {row['kernel'][:44]:44}"
    if "error" in row:
        print(what, row["error"], flush=True)
        return
    fits = f"{row['blocks']} x {row['warps']} warps, {row['registers']} registers"
    times = f">= {row['bound_ms']:8.3f} ms by {row['binds']:16} apart {row['apart_ms']:8.3f}"
    print(f"{what} {times} {fits}", flush=True)
