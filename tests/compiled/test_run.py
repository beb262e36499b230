"""The graphs that Inductor writes for a GPU, run on a CPU: right, and red when they are not."""

import pytest
import torch
from cuda_build import needed

from benchmarks.compiled.problems import PROBLEMS
from benchmarks.compiled.run import ratios
from benchmarks.compiled.sabotage import SABOTAGES, Sabotage, is_red

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


@pytest.mark.parametrize("error", SABOTAGES)
def test_errors_that_only_a_gpu_would_show_are_red(error):
    sabotage = SABOTAGES[error]
    if not sabotage.applies(torch.__version__):
        pytest.skip(f"an error with torch {sabotage.since} to before {sabotage.before} alone")
    assert is_red(sabotage)


def test_what_is_right_is_not_red():
    assert not is_red(Sabotage("fine_ragged", ()))
