"""The GPU's benchmark: it ends, at tiny sizes on the CPU, and finds what is wrong."""

import ast
import contextlib
import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import forked
import pytest
import torch
from gpu_settings import SMALL

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import checks, coarse, parts, processes, sweep, tables
from benchmarks.gpu.cases import Method, methods, settings
from benchmarks.gpu.drawn import forget
from benchmarks.gpu.methods import KINDS
from benchmarks.gpu.processes import in_processes, in_turn
from benchmarks.gpu.run import PARTS, Run, read_rows

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def fresh_compiler():
    """All layers of a kind are one function to the compiler, which takes few versions of it."""
    forget()


@pytest.fixture(scope="module")
def forking():
    """Its processes begin with what they import."""
    forked.get_ready()
    with mock.patch.object(processes, "_SPAWN", forked.CONTEXT):
        yield


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory, forking):
    """The whole command, once."""
    folder, said = tmp_path_factory.mktemp("results"), io.StringIO()
    line = ["--rehearse", "--minutes", "60", "--results", str(folder)]
    with contextlib.redirect_stdout(said):
        status = command.main(line)
    return SimpleNamespace(folder=folder, status=status, said=said.getvalue())


def test_a_rehearsal_ends_with_every_method_checked_timed_and_swept(rehearsed):
    assert rehearsed.status == 0, rehearsed.said
    assert "checks right" in rehearsed.said and "x dense" in rehearsed.said
    rows = read_rows(rehearsed.folder)
    assert {row["part"] for row in rows} == {"selfcheck", *PARTS}
    keys = {setting.key for setting in settings(True)}
    checked = [m.name for m in methods(True) if not m.kind.startswith("dense")]
    found = {(r["case"], r["method"]): r["ok"] for r in rows if r["part"] == "check"}
    assert found == {(key, name): True for key in keys for name in checked}
    found = {(r["case"], r["method"], r["step"]) for r in rows if r["part"] == "time"}
    names = [method.name for method in methods(True)]
    steps = ("forward", "forward_backward")
    assert found == {(settings(True)[-1].key, name, step) for name in names for step in steps}
    assert not [row for row in rows if row.get("error")]
    for row in rows:
        if row["part"] in ("time", "sweep"):
            assert row["ms"] > 0 and row["flops"] > 0 and row["dtype"] == "bfloat16"
            names = {"device", "torch", "triton", "cuda", "shape", "tflops", "peak_bytes", "commit"}
            assert names <= row.keys() and row["ratio"] > 0
    dense = {(r["case"], r["step"]): r["ms"] for r in rows if r.get("method") == "dense_math"}
    for row in rows:
        if row["part"] == "time":
            assert row["ratio"] == round(dense[row["case"], row["step"]] / row["ms"], 3)
    swept = {(row["method"], row["step"]) for row in rows if row["part"] == "sweep"}
    assert len(swept) == 2 * len(sweep.targets(True))


def test_a_rehearsal_takes_the_coarse_stage_apart(rehearsed):
    rows = [row for row in read_rows(rehearsed.folder) if row["part"] == "coarse"]
    (case,) = {row["case"] for row in rows}
    setting = next(setting for setting in settings(True) if setting.key == case)
    found = {(row["method"], row["step"]) for row in rows if row["step"] != "check"}
    names = (*coarse.STAGES, *coarse.MASKS, *coarse.LAYERS)
    assert found == {(name, step) for name in names for step in coarse.steps_of(setting, name)}
    checked = {row["method"]: row["ok"] for row in rows if row["step"] == "check"}
    assert checked == dict.fromkeys(coarse.STAGES, True)
    for row in rows:
        if row["step"] == "check":
            continue
        assert row["ms"] > 0 and row["peak_bytes"] is None and row["dtype"] == "bfloat16"
        if row["method"] in coarse.STAGES:
            rate = (row["read_bytes"] + row["written_bytes"]) / row["ms"] / 1e6
            assert row["gbps"] == pytest.approx(rate, abs=0.06) and row["copy_share"] >= 0
        elif row["method"] in coarse.MASKS:
            assert row["list_bytes"] > 0 and row["launches"] is None
        else:
            assert row["synchronises"] is None
    assert "mask building and coarse output" in rehearsed.said


def test_it_goes_on_from_what_it_has(rehearsed, capsys):
    arguments = ["--rehearse", "--resume", "--results", str(rehearsed.folder)]
    rows = read_rows(rehearsed.folder)
    assert command.main([*arguments, "--only", "vsa"]) == 0
    assert read_rows(rehearsed.folder) == rows
    assert "vsa 50.0% x2" in capsys.readouterr().out


