"""What a command writes: whole files, in the place of none, and no latent is lost."""

import errno
import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from wan_generation import generate, pipeline  # noqa: F401  # a fixture

from models.wan.generate.clip import write_latent


def latent_of(path):
    return load_file(path)["latent"]


@pytest.mark.parametrize(
    "broken", ["av.VideoFrame.from_ndarray", "models.wan.generate.clip.decode"]
)
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), RuntimeError("out of memory\n")])
def test_a_clip_that_cannot_be_written_leaves_its_latent(
    pipeline,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
    broken,
    error,
):
    assert generate(pipeline, tmp_path / "wanted.safetensors") == 0

    def fail(*args, **options):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(broken, fail)
        assert generate(pipeline, tmp_path / "clip.mp4") == 2
    files = {p.name for p in tmp_path.iterdir()}
    assert files == {"wanted.safetensors", "clip.latent.safetensors"}
    kept = tmp_path / "clip.latent.safetensors"
    assert torch.equal(latent_of(kept), latent_of(tmp_path / "wanted.safetensors"))
    said = capsys.readouterr().err.strip().splitlines()[-1]
    why = str(error).strip()
    assert (
        said == f"error: {tmp_path / 'clip.mp4'} was not written ({why}); its latent is in {kept}"
    )

    assert generate(pipeline, tmp_path / "clip.mp4") == 0  # a latent that was kept stays
    assert {p.name for p in tmp_path.iterdir()} == files | {"clip.mp4"}


@pytest.mark.parametrize("name", ["clip.mp4", "clip.safetensors"])
def test_on_a_full_disk_the_latent_goes_elsewhere(pipeline, tmp_path, monkeypatch, capsys, name):  # noqa: F811
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

    monkeypatch.setattr("models.wan.generate.files.save_file", save_elsewhere)
    assert generate(pipeline, disk / name) == 2
    assert not [*disk.iterdir()]
    (kept,) = spare.iterdir()
    assert latent_of(kept).shape == (16, 3, 6, 10)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.endswith(f"was not written (No space left on device); the latent is in {kept}")


def test_a_file_that_appears_meanwhile_stays(tmp_path):
    path, latent = tmp_path / "a.safetensors", torch.randn(4, 1, 2, 2)
    path.write_text("mine")
    places = [write_latent(path, latent + number) for number in range(2)]
    assert places == [tmp_path / "a-1.safetensors", tmp_path / "a-2.safetensors"]
    assert path.read_text() == "mine" and len([*tmp_path.iterdir()]) == 3
    assert all(torch.equal(latent_of(p), latent + n) for n, p in enumerate(places))


LACKING = """
import importlib, sys
sys.modules |= dict.fromkeys(sys.argv[2].split(","))
sys.exit(importlib.import_module(sys.argv[1] + ".__main__").main(sys.argv[3:]))
"""


@pytest.mark.parametrize(
    ("name", "lacking", "options"),
    [
        ("generate", ["diffusers", "tqdm", "av"], ["--out", "{}/a.mp4"]),
        ("generate.quality", ["tqdm", "matplotlib"], ["--attention", "vsa", "--out", "{}/report"]),
    ],
)
def test_packages_that_are_not_there_are_named_in_a_line(
    pipeline,  # noqa: F811
    tmp_path,
    name,
    lacking,
    options,
):
    command = [sys.executable, "-c", LACKING, f"models.wan.{name}", ",".join(lacking)]
    command += ["--checkpoint", str(pipeline), "--prompt-embeds", str(pipeline / "one.safetensors")]
    command += [option.format(tmp_path) for option in options]
    found = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    due = f"this command takes {' and '.join(lacking)}: pip install {' '.join(lacking)}"
    assert (found.returncode, found.stderr) == (2, f"error: {due}\n")
    assert not list(tmp_path.iterdir())


def test_a_latent_takes_no_package_for_films(pipeline, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setitem(sys.modules, "av", None)
    assert generate(pipeline, tmp_path / "b.mp4") == 2
    assert "this command takes av: pip install av" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert generate(pipeline, tmp_path / "b.safetensors") == 0


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted: files that are whole stay"),
        (MemoryError(), 2, "error: out of memory (a smaller --size "),
        (torch.OutOfMemoryError("HIP out of memory.\nTried"), 2, "error: HIP out of memory. (a "),
        (RuntimeError("can't allocate memory: 9 bytes"), 2, "error: can't allocate memory: 9 "),
    ],
    ids=["interrupt", "memory", "accelerator", "cpu"],
)
@pytest.mark.parametrize("name", ["generate", "generate.quality"])
def test_what_ends_a_command_in_the_middle_is_one_line(
    pipeline,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
    name,
    error,
    status,
    words,
):
    command = importlib.import_module(f"models.wan.{name}.__main__")

    def ended(*args, **options):
        raise error

    monkeypatch.setattr(command, "load_model", ended)
    given = ["--checkpoint", str(pipeline), "--prompt-embeds", str(pipeline / "one.safetensors")]
    out = ["--attention", "vsa", "--out", str(tmp_path / "a.mp4")]
    assert command.main([*given, *out, "--size", "9x48x80", "--top-k", "1"]) == status
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(words)
    assert not list(tmp_path.iterdir())
    error = RuntimeError("ours")
    with pytest.raises(RuntimeError, match="ours"):
        command.main([*given, *out, "--size", "9x48x80", "--top-k", "1"])
