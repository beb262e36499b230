"""The layers whose bounds are known, as ``benchmarks.gpu`` times them, and their rows of results.

A process that has not used torch yet: it pretends that there is an H200.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import torch

from benchmarks.bounds.launches import Layer, launches
from benchmarks.bounds.model import Launch, bound
from benchmarks.compiled import capture, machine_code
from benchmarks.compiled.layers import long_case
from benchmarks.compiled.machine_code import Assembly
from benchmarks.compiled.rows import GRAPHS, versions
from benchmarks.gpu.cases import OURS, Method, Setting
from benchmarks.gpu.layers import KEEP, rule_of, window_of
from benchmarks.gpu.traffic import lists, traffic
from benchmarks.record import Row
from flexsparse.stages.windows import Windows

METHODS = (Method("dense_flex"), *(x for x in OURS if x.kind != "fine"))  # fine: a part of vsa
_assemble = cache(machine_code.assembly)


def alike(methods: Iterable[Method]) -> list[list[Method]]:
    """Methods that differ in sparsity alone stand together."""
    found: dict[tuple[str, int], list[Method]] = {}
    for method in methods:
        found.setdefault((method.kind, method.query_tiles), []).append(method)
    return list(found.values())


def rows_of(setting: Setting, methods: Sequence[Method]) -> Iterator[Row]:
    """A row for each launch of the forward and backward of each method, which are :func:`alike`.

    The first is compiled: sparsity is the length of lists and numbers that a rule compares with,
    which leaves registers and every count of the machine code as they are.

    Raises:
        RuntimeError: no graph a direction; with what stopped the compiler as its cause.
    """
    first, sizes = methods[0], (setting.video, setting.tile, setting.heads)
    rule = rule_of(first, setting) if first.sparsity else None
    torch.compiler.reset()  # all settings are one function to the compiler
    case = long_case(*sizes, first.kind, setting.dim, first.query_tiles, rule)
    sources, error = capture.graphs(case)
    if error is not None or len(sources) != len(GRAPHS):
        said = f"{setting.key} {first.name} gave {len(sources)} graphs in place of 2"
        raise RuntimeError(said) from error
    for method in methods:
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
    pruned = method.kind.startswith("bsa")
    chosen = round(n * (1 - method.sparsity) / (KEEP if pruned else 1))
    queries = n * Windows(tiling, KEEP, window_of(setting)).kept_rows if pruned else rows
    blocks = method.query_tiles
    own = {f"lists x{blocks}": {"training": lists(setting, blocks, n / chosen, by_key=True)}}
    return Layer(setting, chosen * tiling.rows, queries, rows, blocks, traffic(setting) | own)


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
