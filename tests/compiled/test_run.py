"""The graphs that Inductor writes for a GPU, run on a CPU: right, and red when they are not."""

import math

import pytest
import torch
from cuda_build import needed

from benchmarks.compiled import sabotage
from benchmarks.compiled.problems import PROBLEMS
from benchmarks.compiled.run import OutOfBounds, main, ratios
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


def test_a_problem_that_there_is_not_is_named_in_a_line(capsys):
    assert main(["fine_fulll"]) == 2
    assert "no problem ['fine_fulll']: there are fine_full, " in capsys.readouterr().err


@pytest.mark.parametrize("error", SABOTAGES)
def test_errors_that_only_a_gpu_would_show_are_red(error):
    put_back = SABOTAGES[error]
    if not put_back.applies(torch.__version__):
        pytest.skip(f"an error from torch {put_back.since} to before {put_back.before} alone")
    assert is_red(put_back)


@pytest.mark.parametrize(
    "found, says, red",
    [
        ({"out": 0.5, "dq": 1.0}, None, False),
        ({"out": 0.5, "dq": 1.1}, None, True),
        ({"out": math.nan, "dq": 0.5}, None, True),
        (OutOfBounds(), None, True),
        (RuntimeError("another"), None, False),
        (RuntimeError("this one"), "this", True),
        (RuntimeError("another"), "this", False),
        ({"out": 2.0}, "this", False),
    ],
)
def test_what_is_red(monkeypatch, found, says, red):
    def ratios(*_):
        if isinstance(found, Exception):
            raise found
        return {"name": found}

    monkeypatch.setattr(sabotage, "ratios", ratios)
    monkeypatch.setattr(sabotage, "broken", lambda *_: None)
    assert is_red(Sabotage("name", (), says=says)) == red
