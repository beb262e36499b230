"""The GPU benchmark's part on the coarse stage finds what is wrong, and reads goals off rows."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from gpu_settings import CPU

from benchmarks import report
from benchmarks.gpu import coarse, coarse_tables, query_stages, report_coarse, stages, wholes
from benchmarks.gpu.cases import Setting
from benchmarks.gpu.drawn import DRAWN
from benchmarks.gpu.layers import draw
from benchmarks.gpu.run import Run, read_rows
from flexsparse.stages.queries import gather_rows

SMALL = Setting("small", (5, 9, 8), (4, 4, 4), 3, 16)  # two of three heads are compared
TENSORS = draw(SMALL, CPU, torch.bfloat16)


def wrong(unit):
    return [name for name, ratio in unit.check().items() if not ratio <= 1]


def scaled(function):
    return lambda *args: [1.001 * x for x in function(*args)]


def one_tile_wrong(function):
    def broken(*args):
        out = function(*args)
        rows = torch.arange(out.shape[-2])[:, None] < SMALL.tiling.rows
        return torch.where(rows, 1.02 * out, out)

    return broken


def first_tile_flipped(function):
    return lambda *args, **options: function(*args, **options) ^ 1


def of_the_next_row(function):
    """Of all heads, as kernels are called; the twin of two heads is left right."""

    def broken(bits, *args, **options):
        return function(bits.roll(int(bits.shape[1] == 3), 2), *args, **options)

    return broken


def of_other_queries(function):
    def broken(q, tiling, **options):
        kept = function(q.roll(1, 1), tiling, **options)
        return dataclasses.replace(kept, q=gather_rows(q, kept.index, tiling.rows, holes=True))

    return broken


def from_the_center(function):
    return lambda *args: function(*args, fill="center")


BREAKS = {
    "pool q, k": (stages, "pool_each", scaled),
    "choose TopK x1": (stages, "choose_tiles", first_tile_flipped),
    "choose TopK x2": (stages, "choose_tiles", first_tile_flipped),
    "choose Threshold x1": (stages, "choose_tiles", first_tile_flipped),
    "choose Mass x1": (stages, "choose_tiles", first_tile_flipped),
    "lists x2": (stages, "block_lists", of_the_next_row),
    "coarse attention": (stages, "coarse_attention", one_tile_wrong),
    "combine": (stages, "combine", one_tile_wrong),
    "prune": (query_stages, "prune_queries", of_other_queries),
    "restore": (query_stages, "restore_queries", from_the_center),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_kernel_is_found_right_and_when_it_is_broken_wrong(name, monkeypatch):
    assert wrong(coarse.make(SMALL, name, TENSORS)) == []
    module, function, broken = BREAKS[name]
    monkeypatch.setattr(module, function, broken(getattr(module, function)))
    assert wrong(coarse.make(SMALL, name, TENSORS))


def test_other_bits_in_a_second_run_are_found(monkeypatch):
    runs = []

    def unsteady(q, k, v, right=stages.coarse_attention):
        runs.append(0)
        return right(q, k, v) * (1 + 1e-7 * len(runs))

    monkeypatch.setattr(stages, "coarse_attention", unsteady)
    assert wrong(coarse.make(SMALL, "coarse attention", TENSORS)) == ["in a second run"]


def test_what_is_wrong_is_a_row_and_is_not_timed(tmp_path, monkeypatch, capsys):
    run = Run("cpu", 60, results=tmp_path)
    monkeypatch.setattr(DRAWN, "of", lambda *_: TENSORS)
    monkeypatch.setattr(stages, "pool_each", scaled(stages.pool_each))
    coarse.measure_unit(run, SMALL, "pool q, k")
    (row,) = read_rows(tmp_path)
    assert row["ok"] is False and row["step"] == "check" and "WRONG" in capsys.readouterr().out

    def breaks(*_):
        raise RuntimeError("no\nmore")

    monkeypatch.setattr(stages, "pool_each", breaks)
    with pytest.raises(RuntimeError):
        coarse.measure_unit(run, SMALL, "coarse attention")
    coarse.died(run, SMALL, "combine")
    rows = read_rows(tmp_path)
    notes = coarse_tables.notes(rows)
    assert "coarse attention: RuntimeError: no" in notes and "combine: its process died" in notes


def test_shared_memory_counts_once():
    x = torch.zeros(4, 8, dtype=torch.int32)
    assert wholes.bytes_of_all([x[0], x[1:], x.view(-1), torch.zeros(2)]) == 128 + 8


def rows_of_a_gpu(case=coarse_tables.LONG, device="NVIDIA H200"):
    """Rows as a GPU would give them, of made-up times and bytes."""
    base = dict(part="coarse", case=case, device=device, cuda="13.0", peak_bytes=60_000_000)
    bytes_moved = dict(read_bytes=10**9, written_bytes=10**8, cached_bytes=0)
    rate = dict(gbps=4000.0, copy_share=0.9, **bytes_moved)
    rows = [
        base | rate | dict(method=name, step=step, ms=ms)
        for name, step, ms in (
            ("pool q, k, v", "forward", 0.5),
            ("choose TopK x2", "forward", 0.25),
            ("lists x2", "inference", 0.125),
            ("lists x2", "training", 0.25),
            ("coarse attention", "forward", 0.125),
            ("coarse attention", "backward", 0.5),
        )
    ]
    mask = dict(launches=3, kernels=["a", "b", "c"], list_bytes=32_000_000, ms=0.9)
    rows += [base | mask | dict(method="vsa_mask x2", step=s) for s in ("inference", "training")]
    for step, ms in (("forward", 40.0), ("forward_backward", 130.0)):
        rows.append(base | dict(method="vsa 87.5% x2", step=step, ms=ms, synchronises=False))
    return rows


def test_shares_and_goals_are_read_off_the_rows():
    rows = rows_of_a_gpu()
    found = {what: measured for what, _, measured in coarse_tables._goals(rows)}
    assert found["launches from q and k to both lists"] == "3"
    share = "mask building and coarse output, share of whole VSA, 87.5 % {}, forward, 75k-40x128"
    assert found[share.format("x2")] == "2.5 %"  # 0.5 + 0.25 + 0.125 + 0.125 of 40
    assert found[share.format("x1")] == ""
    assert found["pooling, share of copy bandwidth, 75k-40x128"] == "90.0 %"
    assert found["lists of a layer, training, x2, 75k-40x128"] == "32.0 MB, peak 60.0 MB"
    both = [line for line in coarse_tables.wholes(rows).splitlines() if "backward" in line]
    assert both[0].endswith("| 130.000 | 1.625 | 1.2 % | no |")
    assert coarse_tables.stage_ms(rows[1:], rows[-1]) is None
    assert coarse_tables.goals([]).count("not measured") == 8


def test_a_gpus_rows_become_the_pages_section_and_a_rehearsals_do_not(tmp_path):
    assert "No GPU has run this yet" in report_coarse.coarse(Path("nowhere"))
    path = tmp_path / "gpu.jsonl"
    path.write_text("\n".join(map(json.dumps, rows_of_a_gpu())))
    text = report_coarse.coarse(tmp_path)
    assert "#### NVIDIA H200" in text and "| 90.0 % |" in text and "not measured" in text
    path.write_text("\n".join(json.dumps(row | dict(cuda=None)) for row in rows_of_a_gpu()))
    assert report_coarse.coarse(tmp_path) == report_coarse.coarse(Path("nowhere"))
    assert any("coarse" in sections for sections in report.PAGES.values())