def test_without_a_gpu_it_says_so(capsys):
    with mock.patch("torch.cuda.is_available", lambda: False):
        assert command.main([]) == 2
    assert "there is no CUDA GPU here" in capsys.readouterr().err


def test_it_ends_when_its_time_is_up(tmp_path, capsys):
    with mock.patch.object(parts, "measure_machine", lambda _: None):
        arguments = ["--rehearse", "--minutes", "0", "--results", str(tmp_path)]
        assert command.main(arguments) == 0
    assert read_rows(tmp_path) == [] and "time is up" in capsys.readouterr().out


def test_it_needs_torch_and_the_library_alone():
    files = set((ROOT / "benchmarks" / "gpu").glob("*.py"))
    files |= {ROOT / f"benchmarks/{name}.py" for name in ("record", "video_like")}
    due = {"torch", "flexsparse", "benchmarks", *sys.stdlib_module_names}
    for path in files - {ROOT / "benchmarks/gpu/plots.py"}:  # the report's, not the command's
        nodes = ast.walk(ast.parse(path.read_text()))
        imports = [n for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)]
        names = [n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in imports]
        assert {name.split(".")[0] for name in names} <= due, path
        assert "benchmarks.gpu.plots" not in names and "benchmarks.report" not in names


def test_a_rehearsal_leaves_nothing_beside_a_gpus_results():
    before = read_rows()
    line = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--only", "machine"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_rows() == before and "rehearsal-" in done.stdout


def test_what_no_check_found_right_is_not_timed(tmp_path, capsys):
    run = Run("cpu", 60, only="time", results=tmp_path)
    some = [Method("dense_math"), Method("vsa", 0.5), Method("vsa", 0.6), Method("bsa", 0.8)]
    with mock.patch.object(parts, "settings", lambda _: [SMALL]):
        with mock.patch.object(parts, "methods", lambda _: some):
            run.write("check", case=SMALL.key, method=some[1].name, ok=True)
            run.write("check", case=SMALL.key, method=some[2].name, ok=True)
            run.write("check", case=SMALL.key, method=some[2].name, ok=False)
            parts.time_all(run)
    timed = {row["method"] for row in run.rows() if row["part"] == "time"}
    assert timed == {some[0].name, some[1].name}
    assert capsys.readouterr().out.count("not timed: no check found it right") == 2


def test_an_error_is_a_row_and_the_others_go_on(tmp_path):
    run = Run("cpu", 60, results=tmp_path)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    def breaks(*_):
        raise RuntimeError("no\nmore")

    with mock.patch.dict(KINDS, {"vsa": full, "bsa": breaks}):
        some = [Method("vsa", 0.5), Method("bsa", 0.8), Method("fine", 0.5)]
        checks.check_setting(run, SMALL, some)
        with pytest.raises(torch.OutOfMemoryError):
            parts.time_method(run, SMALL, some[0])
    rows = read_rows(tmp_path)
    # a check that runs out of memory beside others says nothing of the method
    assert [row.get("ok") for row in rows] == [None, False, True, None]
    said = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
    assert rows[0]["left_out"] == rows[3]["error"] == said
    assert rows[1]["error"] == "RuntimeError: no"
    assert "WRONG: bsa" in tables.checks(rows) and "vsa" not in tables.checks(rows)
    assert "Tried to allocate" in tables.times(rows)


def _sleep_and_write(path):
    import time

    Path(path).touch()
    time.sleep(30)


def test_what_does_not_end_in_time_is_stopped(tmp_path):
    jobs = [(_sleep_and_write, tmp_path / name) for name in "ab"]
    assert in_processes(jobs, workers=1, seconds=8) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def _misbehave(run, name):
    """A unit of work that writes a row, raises, dies or hangs."""
    import os
    import time

    if name == "raises":
        run.write("time", name=name, error="said")
        raise RuntimeError
    if name == "dies":
        os._exit(11)
    if name == "hangs":
        time.sleep(60)
    run.write("time", name=name, process=os.getpid())


def test_a_unit_that_dies_or_hangs_costs_a_row_and_not_the_run(tmp_path, forking):
    run = Run("cpu", 600, results=tmp_path)
    units = [(name,) for name in ("one", "raises", "two", "dies", "three", "hangs", "four")]
    lost = []
    in_turn(run, _misbehave, units, lambda _, name: lost.append(name), patience=10)
    rows = read_rows(tmp_path)
    assert [row["name"] for row in rows] == ["one", "raises", "two", "three", "four"]
    assert lost == ["dies", "hangs"]
    assert len({row["process"] for row in rows if "process" in row}) == 4
    some = [(SMALL, Method("vsa", 0.5)), (sweep.targets(True)[0], "forward", {"fwd_BLOCK_M": 64})]
    for part, unit in zip(("time", "sweep"), some):
        parts._died(part)(run, *unit)
    timed, swept = read_rows(tmp_path)[-2:]
    assert (timed["case"], timed["method"]) == (SMALL.key, "vsa 50.0% x1")
    assert (swept["method"], swept["step"]) == (some[1][0].method.name, "forward")
    assert swept["options"] == {"fwd_BLOCK_M": 64} and "died" in timed["error"]


