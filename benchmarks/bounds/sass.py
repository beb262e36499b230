"""What a kernel's machine code issues: instructions, loops, and counts of what they use."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_LINE = re.compile(
    r"^\s*(?:\.(?P<label>L_x_\d+):|/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*(?P<text>[A-Z].*?);)"
)
_CODE = re.compile(r"/\* (0x[0-9a-f]{16}) \*/\s*$")
_TARGET = re.compile(r"`\(\.(L_x_\d+)\)")
# 64 of these a cycle: a warp's takes 2 cycles of its scheduler's unit.
_HALF_RATE = frozenset(
    "FMNMX FSEL FSETP IADD3 IMNMX ISETP LEA LOP3 PLOP3 PRMT SEL SGXT SHF VIADD VIMNMX".split()
)
_WGMMA = re.compile(r"HGMMA\.64x(\d+)x(8|16)\.")  # of 32 bytes deep: tf32, or bf16
_MMA = re.compile(r"HMMA\.168(8|16)\.")  # of 16 x 8 x 8, or 16
_GLOBAL = re.compile(r"(?:LDG|LDGSTS|STG)\b")
_SHARED = re.compile(r"(?:LDS|STS|LDGSTS)\b")
_MATRICES = re.compile(r"(?:LDSM|STSM)\.16\.MT?88(?:\.(\d))?")


class Instruction(NamedTuple):
    """One of a warp: its text, and the cycles before the warp may issue the next one, by the
    compiler's own scheduling."""

    text: str
    stall: int

    @property
    def name(self) -> str:
        return re.split(r"[. ]", self.text, maxsplit=1)[0]


class Loop(NamedTuple):
    """Instructions from ``first`` to ``last``, those of the loops within it among them."""

    first: int
    last: int


class Counts(NamedTuple):
    """What a warp uses: cycles of its scheduler, bytes of all its threads.

    Attributes:
        issue: instructions.
        alu, exp2, tensor: cycles of the half-rate units, of MUFU, of the tensor cores.
        exposed: instructions with no product of the warp in flight, and their cycles by ``stall``.
        chain: the least cycles that they all take one warp, products that it waits for included.
        shared, device: bytes to and from shared memory, and to and from L2.
        products: multiply-adds.
    """

    issue: float = 0
    alu: float = 0
    exp2: float = 0
    tensor: float = 0
    exposed: float = 0
    exposed_stall: float = 0
    chain: float = 0
    shared: float = 0
    device: float = 0
    products: float = 0

    def times(self, factor: float) -> Counts:
        return Counts(*(factor * x for x in self))

    def plus(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(self, other)))


def read(sass: str) -> tuple[list[Instruction], list[Loop]]:
    """Instructions and loops, by their first one, of what ``nvdisasm -c -hex`` prints; what fills
    the end of a kernel, behind its last exit, no warp ever comes to."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    loops = []
    lines = sass.splitlines()
    for line, following in zip(lines, [*lines[1:], ""]):
        match = _LINE.match(line)
        if match is None:
            continue
        if match["label"]:
            labels[match["label"]] = len(found)
            continue
        code = _CODE.search(following)
        stall = int(code[1], 16) >> 41 & 15 if code else 1
        found.append(Instruction(match["text"].strip(), max(1, stall)))
        target = _TARGET.search(match["text"])
        if target and found[-1].name == "BRA":
            first = labels.get(target[1], len(found))
            if first < len(found) - 1:  # and not the endless one behind the code
                loops.append(Loop(first, len(found) - 1))
    ends = [i for i, x in enumerate(found) if x.name == "EXIT"] + [loop.last for loop in loops]
    return found[: max(ends, default=len(found)) + 1], sorted(loops)


def own(code: Sequence[Instruction], loop: Loop, loops: Iterable[Loop]) -> list[Instruction]:
    """A loop's instructions without those of the loops within it."""
    inner = [x for x in loops if x != loop and loop.first <= x.first and x.last <= loop.last]
    within = {i for x in inner for i in range(x.first, x.last + 1)}
    return [code[i] for i in range(loop.first, loop.last + 1) if i not in within]


def count(code: Sequence[Instruction]) -> Counts:
    """Of instructions that a warp goes through once, over and over if a product is still in flight
    at their end."""
    total = Counts()
    for instruction in code:
        total = total.plus(_one(instruction))
    exposed, stalls, chain = _wait(code)
    return total._replace(exposed=exposed, exposed_stall=stalls, chain=chain)


def _wait(code: Sequence[Instruction]) -> tuple[int, int, float]:
    """Exposed instructions, their cycles, and those of the chain."""
    ends = [i for i, x in enumerate(code) if _is_wait(x)]
    if ends:  # begin where nothing is in flight
        code = [*code[ends[0] + 1 :], *code[: ends[0] + 1]]
    exposed = stalls = 0
    chain = flight = covered = 0.0
    flying = False
    for x in code:
        flying = flying or x.name == "HGMMA"
        if flying:
            flight, covered = flight + _one(x).tensor, covered + x.stall
        else:
            exposed, stalls, chain = exposed + 1, stalls + x.stall, chain + x.stall
        if _is_wait(x):
            chain += max(flight, covered) if flying else 0
            flying, flight, covered = False, 0.0, 0.0
    return exposed, stalls, chain + max(flight, covered)


def _is_wait(x: Instruction) -> bool:
    return x.text.startswith("WARPGROUP.DEPBAR") and x.text.split()[-1] == "0x0"


def _one(x: Instruction) -> Counts:
    text, name = x.text, x.name
    used = Counts(issue=1, alu=2 * (name in _HALF_RATE), exp2=8 * (name == "MUFU"))
    if wgmma := _WGMMA.match(text):  # a warp has 16 of the 64 rows, and a quarter of the reads
        columns = int(wgmma[1])
        rows_too = re.match(r"\S+ R\d+, gdesc", text) is not None
        read = 32 * (columns + 64 * rows_too) / 4
        return used._replace(tensor=columns / 2, shared=read, products=16 * columns * int(wgmma[2]))
    if mma := _MMA.match(text):
        products = 16 * 8 * int(mma[1])
        rate = 256 if ".TF32" in text else 512  # of a tensor core, a cycle
        return used._replace(tensor=products / rate, products=products)
    if matrices := _MATRICES.match(text):
        return used._replace(shared=128 * int(matrices[1] or 1))
    bytes_ = 32 * _width(text)
    return used._replace(
        shared=bytes_ if _SHARED.match(text) else 0, device=bytes_ if _GLOBAL.match(text) else 0
    )


def _width(text: str) -> int:
    """Bytes of a thread."""
    for modifier in text.split()[0].split("."):
        if modifier in ("U8", "S8", "U16", "S16"):
            return int(modifier[1:]) // 8
        if modifier in ("64", "128"):
            return int(modifier) // 8
    return 4
