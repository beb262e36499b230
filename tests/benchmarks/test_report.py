"""The page says what the results say, and the results are of today's tables."""

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from laws import problems, tensors

from benchmarks import report
from benchmarks.gpu import plots
from benchmarks.gpu.cases import settings as all_settings
from flexsparse import vsa_mask
from flexsparse.engines.kernel_configs import BACKWARD, BACKWARD_FP32, FORWARD, FORWARD_FP32


@pytest.mark.parametrize("path", report.PAGES, ids=lambda path: path.name)
def test_pages_are_what_the_results_make_of_them(path):
    page = path.read_text()
    assert report.render(page, report.PAGES[path]) == page, "run python -m benchmarks.report"


def test_every_generated_section_of_the_docs_is_made_by_somebody():
    # of docs/launch.md and docs/models.md: test_launch_page.py, pipelines/test_models_page.py
    elsewhere = {"sizing", "plan_memory", "models"}
    made = {name for sections in report.PAGES.values() for name in sections} | elsewhere
    made |= set(report.evidence())
    found = [
        name
        for page in report.DOCS.rglob("*.md")
        for name in re.findall(r"<!-- (\w+) -->", page.read_text())
    ]
    assert sorted(found) == sorted(made)


def test_every_row_of_the_tables_has_been_compiled_as_it_stands():
    rows = report.read("configs")
    for row in rows:
        assert tuple(row["config"]) == report.today(row), row
    given = {(row["arch"], tuple(row["config"]), report.why(row)) for row in rows}
    for table in (FORWARD, BACKWARD, FORWARD_FP32, BACKWARD_FP32):
        for row in table:
            for gpu in row.gpus:
                assert (f"sm_{gpu}0", tuple(row.config), row.why) in given, row


def test_half_precision_spills_nowhere():
    spilled = [r for r in report.read("configs") if r["spilled_bytes"] and r["dtype"] != "float32"]
    assert not spilled
    spilled = [
        (kernel["kernel"], kernel["spilled_bytes"])
        for row in report.read("lowering")
        for kernel in row["kernels"]
        if kernel["spilled_bytes"] and ("flex" in kernel["kernel"] or kernel["kernel"][0] == "_")
    ]
    # of the recording, which is older than the smaller blocks of today's kernels
    assert set(spilled) <= {("_coarse_forward", 8), ("_select", 8), ("_select", 16)}


def test_a_section_without_its_place_is_named():
    with pytest.raises(ValueError, match="no <!-- configs -->"):
        report.render("a page", {"configs": report.configs})


def rows_of_a_gpu(device="NVIDIA H200"):
    """Rows as a GPU would give them, of made-up times."""
    base = dict(device=device, torch="2.11.0", triton="3.6.0", cuda="13.0", commit="abc")
    rows = [dict(part="machine", matmul_tflops=780.0, copy_gbps=4300.0, **base)]
    for setting in all_settings():
        length = setting.tiling.tokens
        dense = 4 * length**2 * setting.heads * setting.dim
        shape = [1, setting.heads, length, setting.dim]
        speeds = [("dense_flash", 1, 600), ("fine 87.5% x2", 8, 400), ("vsa 87.5% x2", 8, 350)]
        for method, less, rate in [*speeds, ("bsa 95.0% x4", 20, 300)]:
            for step, factor in (("forward", 1), ("forward_backward", 3.5)):
                flops = dense // less * factor
                found = dict(case=setting.key, shape=shape, method=method, step=step, flops=flops)
                ms = flops / rate / 1e9
                found |= dict(ms=ms, tflops=rate, sparsity=1 - 1 / less, peak_bytes=100)
                rows.append(dict(part="time", **found, **base))
    return rows


def test_a_gpus_rows_become_tables_and_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "IMAGES", tmp_path)
    lines = "\n".join(map(json.dumps, rows_of_a_gpu()))
    (tmp_path / "gpu.jsonl").write_text(lines)
    text = report.gpu(tmp_path)
    assert "#### NVIDIA H200" in text and "400 TFLOP/s, 67% of dense" in text
    drawn = sorted(path.name for path in tmp_path.glob("*.png"))
    assert drawn == [f"gpu-nvidia-h200-{x}.png" for x in ("12x128", "12x64", "40x128")]
    assert all(f"](../images/{name})" in text for name in drawn)


def test_the_roofline_is_the_larger_of_products_and_bytes():
    machine = dict(matmul_tflops=100.0, copy_gbps=1000.0)
    row = dict(shape=[1, 1, 1024, 64], flops=10**12)
    assert plots.floor_ms(row, "forward", machine) == pytest.approx(10)
    row["flops"] = 1
    assert plots.floor_ms(row, "forward", machine) == pytest.approx(4 * 1024 * 128 / 1e9)


def test_a_rehearsal_is_not_shown_as_a_gpu(tmp_path):
    rows = [row | dict(cuda=None) for row in rows_of_a_gpu("a CPU")]
    (tmp_path / "gpu.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert report.gpu(tmp_path) == report.gpu(Path("nowhere"))
    assert "No GPU has run this yet" in report.gpu(tmp_path)


@settings(max_examples=20)
@given(problems(dims=(16,), max_rows=512))
def test_lists_take_the_memory_that_the_page_says(problem):
    tiling, k = problem["tiling"], problem["top_k"]
    q = tiling.to_tiles(tensors(1, problem)[0])
    mask = vsa_mask(q, q, tiling, top_k=k, query_tiles=problem["query_tiles"]).within_tiles()
    names = "kv_indices", "q_indices", "full_kv_indices", "full_q_indices"
    lists = [x for name in names if (x := getattr(mask, name)) is not None]
    n, blocks = tiling.num_tiles, -(-tiling.num_tiles // problem["query_tiles"])
    if not tiling.is_ragged:
        size = sum(x[0, 0].numel() * x.element_size() for x in lists)
        wide = n if tiling.has_padding else k  # a CPU's partial lists are as wide as n
        assert size == 4 * blocks * (wide + n)
    assert all(x.dtype == torch.int32 for x in lists)
