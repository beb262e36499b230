"""docs/launch.md: tables are what the formulas give, commands are understood."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from benchmarks import plan_memory, sizing
from train.registry import load_config

GPUS_OF_A_NODE = 8
PAGE = (Path(__file__).parents[1] / "docs" / "launch.md").read_text()


def between(name: str) -> str:
    return PAGE.split(f"<!-- {name} -->\n")[1].split(f"\n<!-- /{name} -->")[0]


def commands() -> list[list[str]]:
    """Those of the page that train."""
    lines = PAGE.replace("\\\n", " ").splitlines()
    return [
        shlex.split(line) for line in lines if re.match("(srun )?torchrun|python -m train --", line)
    ]


def test_the_sizing_table_is_the_formula():
    assert between("sizing") == sizing.table()


def test_a_replica_of_more_than_a_node_fills_whole_nodes():
    for _, sizes in sizing.CASES:
        for gpus, replicas in sizes:
            shards, rest = divmod(gpus, replicas)
            assert rest == 0 and (shards % GPUS_OF_A_NODE == 0 or GPUS_OF_A_NODE % shards == 0)


def test_the_table_of_measured_peaks_is_the_latest_rows():
    assert between("plan_memory") == plan_memory.table()
    rows = plan_memory.read("plan_memory")
    assert all(row["states"] == row["states_of_tensors"] for row in rows)
    ratios = [row["measured"] / row["planned"] for row in rows]
    assert f"{min(ratios):.2f} to {max(ratios):.2f} of the plan" in PAGE


@pytest.mark.parametrize("command", commands(), ids=lambda words: " ".join(words[:3]))
def test_commands_are_understood(command):
    if command[0] == "srun":
        command = command[1:]
    options = command[command.index("train") + 1 :]
    asked = options.index("--plan-gpus") if "--plan-gpus" in options else len(options)
    config = load_config(options[:asked] + options[asked + 2 :])
    assert config.model.layers
    if command[0] == "torchrun":
        words = [re.sub(r"^\$SLURM_NNODES$", "8", word) for word in command[1:]]
        parsed = get_args_parser().parse_args(words)
        assert parsed.module and parsed.training_script == "train"
        assert parsed.max_restarts == 3 and parsed.nproc_per_node == "8"


def test_the_batch_script_is_bash():
    (script,) = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
