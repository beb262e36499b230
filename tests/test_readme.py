"""README's Python runs as it stands, as does docs/wan.md's; its figures are those of the rows."""

import json
import re
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest
from diffusers import WanTransformer3DModel

from benchmarks import torch_versions

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)
PIPELINE = (ROOT / "docs/wan.md").read_text().split("```python\n")[1].split("```")[0].splitlines()


def small_transformer():
    """What stands for a pipeline's, where README speaks of one."""
    sizes = dict(num_attention_heads=2, attention_head_dim=16, num_layers=2, ffn_dim=32)
    return WanTransformer3DModel(**sizes, text_dim=8, freq_dim=16)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_code_blocks_run(number):
    names = {}
    exec(compile(BLOCKS[number], f"README.md, block {number}", "exec"), names)
    assert names["out"].shape[-2:] == (names["tiling"].tokens, 64)
    (said,) = re.findall(r"top_k=(\d+)\)\)  # (\d+) % sparse", BLOCKS[number])
    assert round(100 * (1 - int(said[0]) / names["tiling"].num_tiles)) == int(said[1])


def test_the_pages_pipeline_becomes_sparse_and_comes_back():
    pipe = SimpleNamespace(transformer=small_transformer())
    slots = []
    for line in PIPELINE:
        if line.startswith(("sparsify", "restore")):
            exec("\n".join((PIPELINE[0], line)), {"pipe": pipe})
            slots.append(any("slot" in name for name, _ in pipe.transformer.named_modules()))
    assert slots == [True, True, False]


def test_there_is_an_example_and_everything_that_is_linked_exists():
    assert BLOCKS and README.count("\n") < 120
    linked = re.findall(r"\]\((?!http)(.*?)\)", README)
    assert linked[0].endswith(".png"), "the picture comes first"
    assert all((ROOT / target).is_file() for target in linked)


def test_the_table_is_the_run_in_which_dense_attention_was_fastest():
    rows = list(map(json.loads, (ROOT / "benchmarks/results/cpu.jsonl").read_text().splitlines()))
    (version,) = {row["torch"].split("+")[0] for row in rows}
    days = sorted({date.fromisoformat(row["date"]) for row in rows})
    said = f"torch {version}, {' and '.join(str(day.day) for day in days)} {days[0]:%B %Y}"
    assert said in README.replace("\n", " ")
    for step, label in (("forward", "forward, ms"), ("forward_backward", "forward and backward")):
        dense, sparse = (
            [row for row in rows if (row["step"], row["method"]) == (step, method)]
            for method in ("dense", "vsa")
        )
        runs = sorted(zip(dense, sparse, strict=True), key=lambda run: run[0]["ms"])
        base, ours = runs[0]
        figures = f"{base['ms']:.0f} | {ours['ms']:.0f} | {ours['times_faster']:.1f}x faster"
        assert re.search(rf"\| {label}.*\| {re.escape(figures)} \|", README), (label, figures)
        low, *_, high = sorted(run[1]["times_faster"] for run in runs)
        assert f"{low:.1f}x to {high:.1f}x {label.removesuffix(', ms')}" in README.replace(
            "\n", " "
        )


def test_the_versions_of_torch_are_those_with_which_everything_passed():
    passed = torch_versions.passed()
    (said,) = re.findall(r"The same passed with torch ([\d., and]*\d)", README.replace("\n", " "))
    assert re.findall(r"\d+\.\d+\.\d+", said) == passed
