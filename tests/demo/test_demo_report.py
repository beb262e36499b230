import re
from dataclasses import replace

from train.data.copies.floors import Floors
from train.demo.copies import Found
from train.demo.opening import Opened, section
from train.demo.report import Scene, write_report
from train.demo.results import Outcome, findings, table

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
OPENED = Opened(
    loss=0.75,
    least=Floors(1.8, 1.25, {}, 0.5),
    found=Found([0.66, 0.2], [], 0.09),
    tiles=32,
    looks=3,
    right=2,
    copies=3,
    steps=240,
)
SCENE = Scene(
    device="CPU, 2 threads",
    tokens=6144,
    tiles=96,
    top_k=12,
    keep=0.5,
    parameters=812_345,
    steps=140,
    clips=33,
    held_out=5,
    seconds=312.0,
)


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


def test_the_report_is_filled_in_and_short(tmp_path):
    write_report(tmp_path / "report.md", section(OPENED), SCENE, runs())
    text = (tmp_path / "report.md").read_text()
    assert "$" not in text and table(runs()) in text and len(text.split()) < 800
    plain = re.sub(r"\s+", " ", text)
    for said in (
        "6,144 tokens",
        "96 tiles",
        "looks at 12, 87.5% fewer",
        "only 50% look",
        "812,345",
        "5 min 12 s",
        "cut into 32 tiles",
        "looks at 3 of the 31 other tiles: 2 of these hold copies of it, of 3 that do",
        "66% of the other tiles that it looks at are copies, 20% in layer 2;",
        "by lot it would be 10%",
        "can reach 1.25 at best",
        "VSA ends at 0.75; with all copies it could be 0.50",
    ):
        assert said in plain
    assert "a fresh process grew" in text and "on the GPU" not in text
    write_report(tmp_path / "report.md", "", replace(SCENE, device="NVIDIA X"), runs())
    assert "on the GPU" in (tmp_path / "report.md").read_text()
