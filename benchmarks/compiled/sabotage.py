"""Errors that a GPU alone would show, put back into copies of the project: each must be red."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.compiled.run import ROOT, OutOfBounds, ratios
from flexsparse.torch_names import release

Edit = tuple[str, str, str]  # a file, what is in it once, what comes in its place


class Sabotage(NamedTuple):
    """An error, put back by ``edits``, that shows in a problem."""

    problem: str
    edits: tuple[Edit, ...]
    since: tuple[int, int] = (2, 11)  # the first torch with which it is an error
    before: tuple[int, int] = (3, 0)
    says: str | None = None
    """What torch says as it compiles; None where it says nothing, and numbers are wrong."""

    def applies(self, torch: str) -> bool:
        return self.since <= release(torch) < self.before


LISTS = "flexsparse/choice/lists.py", "return (partial, first, full, last) if"
QUOTA, MASK = "flexsparse/kernels/prune_queries.py", "flexsparse/choice/block_mask.py"
SHARE = "share = tokens.to(tl.float64) * tl.full([], KEEP, tl.float64)"
SABOTAGES = {
    "full lists of the row before": Sabotage(
        "fine_ragged", ((*LISTS, "return (partial, first, full, last.roll(1, -2)) if"),)
    ),
    # since torch 2.13 each list is read by strides of its own
    "lists of two widths": Sabotage(
        "fine_ragged",
        ((*LISTS, "return (partial, F.pad(first, (0, 3)), full, last) if"),),
        before=(2, 13),
    ),
    "a mask that captures what a kernel wrote": Sabotage(
        "torchs_ragged",
        (
            (MASK, "left_out = ~bits", "left_out = bits"),
            (MASK, "(hidden == 0)", "(hidden != 0)"),
        ),
    ),
    "a quota by a reciprocal": Sabotage(
        "bsa_cut_mass",
        (
            (QUOTA, SHARE, f"{SHARE} * 1e9 * tl.full([], 1e-9, tl.float64)"),
            (QUOTA, " + tl.full([], 5e-10, tl.float64)", ""),
        ),
    ),
    # its keys are rounded otherwise than the forward's queries
    "a backward that scales before the product": Sabotage(
        "vsa_padded_large_logits_pairs_d128",
        (("flexsparse/engines/kernel_options.py", "if trains or ", "if "),),
    ),
    # torch 2.13's have 17, and from 2.14 on nothing looks for them
    "BlockMasks of thirteen entries": Sabotage(
        "fine_ragged",
        (
            (
                "flexsparse/engines/inductor_choices.py",
                'case (*_, int(q_rows), int(kv_rows), torch.fx.Node(op="get_attr")):',
                "case (*_, int(q_rows), int(kv_rows), _) if len(entry) == 13:",
            ),
        ),
        since=(2, 13),
        before=(2, 14),
        says="NoValidChoicesError",
    ),
}
ARGUMENTS_OF_2_13: list[Edit] = [
    ("flexsparse/engines/flex.py", " and not configs.TAKES_OPTIONS", ""),
    (
        "flexsparse/engines/inductor_choices.py",
        "_fwd_configs(self, *args: Any, **options: Any) -> list[Any]:\n",
        "_fwd_configs(self, head_dim, dtype, device_type='cuda') -> list[Any]:\n"
        "            args, options = (head_dim, dtype, device_type), {}\n",
    ),
]
"""A class of choices that knows torch 2.13's arguments alone, and is installed for every torch."""


def broken(folder: Path, *edits: Edit) -> Path:
    """A copy of the project in which pieces of files are replaced, each of which is there once."""
    for package in ("flexsparse", "benchmarks", "models", "train"):
        shutil.copytree(ROOT / package, folder / package)
    for path, old, new in edits:
        text = (folder / path).read_text()
        if text.count(old) != 1:
            raise ValueError(f"{path} has {text.count(old)} times, not once: {old}")
        (folder / path).write_text(text.replace(old, new))
    return folder


def is_red(error: Sabotage, python: str = sys.executable) -> bool:
    """Whether the run of the problem shows the error, with the torch of that interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        root = broken(Path(folder, "project"), *error.edits)
        try:
            found = ratios([error.problem], root, python)[error.problem]
        except OutOfBounds:
            return error.says is None
        except RuntimeError as said:
            return error.says is not None and error.says in str(said)
    return error.says is None and not all(ratio <= 1 for ratio in found.values())
