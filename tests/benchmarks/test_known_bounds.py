"""Bounds beside what a GPU measures."""

import torch
from gpu_settings import SMALL
from test_bounds import write

from benchmarks import known_bounds as known
from benchmarks.gpu import coarse, parts
from benchmarks.gpu.run import Run
from benchmarks.gpu.unit import Unit


def test_what_is_measured_finds_its_bound(tmp_path):
    flex, case = "triton_tem_fused_flex_attention", "a"
    write(tmp_path, (case, "vsa 87.5% x2", "forward", flex, 9.0))  # of an earlier run
    write(tmp_path, (case, "vsa 87.5% x2", "backward", f"{flex}_backward", 9.0))
    for method in ("vsa 87.5% x2", "dense_flex"):
        write(tmp_path, (case, method, "forward", flex, 2.0))
        write(tmp_path, (case, method, "forward", "_select", 0.25))
        write(tmp_path, (case, method, "forward", "_coarse_forward", 0.125))
        write(tmp_path, (case, method, "backward", f"{flex}_backward", 4.0))
        write(tmp_path, (case, method, "backward", "_coarse_forward", 0.125))  # once more
        write(tmp_path, (case, method, "backward", "_coarse_backward", 0.5))
    due = {
        ("vsa 87.5% x2", "forward"): 2.375,
        ("vsa 87.5% x2", "forward_backward"): 7.0,
        ("fine 87.5% x2", "forward"): 2.0,
        ("fine 87.5% x2", "forward_backward"): 6.0,
        ("choose TopK x2", "forward"): 0.25,
        ("coarse attention", "backward"): 0.5,
        ("coarse attention", "forward"): 0.125,
        ("combine", "forward"): None,
        ("vsa 87.5% x1", "forward"): None,
    }
    for (method, step), ms in due.items():
        assert known.least_ms(case, method, step, tmp_path) == ms, method
    write(tmp_path, (case, "bsa_top 95.0% x4", "forward", flex, 1.0))
    write(tmp_path, ("other", "vsa_ungated 87.5% x2", "forward", "_pool", 0.125))
    assert known.least_ms(case, "bsa_top 95.0% x4", "forward", tmp_path) == 1.0
    assert known.least_ms("other", "pool q, k", "forward", tmp_path) == 0.125
    assert known.least_ms("b", "vsa 87.5% x2", "forward", tmp_path) is None
    said = known.shown(case, "vsa 87.5% x2", "forward", 4.75, tmp_path)
    assert said == "  training's bound 2.375 ms, x2.00"
    assert known.shown(case, "vsa 87.5% x2", "backward", 9, tmp_path).startswith("  bound ")
    assert known.shown("b", "vsa 87.5% x2", "forward", 4.5, tmp_path) == ""


def test_the_gpus_benchmark_prints_it_beside_what_it_measures(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(known, "least_ms", lambda *_: 2.0)
    row = dict(case="a", method="vsa", step="forward_backward", ms=5.0, ratio=3.0, tflops=1.0)
    parts._report(row)
    assert capsys.readouterr().out.endswith("3.00x  bound 2.000 ms, x2.50\n")
    parts._report(row | dict(options={"fwd_BLOCK_N": 32}))  # another kernel
    assert "bound" not in capsys.readouterr().out
    unit = Unit({"forward": lambda: None}, dict, lambda step: {})
    monkeypatch.setattr(coarse, "make", lambda *_: unit)
    monkeypatch.setattr(coarse.DRAWN, "of", lambda *_: [torch.empty(())])
    coarse.measure_unit(Run("cpu", 60, results=tmp_path), SMALL, "combine")
    assert "  training's bound 2.000 ms, x" in capsys.readouterr().out
