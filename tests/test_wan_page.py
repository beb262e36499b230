"""docs/wan.md, and what docs/data.md says of Wan: commands are understood, and fit."""

import re
import shlex
from pathlib import Path

import pytest
import tyro

from flexsparse.diffusers.generate import options as generate
from models.wan import convert
from train import export
from train.data import cache_latents, encode_prompts
from train.registry import load_config

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / name).read_text() for name in ("docs/wan.md", "docs/data.md")}
OF_WAN = "flexsparse.diffusers.generate", "models.wan.convert", "train.data.cache_latents"
OF_WAN += "train.data.encode_prompts", "train.export"


def commands(page: str) -> list[list[str]]:
    """Module and options of each, in its lines and between backticks."""
    found = re.findall(r"(?:^|`)python -m ([^`\n]*)", PAGES[page], re.M)
    words = [shlex.split(command) for command in found]
    return [w for w in words if w[0] in OF_WAN or w[0] == "train" and "models.wan" in w]


def understood(module: str, *given: str):
    if module == "train":
        return load_config(given)
    if module.startswith("flexsparse"):
        return generate.parse(given)
    if module.startswith("models"):
        return convert.parser().parse_args(given)
    of = {"cache_latents": cache_latents, "encode_prompts": encode_prompts, "export": export}
    return tyro.cli(of[module.split(".")[-1]].Options, args=given)


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page):
    assert (
        len([understood(*command) for command in commands(page)])
        == {
            "docs/wan.md": 8,
            "docs/data.md": 2,
        }[page]
    )


@pytest.mark.parametrize("page", ["docs/wan.md", "docs/data.md"])
def test_latents_are_cached_in_the_size_that_the_run_takes(page):
    parsed = {command[0]: understood(*command) for command in commands(page)}
    cached, run = parsed["train.data.cache_latents"], parsed["train"]
    size = (cached.num_frames - 1) // 4 + 1, cached.height // 8, cached.width // 8
    assert size == run.model.video


def test_options_that_the_page_of_wan_names_are_understood():
    page = PAGES["docs/wan.md"]
    command = next(c for c in commands("docs/wan.md") if c[0] == "flexsparse.diffusers.generate")
    for words in (
        "--size 81x480x832 33x720x1280",
        "--seed 0 1",
        "--dense-above 0.85",
        "--dense-layers 0 1",
        "--tile fit",
        "--offload model",
        "--lora FILE",
    ):
        assert f"`{words}`" in page
        generate.parse([*command[1:], *words.split()])
    assert generate.parse([*command[1:]]).method.sparsity == 0.9
    words = "--lora.rank 32 --optimizer.param-groups.0.optimizer-kwargs.lr 1e-4"
    assert f"`{words}`" in page
    (command,) = (c for c in commands("docs/wan.md") if c[0] == "train")
    assert load_config([*command[1:], *words.split()]).lora.rank == 32
