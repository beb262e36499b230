"""README's Python runs as it stands."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_code_blocks_run(number):
    exec(compile(BLOCKS[number], f"README.md, block {number}", "exec"), {})


def test_there_is_an_example_and_every_picture_exists():
    assert BLOCKS
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert pictures and all((ROOT / picture).is_file() for picture in pictures)


def test_the_table_is_the_median_run_of_the_last_code_that_was_measured():
    rows = list(map(json.loads, (ROOT / "benchmarks/results/cpu.jsonl").read_text().splitlines()))
    last = [row for row in rows if row["commit"].strip("+") == rows[-1]["commit"].strip("+")]
    for step, label in (("forward", "forward, ms"), ("forward_backward", "forward and backward")):
        dense, sparse = (
            [row for row in last if (row["step"], row["method"]) == (step, method)]
            for method in ("dense", "vsa")
        )
        runs = sorted(zip(dense, sparse, strict=True), key=lambda run: run[1]["times_faster"])
        base, ours = runs[len(runs) // 2]
        figures = f"{base['ms']:.0f} | {ours['ms']:.0f} | {ours['times_faster']:.1f}x faster"
        assert re.search(rf"\| {label}.*\| {figures} \|", README), (label, figures)
