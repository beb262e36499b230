"""What the command writes, and that it is read back to the bit."""

import inspect
import json
import logging

import numpy as np
import pyarrow.parquet as pq
import torch
from cached_run import FRAMES, HEIGHT, LATENT, WIDTH, said, scene
from safetensors.torch import load_file

from train.data import WAN_LATENTS_MEAN, WAN_LATENTS_STD, LatentDataLoader, VideoFolder
from train.data.caches.encode import find_clips, load_vae
from train.data.latents.records import SCHEMA


def test_what_is_written_is_read_and_equals_encoding_to_the_bit(
    tmp_path, run, videos, vae, embeds, caplog
):
    assert run(prompt_embeds=embeds) == 0
    assert ["left out short.mov: it has no shot of 9 frames at fps=10.0"] == [
        line for line in said(caplog) if "left out short" in line
    ]
    clips = VideoFolder(
        videos,
        num_frames=FRAMES,
        height=HEIGHT,
        width=WIDTH,
        fps=10,
        stride=FRAMES,
        holdout=0,
        cache_dir=tmp_path / "frames",
    )
    data = LatentDataLoader.Config(
        path=str(tmp_path / "out"), latents_mean=(), latents_std=(), text_dim=6, holdout=0, **LATENT
    )
    latents = data.build().clips
    model = load_vae(vae)
    rows = pq.read_table(tmp_path / "out", schema=SCHEMA).to_pylist()
    assert len(latents) == len(clips) == len(rows) == 6
    ids = ["a/one-000000", "a/one-000009", "a/one-000020", "b-000000", "c-000000", "d-000000"]
    assert [row["id"] for row in rows] == ids
    stills = [scene(0, 20)[:9], scene(0, 20)[9:18], scene(1, 9)]
    stills += [scene(n, 9) for n in (2, 3, 4)]
    for i, row in enumerate(rows):
        assert np.array_equal(clips[i]["video"].permute(1, 2, 3, 0), stills[i])
        pixels = clips[i]["video"][None].float() / 127.5 - 1
        with torch.no_grad():
            wanted = model.encode(pixels).latent_dist.mode()[0]
        assert torch.equal(latents[i]["video"], wanted) and wanted.std() > 0
        assert row["caption"] == clips[i]["caption"]
        name, start = row["id"].rsplit("-", 1)
        text = embeds_of(embeds, name)
        assert torch.equal(latents[i]["context"][: len(text)], text)
        assert not latents[i]["context"][len(text) :].any()
        # As FastVideo takes them: float32 whatever is said, in the shape that stands beside.
        as_fastvideo = np.frombuffer(row["vae_latent_bytes"], np.float32)
        assert np.array_equal(as_fastvideo.reshape(row["vae_latent_shape"]), wanted)
        assert row["text_embedding_shape"] == list(text.shape)
        assert row["vae_latent_dtype"] == row["text_embedding_dtype"] == "float32"
        numbers = [row[key] for key in ("num_frames", "height", "width", "duration_sec", "fps")]
        assert numbers == [3, HEIGHT, WIDTH, 0.9, 10.0]
        assert (row["file_name"], row["media_type"]) == (f"{name}.mov", "video")


def embeds_of(folder, name):
    return load_file(folder / f"{name}.safetensors")["prompt_embeds"].float()


def test_a_clip_is_a_row_group(tmp_path, run):
    run()
    made = [pq.read_metadata(p) for p in sorted((tmp_path / "out").glob("*.parquet"))]
    assert [m.num_rows for m in made] == [4, 2, 0]
    assert [m.num_row_groups for m in made] == [4, 2, 0]


def test_the_manifest_says_how_to_normalise(tmp_path, run):
    run()
    manifest = json.loads((tmp_path / "out" / "_latents.json").read_text())
    assert manifest["latents_mean"] == [0.5, -0.25] and manifest["latents_std"] == [2.0, 0.3]


def test_videos_that_cannot_be_read_are_named_and_left_out(tmp_path, run, videos, caplog):
    (videos / "a0.mp4").write_text("no video")
    assert run() == 0
    assert [line for line in said(caplog) if line.startswith("left out a0.mp4: ")]
    assert "6 clips, 3 of 3 files, videos left out: 2;" in said(caplog)[-1]


def test_no_clip_at_all_is_an_error(tmp_path, run, encoded, caplog):
    assert run(num_frames=25) == 1 and not encoded
    assert "of its 5 videos has num_frames=25 frames at fps=10: ask for" in said(caplog)[-1]
    assert run(num_frames=25) == 1 and "with another --out" in said(caplog)[-1]


def test_videos_as_filmed_have_no_rate(tmp_path, run):
    assert run(fps=0) == 0
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert len(rows) == 6 and {(r["fps"], r["duration_sec"]) for r in rows} == {(None, None)}


def test_wans_mean_and_std_are_those_of_diffusers():
    from diffusers import AutoencoderKLWan

    defaults = inspect.signature(AutoencoderKLWan.__init__).parameters
    assert list(WAN_LATENTS_MEAN) == defaults["latents_mean"].default
    assert list(WAN_LATENTS_STD) == defaults["latents_std"].default


def test_no_clip_is_across_a_break_and_the_log_names_it(tmp_path, write_film, caplog):
    times = [100 * i + (3_600_000 if i >= 12 else 0) for i in range(30)]
    frames = [np.full((32, 32, 3), 100, np.uint8)] * 30
    video = write_film(tmp_path / "v.mkv", frames, times=times)
    with caplog.at_level(logging.WARNING, "train.data.caches"):
        logging.getLogger("train.data.caches").addHandler(caplog.handler)
        _, clips = find_clips(video, [(9, 32, 32)], 0, 10)
        logging.getLogger("train.data.caches").removeHandler(caplog.handler)
    assert clips == [(0, 9), (12, 9), (21, 9)]
    assert f"{video}: its times jump, or frames are damaged (1 times): each ends a shot" in (
        caplog.messages
    )
