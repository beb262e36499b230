"""The commands of docs/data.md are taken as they stand there."""

import re
import shlex
from pathlib import Path

import pytest
import tyro

from train.data import cache_latents, fetch
from train.data.doom import __main__ as doom
from train.registry import load_config

DOCS = (Path(__file__).parents[3] / "docs/data.md").read_text()
COMMANDS = re.findall(r"^python -m (\S+) (.*)$", DOCS, re.M)
OPTIONS = {
    "train.data.cache_latents": cache_latents.Options,
    "train.data.doom": doom.Options,
    "train.data.fetch": fetch.Options,
}


@pytest.mark.parametrize("module, given", COMMANDS)
def test_commands_know_their_options(module, given):
    argv = shlex.split(given)
    if module == "train":
        assert load_config(argv).dump_folder == f"out/{argv[argv.index('--config') + 1]}"
    else:
        tyro.cli(OPTIONS[module], args=argv)


def test_every_command_is_there_and_buckets_are_an_option():
    assert {module for module, _ in COMMANDS} == {"train", *OPTIONS}
    (line,) = re.findall(r"^--dataloader.buckets .*$", DOCS, re.M)
    argv = ["--module", "models.wan", "--config", "wan_1_3b_vsa_adapt", *shlex.split(line)]
    assert len(load_config(argv).dataloader.buckets) == 3
