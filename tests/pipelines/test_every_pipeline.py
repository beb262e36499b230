"""The generator on a pipeline of each family: clips, and density by the noise that it hands over."""

import sys
from itertools import groupby
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.pipelines.cosmos import pipeline_cosmos3_omni  # noqa: F401  # so that it is imported
from folders import generate, refused
from PIL import Image
from safetensors.torch import load_file, save_file
from test_generate import frames_of
from torch import nn
from whole_pipelines import WHOLE, ConsisIDPipeline, Whole

from flexsparse.by_noise import band_of
from flexsparse.diffusers import call
from flexsparse.diffusers.generate import clips
from flexsparse.diffusers.generate.clip import write_mp4

VSA_OPTIONS = "--attention", "vsa", "--sparsity", "0.5", "--tile", "2x2x2"
LEVEL = 0.98  # between the first of two steps and the last, of any sampler here


class NoChecker(nn.Module):
    """In place of Cosmos' checker of unsafe content, whose package is not there."""

    dtype, device = torch.float32, torch.device("cpu")

    def check_text_safety(self, prompt):
        return True

    def check_video_safety(self, frames):
        return frames


@pytest.fixture(autouse=True)
def with_all_packages(monkeypatch):
    monkeypatch.setattr(diffusers, "ConsisIDPipeline", ConsisIDPipeline)  # of faces alone is OpenCV
    for name in {
        whole.cls.__module__ for whole in WHOLE.values() if "cosmos" in whole.cls.__module__
    }:
        monkeypatch.setattr(sys.modules[name], "CosmosSafetyChecker", NoChecker)
        monkeypatch.setattr(sys.modules[name], "is_cosmos_guardrail_available", lambda: True)


def write(whole: Whole, folder: Path) -> list[str]:
    """A pipeline's folder, and what the command is given with it, but for the attention."""
    pipe = whole.build()
    if "safety_checker" in pipe.components:
        pipe.register_modules(safety_checker=None)
    pipe.save_pretrained(folder)
    Image.new("RGB", (80, 48), (200, 10, 10)).save(folder / "a.png")
    video = torch.randint(255, (9, 48, 80, 3), generator=torch.Generator().manual_seed(0))
    write_mp4(folder / "a.mp4", video.byte(), 8)
    files = dict(IMAGE=str(folder / "a.png"), VIDEO=str(folder / "a.mp4"))
    given = ["--size", "x".join(map(str, whole.size)), *whole.options]
    if texts := whole.texts():
        save_file({name: x.contiguous() for name, x in texts.items()}, folder / "texts.safetensors")
        given += ["--prompt-embeds", str(folder / "texts.safetensors")]
    for name, file in files.items():
        given = [word.replace(name, file) for word in given]
    return given


@pytest.mark.parametrize("name", WHOLE)
def test_clips_that_are_as_dense_as_the_noise_of_each_step_wants(name, tmp_path, monkeypatch):
    """The first step is dense, the last is sparse, and the levels are those of the sampler."""
    whole, found, pipes = WHOLE[name], [], []

    def band(slot, noise):
        found.append((noise.max().item(), band_of(slot, noise)))
        return found[-1][1]

    sample = clips.sample
    monkeypatch.setattr(call, "band_of", band)
    monkeypatch.setattr(clips, "sample", lambda pipe, *a: pipes.append(pipe) or sample(pipe, *a))
    given = *write(whole, tmp_path / "p"), *VSA_OPTIONS, "--dense-above", str(LEVEL)
    assert generate(tmp_path / "p", tmp_path / "a.mp4", *given) == 0
    shown, _ = frames_of(tmp_path / "a.mp4")
    assert shown.shape == (whole.frames or whole.size[0], *whole.size[1:], 3)
    steps = [step for step, _ in groupby(found)]
    assert [band for _, band in steps] == ["0", "1"]
    levels = whole.levels(pipes[0].scheduler).double()
    assert levels.min() >= 0 and levels.max() <= 1
    # timesteps are whole numbers in some samplers
    assert (torch.tensor([x for x, _ in steps]).double() - levels).abs().max() < 1 / 1000
