"""Importing flexsparse changes nothing of what torch compiles for others."""

import json
import os
import subprocess
import sys

import pytest
from cuda_build import needed

from benchmarks.compiled.run import ROOT
from benchmarks.compiled.sabotage import ARGUMENTS_OF_2_13, broken
from flexsparse.engines.kernel_options import TAKES_OPTIONS

pytestmark = needed


def compiled(*arguments, root=ROOT):
    environment = {**os.environ, "PYTHONPATH": str(root), "TRITON_INTERPRET": "0"}
    command = [sys.executable, ROOT / "tests/compiled/bystander.py", *arguments]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_other_users_of_flex_attention_get_the_same_source():
    alone, beside = compiled(), compiled("flexsparse")
    assert alone == beside
    assert [len(graphs) for graphs in alone] == [2] * 4
    assert all("flex_attention" in source for graphs in alone for source in graphs)


def test_a_choices_class_of_older_arguments_is_red(tmp_path):
    if not TAKES_OPTIONS:
        pytest.skip("torch 2.14 brought the arguments")
    with pytest.raises(AssertionError, match="positional arguments but 5 were given"):
        compiled("flexsparse", root=broken(tmp_path, *ARGUMENTS_OF_2_13))
