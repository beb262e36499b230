"""Bytes that the kernels of the coarse stage move and its lists take, by formula from shapes.

    python -m benchmarks.gpu.traffic

Needs no GPU and says no time. docs/results/memory.md has the tables; ``benchmarks.gpu`` puts the
bytes beside what it times. Tensors of tokens are bf16, means of tiles fp32, lists int32.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.gpu import list_memory
from benchmarks.gpu.cases import Setting
from benchmarks.gpu.layers import KEEP, window_of
from benchmarks.gpu.list_memory import COLUMNS, ROWS, SETTINGS, mb
from benchmarks.record import markdown
from flexsparse.stages.windows import Windows

CHOSEN = {1: 8, 2: 8, 4: 10}  # one tile in so many, by query tiles: VSA's 87.5 %, BSA's 95 %
OWN = {"forward": 128, "backward": 64}  # rows of a program of coarse_attention, on Hopper
OTHER = 32  # that it goes through at a time


class Traffic(NamedTuple):
    """Bytes that a launch moves.

    Attributes:
        reads: inputs, each once.
        writes: outputs, each once.
        cached: what is read again, or written and read back, and should not leave a GPU's cache.
    """

    reads: int
    writes: int
    cached: int = 0

    @property
    def floor(self) -> int:
        """What has to pass through memory: no kernel here moves more, if the cache holds."""
        return self.reads + self.writes


def traffic(setting: Setting) -> dict[str, dict[str, Traffic]]:
    """By kernel and step. Lists have steps of their own: ``inference``, by query block alone, and
    ``training``, by key tile as well."""
    tiling, heads, dim = setting.tiling, setting.heads, setting.dim
    n, windows = tiling.num_tiles, Windows(tiling, KEEP, window_of(setting))
    token = 2 * heads * dim  # bytes of one in all heads
    tokens, rows, means = tiling.tokens * token, tiling.padded_tokens * token, 4 * heads * n * dim
    kept, slots = int(windows.tables().quota.sum()) * token, n * windows.kept_rows
    of_slots, index, source = slots * token, 4 * heads * slots, 4 * heads * tiling.padded_tokens
    held = 4 * heads * n * windows.num_windows * windows.per_window  # of the index, without its end
    other, sums = -(-n // OTHER), 4 * heads * n
    own = {step: -(-n // rows_) for step, rows_ in OWN.items()}
    return {
        **{
            f"pool {names}": {"forward": Traffic(count * tokens, count * means)}
            for count, names in enumerate(("k", "q, k", "q, k, v"), 1)
        },
        **{f"choose x{x}": {"forward": _choose(setting, x)} for x in CHOSEN},
        **{
            f"lists x{x}": {
                "inference": lists(setting, x, part, by_key=False),
                "training": lists(setting, x, part, by_key=True),
            }
            for x, part in CHOSEN.items()
        },
        "coarse attention": {
            "forward": Traffic(3 * means, means + sums, (own["forward"] - 1) * 2 * means),
            # For the gradients of keys, queries and values, in all, a program goes through 9
            # tensors of the other side, and reads 5 of its own rows anew at each step of that.
            "backward": Traffic(
                5 * means + sums,
                3 * means,
                (9 * own["backward"] + 5 * other + 2 - 5) * means + 2 * own["backward"] * sums,
            ),
        },
        "combine": {
            "forward": Traffic(3 * tokens + means, rows),
            "backward": Traffic(4 * tokens + means, 3 * rows + means),
        },
        "prune": {
            "forward": Traffic(tokens, of_slots + index + means),
            "backward": Traffic(kept + index, rows),
        },
        "restore": {
            "forward": Traffic(kept + held, rows + source),
            "backward": Traffic(tokens + source, of_slots),
        },
    }


def _choose(setting: Setting, query_tiles: int) -> Traffic:
    """Each block of rows reads the keys of its head, and has its means and scores in scratch."""
    n, heads, dim = setting.tiling.num_tiles, setting.heads, setting.dim
    blocks, means = -(-n // query_tiles), 4 * heads * n * dim
    tasks, steps = -(-blocks // ROWS), -(-n // COLUMNS)
    scratch = 4 * heads * tasks * ROWS * (2 * (1 + steps) * dim + steps * COLUMNS + n)
    bits = 4 * heads * blocks * -(-n // 32)
    return Traffic(2 * means, bits, (tasks - 1) * means + scratch)


def lists(setting: Setting, query_tiles: int, part: float, *, by_key: bool) -> Traffic:
    """Where each row chooses one tile of ``part``: only what is listed is written."""
    n, heads = setting.tiling.num_tiles, setting.heads
    blocks = -(-n // query_tiles)
    bits, listed = 4 * heads * blocks * -(-n // 32), 4 * heads * blocks * round(n / part)
    writes = listed + 2 * 4 * heads * blocks  # two counts: of partial tiles, and of full ones
    if not by_key:
        return Traffic(bits, writes)
    return Traffic(bits, writes + listed + 2 * 4 * heads * n, bits)


def table() -> str:
    found = [traffic(setting) for setting in SETTINGS]
    head = ["MB"]
    for s in SETTINGS:
        head += [f"{s.tiling.tokens:,} tokens, {s.heads} heads: reads", "writes", "from cache"]
    lines = [
        [f"{kernel}, {step}", *(mb(x) for moves in found for x in moves[kernel][step])]
        for kernel, steps in found[0].items()
        for step in steps
    ]
    return markdown(head, lines)


if __name__ == "__main__":
    print(f"{table()}\n\n{list_memory.table()}")
