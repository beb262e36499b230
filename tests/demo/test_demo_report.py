import re
from dataclasses import replace

from train.demo.report import Outcome, Scene, findings, table, write_report

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
SCENE = Scene("CPU, 2 threads", 6144, 96, 12, 3, 812_345, 140, 33, 5, 312.0)


def test_the_table_has_both_runs_and_their_ratio():
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(both()).splitlines()]
    assert rows[0] == ["", "dense", "VSA", "dense / VSA"]
    assert rows[2:] == [
        ["loss on held-out clips", "0.5000", "0.5100", "0.98"],
        ["one training step, ms", "1200", "400", "3.00"],
        ["attention in a step, ms", "900", "150", "6.00"],
        ["attention in a step, GFLOP", "8.0", "1.0", "8.00"],
        ["peak memory of training, MiB", "500", "525", "0.95"],
    ]


def both(vsa=VSA):
    return {"dense": DENSE, "vsa": vsa}


def test_the_findings_say_what_the_numbers_say():
    text = " ".join(findings(both()))
    for said in (
        "8.0 times less arithmetic and 6.0 times as fast",
        "step is 3.0 times as fast: dense attention was 75% of it",
        "fell from 1.30 to 0.500 with dense attention and from 1.30 to 0.510 with VSA",
        "2.0% higher",
        "5.0% more memory",
    ):
        assert said in text
    worse = replace(DENSE, attention_seconds=1.8, validation_loss=0.45, peak_memory=2**20)
    text = " ".join(findings(both(worse)))
    slow = replace(DENSE, attention_seconds=1.8)
    assert "dense attention was 150% of it" in " ".join(findings({"dense": slow, "vsa": VSA}))
    assert "2.0 times as slow" in text and "10.0% lower" in text and "99.8% less memory" in text


def test_the_report_is_filled_in(tmp_path):
    write_report(tmp_path / "report.md", SCENE, both())
    text = (tmp_path / "report.md").read_text()
    assert "$" not in text and table(both()) in text
    for said in ("6,144 tokens", "96 tiles", "the 12 that", "87.5% fewer", "812,345", "5 min 12 s"):
        assert said in re.sub(r"\s+", " ", text)
    assert "a fresh process grew" in text and "on the GPU" not in text
    write_report(tmp_path / "report.md", replace(SCENE, device="NVIDIA X"), both())
    assert "on the GPU" in (tmp_path / "report.md").read_text()
