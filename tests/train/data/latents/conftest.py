"""The command that encodes videos, with a tiny random VAE, on a few videos of noise."""

import itertools

import pytest
import torch
from cached_run import FRAMES, HEIGHT, WIDTH, names, scene
from safetensors.torch import save_file

from train.data import cache_latents as command


@pytest.fixture(scope="session")
def vae(tmp_path_factory):
    """A folder as diffusers saves one: AutoencoderKLWan with 16k random weights."""
    from diffusers import AutoencoderKLWan

    folder = tmp_path_factory.mktemp("vae")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoencoderKLWan(
            base_dim=4,
            z_dim=2,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.5, -0.25],
            latents_std=[2.0, 0.3],
        )
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def videos(tmp_path, write_video):
    """Five videos: a/one has three clips in two scenes, short has none, the others have one."""
    folder = tmp_path / "videos"
    write_video(folder / "a/one.mov", scene(0, 20) + scene(1, 9))
    for number, (name, length) in enumerate({"b": 9, "c": 12, "d": 17, "short": 8}.items(), 2):
        write_video(folder / f"{name}.mov", scene(number, length))
    (folder / "b.txt").write_text("a red wall")
    return folder


@pytest.fixture
def embeds(tmp_path, videos):
    folder, rng = tmp_path / "embeds", torch.Generator().manual_seed(1)
    for i, name in enumerate(names(videos)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        text = torch.randn(i + 1, 6, generator=rng).bfloat16()
        save_file({"prompt_embeds": text}, folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def run(tmp_path, videos, vae):
    """run(out="out", extra=[argument, ...], **options): the command's exit status."""

    def run(out="out", extra=(), **options):
        given = {"videos": videos, "vae": vae, "out": tmp_path / out, "videos_per_file": 2}
        given |= {"num_frames": FRAMES, "height": HEIGHT, "width": WIDTH, "fps": 10}
        pairs = ((f"--{key.replace('_', '-')}", str(x)) for key, x in (given | options).items())
        return command.main([*itertools.chain(*pairs), *extra])

    return run


@pytest.fixture
def encoded(monkeypatch):
    """The clips that the command has encoded; `.stop_at` makes it stop like a run that is ended."""
    plain = command.encode_clip

    class Calls(list):
        stop_at = None

    def encode_clip(vae, frames):
        if len(calls) == calls.stop_at:
            raise KeyboardInterrupt
        calls.append(frames)
        return plain(vae, frames)

    calls = Calls()
    monkeypatch.setattr(command, "encode_clip", encode_clip)
    return calls
