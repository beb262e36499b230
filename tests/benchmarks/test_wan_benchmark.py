"""The benchmark of Wan, at a tiny size on the CPU: what is wrong is not timed, rows are whole."""

import ast
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

import flexsparse.nn.modules as nn_modules
from benchmarks.record import read
from benchmarks.wan import __main__ as command
from benchmarks.wan import run as wan_run
from benchmarks.wan.run import Run
from flexsparse import Threshold, VideoTiling

ROOT = Path(__file__).parent.parent.parent
DEFAULTS = command.ON_CPU
GRID = (4, 6, 9)  # ragged tiles
NAMES = ["dense", "vsa 87.5%", "vsa 90.0%", "bsa 93.8%"]


def run(file, *more):
    tiny = ["--sizes", "debug", "--layers", "2", "--grids", "4x6x9", "--rounds", "1"]
    return command.main([*tiny, "--results", str(file), *more])


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    file = tmp_path_factory.mktemp("results") / "tiny.jsonl"
    return SimpleNamespace(file=file, status=run(file), rows=read("tiny", file.parent))


def test_every_method_has_a_whole_row_and_ratios_are_to_dense_beside_it(measured):
    assert measured.status == 0 and [row["method"] for row in measured.rows] == NAMES
    dense = measured.rows[0]
    tilings = [None] + 3 * [VideoTiling.fit(GRID)]
    for row, tiling in zip(measured.rows, tilings):
        assert row["size"] == "debug" and row["layers"] == 2 and row["compiled"] is False
        assert row["grid"] == [*GRID] and row["tokens"] == math.prod(GRID)
        assert row["tile"] == (tiling and [*tiling.tile]) and row["query_tiles"] == 1
        assert row["dtype"] == "float32" and row["one_block"] is False and row["peak_bytes"] is None
        assert {"device", "torch", "triton", "cuda", "date", "commit", "sdpa"} <= row.keys()
        assert "ratios alone" in row["note"] and row["weight_bytes"] > 0
        assert 0 < row["attention_ms"] < row["ms"] and row["step_ms"] == pytest.approx(
            2 * row["ms"], abs=2e-3
        )
        assert row["share"] == pytest.approx(row["attention_ms"] / row["ms"], abs=1e-3)
        for key, of in (("ratio", "ms"), ("attention_ratio", "attention_ms")):
            assert row[key] == pytest.approx(dense[of] / row[of], rel=1e-2, abs=1e-3)
        checked = {"model, vsa", "model, bsa", *(f"attention, {name}" for name in NAMES[1:])}
        assert row["error_ratios"].keys() == checked
        assert all(0 < ratio <= 1 for ratio in row["error_ratios"].values())
    n = VideoTiling.fit(GRID).num_tiles
    left = {row["method"]: row["sparsity"] for row in measured.rows}
    assert left["dense"] == 0
    assert left["vsa 87.5%"] == pytest.approx(1 - max(1, round(n / 8)) / n, abs=1e-4)
    assert left["bsa 93.8%"] > left["vsa 87.5%"]
    shown = wan_run.table(measured.rows)
    assert "(goal 6)" in shown and "(goal 1.7)" in shown and shown.count("| debug, 2 |") == 4


def test_it_goes_on_from_what_it_has(measured, capsys):
    assert run(measured.file, "--resume") == 0
    assert read("tiny", measured.file.parent) == measured.rows
    assert "tiny.jsonl has it" in capsys.readouterr().out
    args = command.parse(["--sizes", "debug", "--layers", "2", "--grids", "4x6x9"], **DEFAULTS)
    (case,) = command.cases_of(args)
    here = Run("cpu", measured.file, 60, 1, 1)
    assert here.has(case) and not here.has(case._replace(compiled=True))
    assert not Run("cpu", measured.file, 60, 1, 2).has(case)  # other query tiles
    with mock.patch.object(wan_run, "commit", lambda: "another"):
        assert not here.has(case)


