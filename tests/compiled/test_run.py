"""The graphs that Inductor writes for a GPU, run on a CPU: right, and red when they are not."""

import shutil

import pytest
import torch
from cuda_build import needed

from benchmarks.compiled.problems import PROBLEMS
from benchmarks.compiled.run import ROOT, OutOfBounds, ratios
from flexsparse.kernel_options import release

pytestmark = needed


@pytest.fixture(scope="module")
def found():
    return ratios()


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_a_gpu_would_run_equals_fp64(found, name):
    problem = PROBLEMS[name]
    assert len(found[name]) == (4 + problem.gates if problem.trains else 1)
    assert_right(found[name])


def assert_right(errors):
    assert not {what: ratio for what, ratio in errors.items() if not ratio <= 1}


BROKEN = {
    "full lists of the row before": (
        "fine_ragged",
        "flexsparse/lists.py",
        "return (partial, first, full, last) if",
        "return (partial, first, full, last.roll(1, -2)) if",
    ),
    "lists of two widths": (
        "fine_ragged",
        "flexsparse/lists.py",
        "return (partial, first, full, last) if",
        "return (partial, F.pad(first, (0, 3)), full, last) if",
    ),
    "a mask that captures what a kernel wrote": (
        "torchs_ragged",
        "flexsparse/block_mask.py",
        "left_out = ~bits",
        "left_out = bits",
        "(hidden == 0)",
        "(hidden != 0)",
    ),
    "a quota by a reciprocal": (
        "bsa_cut_mass",
        "flexsparse/kernels/prune_queries.py",
        "share = tokens.to(tl.float64) * tl.full([], KEEP, tl.float64)",
        "share = (tokens.to(tl.float64) * KEEP * 1e9) * tl.full([], 1e-9, tl.float64)",
        " + tl.full([], 5e-10, tl.float64)",
        "",
    ),
}


def broken(folder, path, *edits):
    """A copy of the project in which pieces of a file are replaced."""
    for package in ("flexsparse", "benchmarks"):
        shutil.copytree(ROOT / package, folder / package)
    text = (folder / path).read_text()
    for old, new in zip(edits[::2], edits[1::2]):
        assert text.count(old) == 1, f"{path} has no longer: {old}"
        text = text.replace(old, new)
    (folder / path).write_text(text)
    return folder


@pytest.mark.parametrize("error", BROKEN)
def test_errors_that_only_a_gpu_would_show_are_red(tmp_path, error):
    if error == "lists of two widths" and release(torch.__version__) >= (2, 13):
        pytest.skip("since torch 2.13 each list is read by strides of its own")
    name, path, *edits = BROKEN[error]
    root = broken(tmp_path, path, *edits)
    with pytest.raises((OutOfBounds, AssertionError)):
        assert_right(ratios([name], root)[name])
