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


def test_the_table_is_what_was_measured():
    rows = map(json.loads, (ROOT / "benchmarks/results/cpu.jsonl").read_text().splitlines())
    found = {(row["step"], row["method"]): row for row in rows}
    for step, label in (("forward", "forward, ms"), ("forward_backward", "forward and backward")):
        dense, sparse = found[step, "dense"], found[step, "vsa"]
        figures = f"{dense['ms']:.0f} | {sparse['ms']:.0f} | {sparse['times_faster']:.1f}x faster"
        assert re.search(rf"\| {label}.*\| {figures} \|", README), (label, figures)