def test_a_case_that_does_not_fit_in_the_budget_is_not_begun(tmp_path, capsys):
    with mock.patch.object(Run, "measure", side_effect=AssertionError):
        assert run(tmp_path / "none.jsonl", "--budget", "0.01") == 0
    assert "left out, it takes about" in capsys.readouterr().out
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "error, status",
    [(torch.OutOfMemoryError("full: 2 GiB\nmore"), 0), (RuntimeError("no: 2 GiB\nmore"), 1)],
)
def test_a_case_that_fails_does_not_stop_the_others(error, status, tmp_path, capsys):
    with mock.patch.object(Run, "measure", side_effect=[error, []]) as measure:
        assert run(tmp_path / "none.jsonl", "--grids", "4x6x9", "4x6x8") == status
    assert measure.call_count == 2
    assert f"left out: {type(error).__name__}" in (out := capsys.readouterr().out)
    assert "2 GiB" in out and "more" not in out


def test_time_expected_grows_with_the_work(tmp_path):
    more = ["--sizes", "debug", "wan_1_3b", "--grids", "4x6x9", "8x6x9", "--compiled"]
    args = command.parse(more, **DEFAULTS)
    cases = command.cases_of(args)
    assert [case.compiled for case in cases] == 4 * [True, False]
    expected = list(map(Run("cpu", tmp_path / "a.jsonl", 60, 1, 1).expected, cases))
    eager = expected[1::2]
    assert eager == sorted(eager) and all(a > b for a, b in zip(expected[::2], eager))


def scaled(attention):
    return lambda *args, **how: 1.01 * attention(*args, **how)


def other_coarse(attention):
    def wrong(*args, gate_coarse, **how):
        return attention(*args, gate_coarse=-gate_coarse, **how)

    return wrong


def other_choice(attention):
    def wrong(*args, kv, **how):
        return attention(*args, kv=Threshold(1) if isinstance(kv.at(8), Threshold) else kv, **how)

    return wrong


@pytest.mark.parametrize(
    "name, broken, said",
    [
        ("vsa_attention", scaled, "model, vsa"),
        ("bsa_attention", scaled, "model, bsa"),
        ("vsa_attention", other_coarse, "attention, vsa 87.5%"),
        ("bsa_attention", other_choice, "attention, bsa 93.8%"),
    ],
)
def test_what_is_wrong_has_no_row(name, broken, said, tmp_path, capsys):
    with mock.patch.object(nn_modules, name, broken(getattr(nn_modules, name))):
        assert run(tmp_path / "none.jsonl", "--grids", "8x9x10") == 1
    out = capsys.readouterr().out
    assert "wrong, times the largest error allowed" in out and said in out
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "given, said",
    [
        (["--grids", "16x28"], "'16x28' is no grid"),
        (["--grids", "4x0x8"], "'4x0x8' is no grid"),
        (["--sizes", "wan_2b"], "there is no size 'wan_2b': give some of wan_1_3b, wan_14b"),
        (["--methods", "vsa", "sparge"], "there is no method 'sparge'"),
        (["--rounds", "0"], "--rounds is 0; give at least 1"),
        (["--no-eager"], "--no-eager and --no-compiled leave nothing"),
        (["--results", "rows.json"], "rows.json: give a .jsonl"),
        (["--query-tiles", "999"], "999"),
    ],
)
def test_what_there_is_not_is_refused_in_a_line(given, said, tmp_path, capsys):
    with mock.patch.object(Run, "__init__", side_effect=AssertionError):
        assert run(tmp_path / "none.jsonl", *given) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("benchmarks.wan: ") and err.count("\n") == 1


def test_it_needs_torch_and_einops_alone():
    files = set((ROOT / "benchmarks").glob("wan*.py")) - {ROOT / "benchmarks/wan_loading.py"}
    due = {"torch", "flexsparse", "models", "benchmarks", *sys.stdlib_module_names}
    for path in files:
        nodes = ast.walk(ast.parse(path.read_text()))
        imports = [n for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)]
        names = [n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in imports]
        assert {name.split(".")[0] for name in names} <= due, path
    others = "safetensors diffusers transformers pyarrow av matplotlib tqdm tyro torchtitan"
    code = f"import sys; sys.modules |= dict.fromkeys({others.split()})\n"
    code += "import benchmarks.wan.__main__"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
