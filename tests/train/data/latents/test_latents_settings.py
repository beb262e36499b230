"""What the command refuses before any work, and how clips are cut."""

import sys

import numpy as np
import pytest
from cached_run import said
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from train.data.caches.encode import check_clip_size, cut_clips


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_frames": 12}, "takes 4k + 1 frames and, with patches of 2x2 latents, sides that"),
        ({"height": 24}, "sides that are multiples of 16: try 9, 32 and 48"),
        ({"fps": -1}, "fps=-1.0 and stride=0 must not be negative"),
        ({"videos_per_file": 0}, "videos_per_file=0 and processes=1 must be positive"),
        ({"processes": 0}, "videos_per_file=2 and processes=0 must be positive"),
        ({"text_tokens": 0, "text_encoder": "nowhere"}, "nowhere has no text encoder: give"),
        ({"videos": "nowhere"}, "no folder of videos at nowhere"),
        ({"prompt_embeds": "nowhere"}, "no prompt embeddings at nowhere"),
        ({"vae": "nowhere"}, "nowhere has no config.json: give --vae the folder of a VAE"),
    ],
)
def test_bad_settings_are_one_line_before_any_work(
    tmp_path, run, encoded, caplog, changes, message
):
    assert run(**changes) == 1 and not encoded and not (tmp_path / "out").exists()
    assert message in said(caplog)[-1] and "\n" not in said(caplog)[-1]


def test_a_folder_that_holds_no_vae_is_refused(tmp_path, run, vae, caplog):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((vae / "config.json").read_text())
    assert run(vae=broken) == 1 and "diffusers cannot load" in said(caplog)[-1]
    weights = load_file(vae / "diffusion_pytorch_model.safetensors")
    decoder = {name: x for name, x in weights.items() if not name.startswith("encoder.")}
    save_file(decoder, broken / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    assert run(vae=broken) == 1 and "weights, encoder." in said(caplog)[-1]
    (broken / "config.json").write_text("{")
    assert run(vae=broken) == 1 and "diffusers cannot load" in said(caplog)[-1]
    from diffusers import AutoencoderTiny

    small = {"num_encoder_blocks": (1,), "num_decoder_blocks": (1,)}
    small |= {"encoder_block_out_channels": (4,), "decoder_block_out_channels": (4,)}
    AutoencoderTiny(**small).save_pretrained(broken / "tiny")
    assert run(vae=broken / "tiny") == 1
    assert "is a AutoencoderTiny: give a VAE of videos" in said(caplog)[-1]


def test_without_diffusers_it_says_what_to_install(run, monkeypatch, caplog):
    for name in [name for name in sys.modules if name.split(".")[0] == "diffusers"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert run() == 1 and "pip install diffusers" in said(caplog)[-1]


@given(st.integers(0, 25), st.data())
def test_clips_are_cut_where_they_begin(length, data):
    frames = [np.full((1, 2, 3), i, np.uint8) for i in range(length)]
    possible = [(i, n) for i in range(length) for n in range(1, min(7, length - i) + 1)]
    clips = data.draw(st.sets(st.sampled_from(possible)) if possible else st.just(set()))
    cut = [(start, clip.shape[1]) for start, clip in cut_clips(iter(frames), sorted(clips))]
    assert sorted(cut) == sorted(clips)
    for start, clip in cut_clips(iter(frames), sorted(clips)):
        assert clip.shape[0] == 3 and clip.shape[2:] == (1, 2)
        assert clip[0, :, 0, 0].tolist() == list(range(start, start + clip.shape[1]))


sides = st.integers(-5, 100) | st.integers(0, 12).map(lambda n: 8 * n)


@given(st.integers(-5, 100) | st.just(9), sides, sides)
def test_the_size_that_is_proposed_is_taken(frames, height, width):
    class Model:
        config = {"scale_factor_temporal": 4, "scale_factor_spatial": 8}

    fits = (
        frames >= 1
        and min(height, width) >= 16
        and (frames % 4, height % 16, width % 16) == (1, 0, 0)
    )
    if fits:
        return check_clip_size(Model, frames, height, width)
    with pytest.raises(ValueError, match="try") as error:
        check_clip_size(Model, frames, height, width)
    proposed = str(error.value).split("try ")[1].replace(" and", ",").split(", ")
    check_clip_size(Model, *map(int, proposed))