def test_the_cases_are_the_workloads():
    tokens = {(s.tiling.tokens, s.heads, s.dim) for s in settings()}
    wan, long = (23296, 32760, 75600), (61440, 153600)
    due = {(t, 12, d) for t in (*wan, *long) for d in (64, 128)} | {(t, 40, 128) for t in wan}
    assert tokens == due and len(settings()) == len(due)
    assert not any(s.tiling.is_ragged for s in settings())
    names = {(m.kind, m.sparsity) for m in methods()}
    assert names >= {("vsa", 0.875), ("vsa", 0.912), ("bsa", 0.93), ("bsa", 0.95)}
    assert {m.kind for m in methods() + methods(True)} <= KINDS.keys()


def test_sweeps_try_what_fits_the_blocks_and_each_thing_once():
    for target in sweep.targets():
        q_rows, kv_rows = target.blocks
        for step, tried in sweep.options(target).items():
            assert tried[0] == {} and len(tried) == len({str(x) for x in tried}) > 5
            for options in tried:
                prefix = "fwd_" if step == "forward" else "bwd_"
                flash = options == {"BACKEND": "FLASH"}
                assert flash or all(key.startswith(prefix) for key in options)
                assert kv_rows == 128 or not flash
                for key, size in options.items():
                    rows = q_rows if "BLOCK_M" in key else kv_rows
                    assert "BLOCK" not in key or rows % size == 0
    assert any("fwd_USE_TMA" in x for x in sweep.options(sweep.targets()[0])["forward"])
    wide = next(t for t in sweep.targets() if t.blocks == (128, 128))
    assert all({"BACKEND": "FLASH"} in tried for tried in sweep.options(wide).values())


def row(method, step, ms, case="61k-12x128", **more):
    flops = 10**12
    shape = [1, 12, 61440, 128]
    rate = flops * (1 if step == "forward" else 3.5) / ms / 1e9
    base = dict(part="time", case=case, method=method, step=step, ms=ms, tflops=rate, flops=flops)
    return base | dict(shape=shape, sparsity=0.0, peak_bytes=100, device="gpu") | more


def test_goals_are_read_off_the_rows():
    steps = ("forward", "forward_backward")
    dense = {"dense_a": (10, 40), "dense_b": (8, 30)}
    rows = [row(m, s, ms) for m, times in dense.items() for s, ms in zip(steps, times)]
    rows += [row("fine 87.5% x2", s, ms) for s, ms in zip(steps, (2, 7))]
    rows += [row("vsa 87.5% x2", s, ms) for s, ms in zip(steps, (4, 5))]
    rows += [row("vsa 87.5% x1", s, ms) for s, ms in zip(steps, (1, 10))]
    rows += [row("vsa_ungated 87.5% x2", s, 2, peak_bytes=105) for s in steps]
    found = {line[0]: line[2] for line in tables._goals(rows)}
    assert found["fine stage, forward, 87.5 %, 61k-12x128"] == "500 TFLOP/s, 400% of dense"
    # 2.5e12 FLOP in 5 ms and, dense, in 30 - 8 ms
    assert found["fine stage, backward, 87.5 %, 61k-12x128"] == "440% of dense"
    assert found["whole VSA, 87.5 %, forward, 61k-12x128"] == "8.00x"
    assert found["whole VSA, 87.5 %, forward and backward, 61k-12x128"] == "6.00x"
    assert found["peak memory without gates, forward and backward, 61k-12x128"] == "1.05"
    assert found["whole VSA, 87.5 %, forward, 153k-12x128"] == ""
    assert tables.goals([]).count("not measured") == 11


def test_the_last_row_of_a_thing_counts():
    rows = [row("dense_a", "forward", ms) for ms in (10, 5)] + [row("vsa 87.5% x1", "forward", 1)]
    *_, dense, sparse = tables.times(rows).splitlines()
    assert "| 5.00 | 200 | 1.00 | - | - | - |" in dense and "10.00" not in tables.times(rows)
    assert "| 1.00 | 1000 | 5.00 | - | - | - |" in sparse
