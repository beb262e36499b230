"""The generator on a pipeline of each family: clips, and density by the noise of each step."""

import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

import diffusers
import pytest
import torch
from folders import generate, refused
from PIL import Image
from safetensors.torch import load_file, save_file
from test_generate import frames_of
from torch import nn
from whole_parts import sized
from whole_pipelines import WHOLE, ConsisIDPipeline, Whole

from flexsparse.by_noise import band_of
from flexsparse.diffusers import call
from flexsparse.diffusers.generate import checks, clips
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


@pytest.mark.parametrize("name", ["cosmos3", "ltx2"])
def test_reports_are_of_the_video_beside_text_and_sound(name, tmp_path):
    whole = WHOLE[name]
    given = *write(whole, tmp_path / "p"), *VSA_OPTIONS, "--compare", "dense"
    assert generate(tmp_path / "p", tmp_path / "a.mp4", *given) == 0
    found = json.loads((tmp_path / "a-report" / "metrics.json").read_text())
    assert all(error > 0 for step in found["attention_relative_error"] for error in step)
    assert all(error > 0 for error in found["output_relative_error"])
    assert found["latents_psnr"][0] is None and found["latents_psnr"][1] > 0
    assert found["clip_error"] > 0


@pytest.mark.parametrize("name, size, frames", [("cosmos3", "9", 3), ("framepack", "13", 7)])
def test_latents_that_are_handed_over_in_another_way(name, size, frames, tmp_path):
    """Framepack's after each of three sections of two, to which its picture comes."""
    given = *write(WHOLE[name], tmp_path / "p"), "--size", f"{size}x48x80"
    assert generate(tmp_path / "p", tmp_path / "a.safetensors", *given) == 0
    assert load_file(tmp_path / "a.safetensors")["latent"].shape == (4, frames, 6, 10)


def test_several_texts_whose_ends_stand_in_one_row(tmp_path):
    """Kandinsky 5's, as its own encode_prompt makes them."""
    given = write(WHOLE["kandinsky5"], tmp_path / "p")
    file = tmp_path / "p" / "texts.safetensors"
    one = load_file(file)
    ends = {
        name: torch.tensor([0, 3, 3 + x[1]], dtype=torch.int32)
        for name, x in one.items()
        if "cu_" in name
    }
    save_file({name: torch.cat((x, x + 1)) for name, x in one.items()} | ends, file)
    assert generate(tmp_path / "p", tmp_path / "b.safetensors", *given) == 0
    save_file(one, file)
    assert generate(tmp_path / "p", tmp_path / "a.safetensors", *given) == 0
    alone, *both = (load_file(tmp_path / f"{x}.safetensors")["latent"] for x in ("a", "b-1", "b-2"))
    assert torch.equal(alone, both[0]) and not torch.equal(*both)


def test_guidance_of_a_component_is_an_option(tmp_path):
    given = write(WHOLE["motif"], tmp_path / "p")
    latents = []
    for scale in ("1", "7.5"):
        out = tmp_path / f"{scale}.safetensors"
        assert generate(tmp_path / "p", out, *given, "--guidance", scale) == 0
        latents.append(load_file(out)["latent"])
    assert not torch.equal(*latents)


def test_what_a_family_lacks_is_said_before_weights_are_read(tmp_path, capsys, monkeypatch):
    padded = sized("cosmos", extra_pos_embed_type="learnable", concat_padding_mask=True)
    cosmos = replace(WHOLE["cosmos"], model=padded)
    folders = {name: tmp_path / name for name in NEEDY}
    for name, folder in folders.items():
        write(replace(cosmos if name == "cosmos" else WHOLE[name], options=()), folder)
    monkeypatch.undo()
    monkeypatch.setattr(
        "flexsparse.diffusers.generate.__main__.load", lambda *a: pytest.fail("loaded")
    )
    module = sys.modules[cosmos.cls.__module__]
    monkeypatch.setattr(module, "is_cosmos_guardrail_available", lambda: False)
    monkeypatch.setattr(checks, "find_spec", lambda name: None if name == "torchvision" else name)
    for name, (more, words) in NEEDY.items():
        texts = "--prompt-embeds", str(folders[name] / "texts.safetensors")
        size = "--size", "x".join(map(str, WHOLE[name].size))
        said = refused(capsys, folders[name], tmp_path / "a.mp4", *texts, *size, *more)
        assert words in said, name


NEEDY = {
    "cosmos": ((), "takes cosmos_guardrail and torchvision: pip install cosmos_guardrail torch"),
    "cosmos2": ((), "Cosmos2VideoToWorldPipeline wants image: give --image FILE"),
    "kandinsky6": ((), "has no audio_vae: give --call sample_audio=false"),
    "allegro": (("--size", "9x48x80"), "leaves the rest black; try 24x128x128"),
    "animate": (("--video", "pose_video=none.mp4"), "--video none.mp4 is no video"),
    "chronoedit": (("--video", "none.mp4"), "--video: ChronoEditPipeline takes no video"),
}
if find_spec("cv2") is None:
    NEEDY["consisid"] = (), "requires the OpenCV library"
