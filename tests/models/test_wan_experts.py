"""Wan 2.2's folders hold two models, of which no command may take the first for all noise."""

import json

import pytest

from models.wan import debug
from models.wan.checkpoint import CheckpointError, load, read_config, save
from models.wan.experts import times_of

PAIR = ("transformer", "transformer_2"), ("high_noise_model", "low_noise_model")


def write(folder, names, boundary=None, **changes):
    for name in names:
        save(debug(**changes).build(), folder / name)
    if boundary is not None or names[0] == "transformer":
        index = {"_class_name": "WanPipeline", "boundary_ratio": boundary}
        (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("names", PAIR)
def test_a_folder_of_two_models_is_refused_and_either_is_read(names, tmp_path):
    folder = write(tmp_path / "A14B", names, 0.875)
    for read in (read_config, lambda path: load(debug(), path)):
        with pytest.raises(
            CheckpointError, match=rf"{names[0]} for noise above 0.875 and {names[1]}"
        ):
            read(folder)
        for name in names:
            read(folder / name)


def test_the_times_of_a_model_are_told_by_its_folder(tmp_path, monkeypatch):
    folder = write(tmp_path / "a", PAIR[0], 0.6)
    assert times_of(folder / "transformer") == (0.6, 1)
    assert times_of(folder / "transformer_2") == (0, 0.6)
    (weights,) = (folder / "transformer_2").glob("*.safetensors")
    assert times_of(weights) == (0, 0.6)
    monkeypatch.chdir(folder / "transformer")
    assert times_of(".") == (0.6, 1)
    own = write(tmp_path / "b", PAIR[1], in_channels=36)  # a picture beside the noise
    assert [times_of(own / name) for name in PAIR[1]] == [(0.9, 1), (0, 0.9)]
    own = write(tmp_path / "c", PAIR[1][1:])
    assert times_of(own / "low_noise_model") == (0, 0.875)
    with pytest.raises(CheckpointError, match="high_noise_model for noise above 0.875 and low_noi"):
        read_config(own)


def test_the_times_of_a_model_are_told_by_links_and_names(tmp_path):
    own = write(tmp_path / "A14B", PAIR[1], in_channels=36)
    (weights,) = (own / "high_noise_model").glob("*.safetensors")
    (tmp_path / "base").symlink_to(own / "low_noise_model")
    (tmp_path / "base.safetensors").symlink_to(weights)
    assert times_of(tmp_path / "base") == (0, 0.9)
    assert times_of(tmp_path / "base.safetensors") == (0.9, 1)
    alone = tmp_path / "models"
    alone.mkdir()
    file = alone / "wan2.2_t2v_low_noise_14B_fp16.safetensors"
    file.touch()
    assert times_of(file) == (0, 0.875)
    assert times_of(tmp_path / "Wan2.2-T2V-HighNoise") == (0.875, 1)
    assert times_of(write(tmp_path / "x-low_noise_model", ["transformer"])) == (0, 0.875)
    assert times_of(alone / "high_noise_and_low_noise") == times_of(alone) == (0, 1)


def test_what_is_saved_says_its_times_whatever_its_name(tmp_path):
    for name, times in dict(low=(0, 0.875), high_noise_model=(0, 0.5), all=(0, 1)).items():
        save(debug().build(), tmp_path / name, times=times)
        assert times_of(tmp_path / name) == times
        load(debug(), tmp_path / name)
    (tmp_path / "pipe").mkdir()
    (tmp_path / "low").rename(tmp_path / "pipe/transformer")
    assert times_of(tmp_path / "pipe") == (0, 0.875)
    assert "times" not in (tmp_path / "all/config.json").read_text()


def test_half_of_a_pair_is_not_taken_for_a_whole(tmp_path):
    half = write(tmp_path / "half", PAIR[0][:1], 0.9)
    assert times_of(half / "transformer") == (0.9, 1)
    with pytest.raises(CheckpointError, match="transformer for noise above 0.9 and transformer_2"):
        read_config(half)
    whole = write(tmp_path / "whole", PAIR[0][:1])  # as Wan 2.1's and 2.2's 5B have it
    assert read_config(whole).dim == debug().dim
    assert times_of(whole) == times_of(whole / "transformer") == (0, 1)
