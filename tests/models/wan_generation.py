"""For the tests of Wan's generation: a tiny checkpoint with a VAE, embeddings, and its command."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file

from models.wan import debug
from models.wan.checkpoint import save
from models.wan.generate.__main__ import main


def write_pipeline(folder: Path) -> Path:
    """A pipeline's folder, `transformer` and `vae`, and embeddings of two prompts beside it."""
    torch.manual_seed(0)
    model = debug().build()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    save(model, folder / "transformer")
    sizes = dict(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, attn_scales=[])
    AutoencoderKLWan(**sizes, temperal_downsample=[False, True, True]).save_pretrained(
        folder / "vae"
    )
    texts = dict(prompt_embeds=torch.randn(2, 7, 32), negative_prompt_embeds=torch.randn(5, 32))
    save_file(texts, folder / "two.safetensors")
    save_file({n: x.flatten(0, -3)[0] if x.ndim == 3 else x for n, x in texts.items()},
              folder / "one.safetensors")  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("wan") / "pipeline")


def generate(pipeline: Path, out: Path, *options: str, prompts: str = "one") -> int:
    """The command with few steps on a small clip; options that come later win."""
    embeds = str(pipeline / f"{prompts}.safetensors")
    given = ["--checkpoint", str(pipeline), "--prompt-embeds", embeds, "--out", str(out)]
    return main([*given, "--steps", "3", "--size", "9x48x80", *options])


def refused(capsys: Any, pipeline: Path, out: Path, *options: str, prompts: str = "one") -> str:
    """The one line on stderr; nothing is written."""
    before = sorted(out.parent.iterdir())
    capsys.readouterr()
    assert generate(pipeline, out, *options, prompts=prompts) == 2
    assert sorted(out.parent.iterdir()) == before
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line
