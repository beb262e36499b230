import re
from dataclasses import replace

import torch

from train.demo.report import Scene, write_report
from train.demo.results import Outcome, findings, layer_table, table
from train.sparsity.attention_stats import LayerStats
from train.sparsity.break_even import BreakEven

DENSE = Outcome(
    first_loss=1.3,
    validation_loss=0.5,
    step_seconds=1.2,
    attention_seconds=0.9,
    attention_flops=8 * 10**9,
    peak_memory=500 * 2**20,
)
VSA = replace(
    DENSE,
    validation_loss=0.51,
    step_seconds=0.4,
    attention_seconds=0.15,
    attention_flops=10**9,
    peak_memory=525 * 2**20,
)
BSA = replace(VSA, validation_loss=0.49, step_seconds=0.3, attention_seconds=0.1)
SCENE = Scene(
    "CPU, 2 threads",
    6144,
    96,
    12,
    0.5,
    3,
    812_345,
    140,
    33,
    5,
    {"vsa": BreakEven(2.0, 2.5, 0.5, 0.56), "bsa": BreakEven(2.0, 1.5, 0.5, 0.8)},
    312.0,
)
DROPPED = torch.tensor([True, False, True, True]).view(1, 1, 1, 2, 2)
STATS = {
    "dense": [LayerStats(None, None, 0.0, 8 * 10**9)],
    "vsa": [LayerStats(torch.full((1, 1, 4), 12), DROPPED | True, 0.875, 10**9)],
    "bsa": [LayerStats(torch.tensor([[[1, 2, 3, 8]]]), DROPPED, 0.981, 5 * 10**8)],
}


def cells(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]


def test_the_table_has_all_runs_and_their_ratios():
    rows = cells(table(runs()))
    assert rows[0] == ["", "dense", "VSA", "BSA", "dense / VSA", "dense / BSA"]
    assert rows[2:] == [
        ["loss on held-out clips", "0.5000", "0.5100", "0.4900", "0.98", "1.02"],
        ["one training step, ms", "1200", "400", "300", "3.00", "4.00"],
        ["attention in a step, ms", "900", "150", "100", "6.00", "9.00"],
        ["attention in a step, GFLOP", "8.0", "1.0", "1.0", "8.00", "8.00"],
        ["peak memory of training, MiB", "500", "525", "525", "0.95", "0.95"],
    ]


def test_the_layers_table_has_each_layer_of_each_run():
    assert cells(layer_table(STATS))[2:] == [
        ["dense", "1", "all", "100%", "0.0%", "8.00"],
        ["VSA", "1", "12.0", "100%", "87.5%", "1.00"],
        ["BSA", "1", "3.5", "75%", "98.1%", "0.50"],
    ]
    twice = {run: layers * 2 for run, layers in STATS.items()}
    assert [row[:2] for row in cells(layer_table(twice))[4:6]] == [["VSA", "1"], ["VSA", "2"]]


def runs(vsa=VSA):
    return {"dense": DENSE, "vsa": vsa, "bsa": BSA}


def test_the_findings_say_what_the_numbers_say():
    text = " ".join(findings(runs()))
    for said in (
        "with VSA is 8.0 times less arithmetic and 6.0 times as fast",
        "with BSA is 8.0 times less arithmetic and 9.0 times as fast",
        "step is 3.0 times as fast with VSA and 4.0 times as fast with BSA: dense attention was 75",
        "fell from 1.30 to 0.500 with dense attention, to 0.510 with VSA (2.0% higher)",
        "and to 0.490 with BSA (2.0% lower).",
        "took 5.0% more memory with VSA and 5.0% more memory with BSA.",
    ):
        assert said in text
    text = " ".join(
        findings(
            runs(replace(DENSE, attention_seconds=1.8, validation_loss=0.45, peak_memory=2**20))
        )
    )
    assert "2.0 times as slow" in text and "10.0% lower" in text and "99.8% less memory" in text


def test_a_part_is_never_said_to_be_more_than_the_whole():
    busy = replace(DENSE, attention_seconds=1.8)
    text = " ".join(findings(runs() | {"dense": busy}))
    assert "150%" not in text and "took longer than a whole step: this machine had other" in text


def test_the_report_is_filled_in(tmp_path):
    write_report(tmp_path / "report.md", SCENE, runs(), STATS)
    text = (tmp_path / "report.md").read_text()
    assert "$" not in text and table(runs()) in text and layer_table(STATS) in text
    for said in (
        "6,144 tokens",
        "96 tiles",
        "the 12 that",
        "87.5% fewer",
        "50% of them",
        "812,345",
        "5 min 12 s",
        "up to a sparsity of 14% for VSA and never for BSA",
    ):
        assert said in re.sub(r"\s+", " ", text)
    assert "a fresh process grew" in text and "on the GPU" not in text
    slow = {"vsa": BreakEven(2.0, 2.5, 2.1, 0.56)}
    other = replace(SCENE, device="NVIDIA X", break_even=slow)
    write_report(tmp_path / "report.md", other, runs(), STATS)
    text = (tmp_path / "report.md").read_text()
    assert "on the GPU" in text and "until the very target for VSA" in text
