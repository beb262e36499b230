"""The launches of a layer: which loops of a kernel's machine code run how often, in how many
programs, by what the layer is. Lists are as long as on average."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from benchmarks.bounds import buffers
from benchmarks.bounds.model import Launch, Program
from benchmarks.bounds.sass import Counts, Instruction, Loop, count, own, read
from benchmarks.compiled import machine_code
from benchmarks.compiled.machine_code import Assembly
from benchmarks.gpu.cases import Setting
from benchmarks.gpu.traffic import COLUMNS, OTHER, ROWS, Traffic


class Layer(NamedTuple):
    """What its kernels have to do.

    Attributes:
        keys: rows of keys that a query attends to.
        queries: rows of queries of a head.
        rows: of keys of a head.
        query_tiles: that choose together; 0 of dense attention.
        moved: bytes of our own kernels, as ``benchmarks.gpu.traffic`` has them.
    """

    setting: Setting
    keys: float
    queries: int
    rows: int
    query_tiles: int
    moved: Mapping[str, Mapping[str, Traffic]]


class Code(NamedTuple):
    """A kernel's instructions and loops, and how it is started."""

    code: list[Instruction]
    loops: list[Loop]
    warps: int
    grid: tuple[int, ...]
    constants: Mapping[str, int]

    def of(self, loop: Loop) -> Counts:
        return count(own(self.code, loop, self.loops))

    def within(self, loop: Loop) -> list[Loop]:
        inner = [x for x in self.loops if x != loop]
        return [x for x in inner if loop.first <= x.first and x.last <= loop.last]

    @property
    def outer(self) -> list[Loop]:
        return [x for x in self.loops if not any(x in self.within(y) for y in self.loops)]

    @property
    def programs(self) -> int:
        return math.prod(self.grid)

    def straight(self) -> Counts:
        """All of it once."""
        return count(self.code)


def launches(
    source: str, layer: Layer, assemble: Callable[[str], Assembly], only: str = ""
) -> Iterator[tuple[str, Assembly, Launch]]:
    """Name, machine code and launch of every kernel that a generated module starts, in order;
    ``only`` those with this in their name."""
    defined = re.findall(r"^(\w+) = async_compile\.triton\(", source, re.M)
    kernels = dict(zip(defined, machine_code.kernels(source), strict=True))
    known = buffers.sizes(source)
    for started, given in re.findall(r"^\s+(\w+)\.run\((.*), stream=", source, re.M):
        name, text = kernels[started]
        if only not in name:
            continue
        made = assemble(text)
        numbers = [int(x) for x in given.split(", ") if re.fullmatch(r"\d+", x)]
        grid = _grid(name, numbers, made.elements)
        code, loops = read(made.sass)
        kernel = made.kernel
        own = {name: int(value) for name, value in re.findall(r"'(BLOCK_R)': (\d+)", text)}
        of = Code(code, loops, kernel.warps, grid, machine_code.constants(text) | own)
        programs = _recipe(name)(of, layer)
        moved = _memory(name, layer, of)
        if name.startswith("triton_p"):  # threads may ask for one number, and blocks for one row
            moved = min(moved, buffers.least_moved(given, text, known))
        yield (
            name,
            made,
            Launch(kernel.warps, kernel.registers, kernel.shared_bytes, programs, moved),
        )


