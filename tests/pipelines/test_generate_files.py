"""What the generator writes: whole files, in the place of none, and no latent is lost."""

import errno
import tempfile
from types import SimpleNamespace

import diffusers
import pytest
import torch
from folders import generate, wan  # noqa: F401  # a fixture
from safetensors.torch import load_file

from flexsparse.diffusers.generate.clip import frames_of, write_latent
from flexsparse.diffusers.generate.clock import Clock
from flexsparse.diffusers.generate.timing import timed


def latent_of(path):
    return load_file(path)["latent"]


@pytest.mark.parametrize(
    "broken", ["av.VideoFrame.from_ndarray", "diffusers.AutoencoderKLWan.decode"]
)
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), RuntimeError("out of memory\n")])
def test_a_clip_that_cannot_be_written_leaves_its_latent(
    wan,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
    broken,
    error,
):
    wanted = []
    decode = diffusers.AutoencoderKLWan.decode

    def remember(self, z, **options):
        wanted.append(z)
        return decode(self, z, **options)

    with monkeypatch.context() as patch:
        patch.setattr(diffusers.AutoencoderKLWan, "decode", remember)
        assert generate(wan, tmp_path / "wanted.mp4") == 0

    def fail(*args, **options):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(broken, fail)
        assert generate(wan, tmp_path / "clip.mp4") == 2
    files = {p.name for p in tmp_path.iterdir()}
    assert files == {"wanted.mp4", "clip.latent.safetensors"}
    kept = tmp_path / "clip.latent.safetensors"
    assert torch.equal(latent_of(kept), wanted[0][0])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    why = str(error).strip()
    assert (
        said == f"error: {tmp_path / 'clip.mp4'} was not written ({why}); its latent is in {kept}"
    )
    assert generate(wan, tmp_path / "clip.mp4") == 0  # a latent that was kept stays
    assert {p.name for p in tmp_path.iterdir()} == files | {"clip.mp4"}


def test_latents_of_sections_are_none_of_a_clip():
    vae = SimpleNamespace(encode=lambda x: x, decode=lambda z: z)
    model, first, second = torch.nn.Identity(), torch.ones(1), torch.zeros(1)
    pipe, clock = SimpleNamespace(vae=vae), Clock(torch.device("cpu"))
    with timed(pipe, [model], clock, compiled=True) as decoding:
        model(first)
        assert decoding.latent is None
        pipe.vae.decode(first)
        assert decoding.latent is first
        model(second)
        assert decoding.latent is None
        pipe.vae.decode(second)
        assert decoding.latent is None
    assert not model._forward_pre_hooks
    with timed(pipe, [model], clock, compiled=True) as decoding:
        pipe.vae.decode(second)
        assert decoding.latent is second


@pytest.mark.parametrize("name", ["clip.mp4", "clip.safetensors"])
def test_on_a_full_disk_the_latent_goes_elsewhere(wan, tmp_path, monkeypatch, capsys, name):  # noqa: F811
    from safetensors import SafetensorError, torch

    disk, spare = tmp_path / "disk", tmp_path / "spare"
    disk.mkdir(), spare.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spare))
    save = torch.save_file

    def save_elsewhere(tensors, path):
        if path.parent == disk:
            path.write_bytes(b"half")
            raise SafetensorError("No space left on device")
        save(tensors, path)

    def full(*args, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr("flexsparse.diffusers.generate.files.save_file", save_elsewhere)
    monkeypatch.setattr("av.open", full)
    assert generate(wan, disk / name) == 2
    assert not [*disk.iterdir()]
    (kept,) = spare.iterdir()
    assert latent_of(kept).shape == (4, 3, 6, 10)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.endswith(f"was not written (No space left on device); the latent is in {kept}")


def test_a_file_that_appears_meanwhile_stays(tmp_path):
    path, latent = tmp_path / "a.safetensors", torch.randn(4, 1, 2, 2)
    path.write_text("mine")
    places = [write_latent(path, latent + number) for number in range(2)]
    assert places == [tmp_path / "a-1.safetensors", tmp_path / "a-2.safetensors"]
    assert path.read_text() == "mine" and len([*tmp_path.iterdir()]) == 3
    assert all(torch.equal(latent_of(p), latent + n) for n, p in enumerate(places))


def test_pixels_that_are_not_finite_are_no_clip():
    frames = torch.rand(1, 2, 4, 4, 3)
    assert torch.equal(frames_of(frames.numpy()), (frames[0] * 255).round().byte())
    frames[0, 1, 2, 3, 0] = torch.nan
    with pytest.raises(ValueError, match="pixels are not finite: give --vae-dtype float32"):
        frames_of(frames)
