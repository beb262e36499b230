"""The graphs that Inductor writes for a GPU, run on a CPU: right, and red when they are not."""

import pytest
import torch
from broken import broken
from cuda_build import needed

from benchmarks.compiled.problems import PROBLEMS
from benchmarks.compiled.run import OutOfBounds, ratios
from flexsparse.engines.kernel_options import release

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


LISTS = "flexsparse/choice/lists.py", "return (partial, first, full, last) if"
QUOTA, MASK = "flexsparse/kernels/prune_queries.py", "flexsparse/choice/block_mask.py"
SHARE = "share = tokens.to(tl.float64) * tl.full([], KEEP, tl.float64)"
BROKEN = {
    "full lists of the row before": (
        "fine_ragged",
        (*LISTS, "return (partial, first, full, last.roll(1, -2)) if"),
    ),
    "lists of two widths": (
        "fine_ragged",
        (*LISTS, "return (partial, F.pad(first, (0, 3)), full, last) if"),
    ),
    "a mask that captures what a kernel wrote": (
        "torchs_ragged",
        (MASK, "left_out = ~bits", "left_out = bits"),
        (MASK, "(hidden == 0)", "(hidden != 0)"),
    ),
    "a quota by a reciprocal": (
        "bsa_cut_mass",
        (QUOTA, SHARE, f"{SHARE} * 1e9 * tl.full([], 1e-9, tl.float64)"),
        (QUOTA, " + tl.full([], 5e-10, tl.float64)", ""),
    ),
}


@pytest.mark.parametrize("error", BROKEN)
def test_errors_that_only_a_gpu_would_show_are_red(tmp_path, error):
    if error == "lists of two widths" and release(torch.__version__) >= (2, 13):
        pytest.skip("since torch 2.13 each list is read by strides of its own")
    name, *edits = BROKEN[error]
    root = broken(tmp_path, *edits)
    with pytest.raises((OutOfBounds, AssertionError)):
        assert_right(ratios([name], root)[name])