def _grid(name: str, numbers: Sequence[int], elements: int) -> tuple[int, ...]:
    if name.startswith(("_", "triton_tem")):
        return tuple(numbers[-3:])
    rows = numbers[-1] if name.startswith("triton_poi") else numbers[-2]
    return (-(-rows // max(1, elements)),)


def _recipe(name: str) -> Callable[[Code, Layer], list[Program]]:
    for pattern, recipe in _RECIPES.items():
        if re.match(pattern, name):
            return recipe
    return lambda of, _: [Program(of.programs, of.straight())]


def _flex(
    of: Code, loops: Sequence[Loop], dim: int, rows: float, length: float, block: tuple[int, int],
    products: int,
) -> Program:  # fmt: skip
    """Programs of ``block[0]`` of so many rows, with trips through the best of ``loops`` for each
    ``block[1]`` of ``length`` others, of which each brings K and V, or Q and dO, from L2 and owes
    so many products. Ragged tilings have two loops, one with a mask."""
    scores, read_ = block[0] * block[1], 4 * block[1] * dim
    due = products * scores * dim
    if not loops:
        raise RuntimeError("no loop with products in the machine code of FlexAttention's kernel")
    best = min(map(of.of, loops), key=lambda x: x.issue)
    if best.products * of.warps < due:
        raise RuntimeError(f"a loop makes {best.products * of.warps} products in place of {due}")
    read_ /= of.warps
    by_tma = max(0.0, read_ - best.device)  # a thread asks for it, the bytes are not in the code
    used = best._replace(device=read_, shared=best.shared + by_tma)
    issued = best.issue * of.warps / 4 * 64 * 64 / scores
    return Program(rows / block[0], used.times(length / block[1]), issued)


def _products_loops(of: Code) -> list[Loop]:
    return [x for x in of.loops if not of.within(x) and of.of(x).products]


def _flex_forward(of: Code, layer: Layer) -> list[Program]:
    m, n = of.constants["BLOCK_M"], of.constants["BLOCK_N"]
    rows = layer.setting.heads * -(-layer.queries // m) * m
    return [_flex(of, _products_loops(of), layer.setting.dim, rows, layer.keys, (m, n), 2)]


def _flex_backward(of: Code, layer: Layer) -> list[Program]:
    """Programs for dQ make three products of each pair, those for dK and dV four; the template has
    dQ first."""
    heads, dim = layer.setting.heads, layer.setting.dim
    m1, n1, m2, n2 = (of.constants[f"BLOCK_{x}"] for x in ("M1", "N1", "M2", "N2"))
    loops = _products_loops(of)
    half = len(loops) // 2
    queries = layer.queries * layer.keys / layer.rows
    return [
        _flex(of, loops[:half], dim, heads * layer.queries, layer.keys, (m2, n2), 3),
        _flex(of, loops[half:], dim, heads * layer.rows, queries, (n1, m1), 4),
    ]


def _select(of: Code, layer: Layer) -> list[Program]:
    n, heads = layer.setting.tiling.num_tiles, layer.setting.heads
    blocks = -(-n // layer.query_tiles)
    tasks = heads * -(-blocks // ROWS)
    (task,) = [x for x in of.outer if of.within(x)]
    used = of.of(task)
    scoring = [x for x in of.within(task) if of.of(x).products]
    for loop in scoring:
        used = used.plus(of.of(loop).times(-(-n // COLUMNS)))
    rest = [x for x in of.within(task) if x not in scoring]
    turns = 1.0
    for row in [x for x in rest if of.within(x)]:  # some rows at a time
        turns = ROWS / of.constants["BLOCK_R"]
        used = used.plus(of.of(row).times(turns))
        rest = of.within(row)
    for search in rest[:1]:  # the second decides between equal scores, and there are none
        used = used.plus(of.of(search).times(math.log2(max(2, n)) * turns))  # one of n is found
    return [Program(of.programs, used.times(tasks / of.programs))]


def _lists(of: Code, layer: Layer) -> list[Program]:
    n, heads = layer.setting.tiling.num_tiles, layer.setting.heads
    blocks, words = -(-n // layer.query_tiles), -(-n // 32)
    by_key = words if of.grid[0] > words else 0
    if not by_key:
        return [Program(of.programs, of.straight())]
    (loop,) = of.outer  # of programs by key, whose code stands between an exit and the next
    exits = [i for i, x in enumerate(of.code) if x.name == "EXIT"]
    first = max((i + 1 for i in exits if i < loop.first), default=0)
    last = min((i for i in exits if i > loop.last), default=loop.last)
    by_query = count([*of.code[:first], *of.code[last + 1 :]])
    return [
        Program(heads * (of.grid[0] - by_key), by_query),
        Program(heads * by_key, of.of(loop).times(-(-blocks // 64))),
    ]


def _coarse(of: Code, layer: Layer) -> list[Program]:
    """The backward has three kinds of programs, each with a loop over the other side, in which may
    be one over pieces of the head dim."""
    trips = -(-layer.setting.tiling.num_tiles // OTHER)
    found = [x for x in of.outer if any(of.of(y).products for y in [x, *of.within(x)])]
    programs = []
    for loop in found:
        used = of.of(loop)
        for inner in of.within(loop):
            used = used.plus(of.of(inner).times(layer.setting.dim / 16))
        programs.append(Program(of.programs / len(found), used.times(trips)))
    return programs


_RECIPES: dict[str, Callable[[Code, Layer], list[Program]]] = {
    r"triton_tem\w*flex_attention_backward": _flex_backward,
    r"triton_tem\w*flex_attention": _flex_forward,
    r"_select": _select,
    r"_lists": _lists,
    r"_coarse_(forward|backward)": _coarse,
}


def _memory(name: str, layer: Layer, of: Code) -> float:
    """Bytes that pass through memory: inputs and outputs, each once; of other kernels all that they
    ask for."""
    token = 2 * layer.setting.heads * layer.setting.dim
    if name.startswith("triton_tem"):
        backward = "backward" in name
        q, kv = (3, 4) if backward else (2, 2)
        return token * (q * layer.queries + kv * layer.rows)
    moved = layer.moved
    for pattern, key, step in (
        (r"_select", f"choose x{layer.query_tiles}", "forward"),
        (r"_lists", f"lists x{layer.query_tiles}", "training"),
        (r"_coarse_forward", "coarse attention", "forward"),
        (r"_coarse_backward", "coarse attention", "backward"),
        (r"_combine_forward", "combine", "forward"),
        (r"_combine_backward", "combine", "backward"),
        (r"_prune_forward", "prune", "forward"),
        (r"_prune_backward", "prune", "backward"),
        (r"_restore_forward", "restore", "forward"),
        (r"_restore_backward", "restore", "backward"),
    ):
        if re.match(pattern, name):
            return moved[key][step].floor
    asked = of.straight().device * of.warps * of.programs
    tiling = layer.setting.tiling  # pooling leaves padding out, by a mask
    return asked * (tiling.tokens / tiling.padded_tokens if name.startswith("_pool") else 1)
