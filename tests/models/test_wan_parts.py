"""Rotary table and times are diffusers', and no less exact; sizes are Wan's; errors are clear."""

import doctest
import importlib
from dataclasses import replace

import pytest
import torch
from diffusers.models.embeddings import Timesteps
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from hypothesis import example, given, settings
from hypothesis import strategies as st
from laws import assert_accurate, seeds
from small_wan import Sinusoids, draw_batch, small_wan

from models.attention import BSA, VSA, Dense
from models.video_dit.embed import timestep_embedding
from models.wan import WanConfig, debug, wan_1_3b, wan_14b, wan_i2v_14b
from models.wan.rope import THETA, rotary_table


@given(
    st.tuples(st.integers(1, 21), st.integers(1, 45), st.integers(1, 80)),
    st.sampled_from([16, 32, 64, 80, 128]),
)
@example((2, 3, 997), 128)
@settings(max_examples=8)
def test_the_rotary_table_is_that_of_diffusers_at_any_length(grid, head_dim):
    x = torch.empty(1, 1, *grid, device="meta")
    theirs = WanRotaryPosEmbed(head_dim, (1, 1, 1), 1024)(x)
    theirs = torch.stack([table[0, :, 0] for table in theirs])
    channels = 2 * (head_dim // 6)
    places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid))
    angle = torch.cat(
        [
            place[:, None] * THETA ** (-torch.arange(0, n, 2, dtype=torch.float64) / n)
            for place, n in zip(places.view(-1, 3).T, (head_dim - 2 * channels, channels, channels))
        ],
        -1,
    )
    exact = torch.stack((angle.cos(), angle.sin())).repeat_interleave(2, -1)
    ours = rotary_table(grid, head_dim, torch.device("cpu"))
    ours[1, :, ::2] *= -1  # a sine has the sign of its rotation
    assert_accurate([ours], [[theirs]], [exact])


@given(st.integers(1, 8), st.sampled_from([2, 64, 256]), seeds)
@settings(max_examples=20)
def test_times_are_on_wans_scale_and_as_exact_as_diffusers(batch, channels, seed):
    t = torch.rand(batch, generator=torch.Generator().manual_seed(seed))
    theirs = Timesteps(channels, flip_sin_to_cos=True, downscale_freq_shift=0)(1000 * t)
    exact = Sinusoids(channels, torch.float64)(1000 * t.double())
    assert_accurate([timestep_embedding(t, channels)], [[theirs]], [exact])


def parameters(config: WanConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in config.build().parameters())


@pytest.mark.parametrize(
    ("size", "count"),
    [(wan_1_3b, 1_418_996_800), (wan_14b, 14_288_491_584), (wan_i2v_14b, 16_394_878_784)],
)
def test_a_size_has_the_parameters_of_its_checkpoint(size, count):
    assert parameters(size()) == count
    gate = (size().dim + 1) * size().dim
    adapted = parameters(size(attention=VSA(adapt=True)))
    assert adapted - parameters(size()) == size().layers * gate


@pytest.mark.parametrize("attention", [Dense(), VSA(), VSA(adapt=True), VSA(tile=None), BSA()])
def test_debug_is_small_with_every_slot_and_sizes_take_changes(attention):
    assert parameters(debug(attention=attention)) <= 1_000_000
    assert debug(layers=1, attention=attention) == replace(debug(), layers=1, attention=attention)


def test_a_config_is_hashable_and_says_what_trainers_ask():
    config = wan_1_3b(attention=VSA(sparsity=0.9))
    assert hash(config) == hash(replace(config))
    assert (config.context_dim, config.head_dim, config.grid) == (4096, 128, (21, 30, 52))
    with torch.device("meta"):
        model = config.build()
    assert (model.grid, model.tokens) == ((21, 30, 52), 32_760)
    assert (model.tiling.num_tiles, model.top_k, model.q_rows) == (624, 62, None)
    assert list(model.layers) == [str(i) for i in range(30)]


@pytest.mark.parametrize("module", ["config", "model"])
def test_docstrings_run(module):
    result = doctest.testmod(importlib.import_module(f"models.wan.{module}"))
    assert result.attempted and not result.failed


def test_a_config_that_cannot_work_is_refused_with_the_fix():
    with pytest.raises(ValueError, match=r"\(3, 13, 20\).*\(1, 2, 2\).*to \(3, 12, 20\)"):
        debug(video=(3, 13, 20))
    with pytest.raises(ValueError, match=r"dim 72 / 2 heads = 36 .* multiple of 16: try dim 64"):
        debug(dim=72)
    with pytest.raises(ValueError, match=r"pos_embed_seq_len is 514, but .* give image_dim"):
        debug(pos_embed_seq_len=514)


def test_wrong_shapes_are_refused_with_the_numbers_and_the_fix():
    model = small_wan((3, 4, 6))
    x, t, context = draw_batch(model.config)
    with pytest.raises(ValueError, match=r"video \(3, 8, 11\) .* patch \(1, 2, 2\).*to \(3, 8, 10"):
        model(x[..., :11], t, context)
    with pytest.raises(ValueError, match=r"video \(3, 8, 0\) .*to \(3, 8, 2\)"):
        model(x[..., :0], t, context)
    with pytest.raises(ValueError, match=r"x is \[2, 3, 3, 8, 12\]; .*\[B, 4, T, H, W\]"):
        model(x[:, :3], t, context)
    with pytest.raises(ValueError, match=r"x is \[4, 3, 8, 12\]"):
        model(x[0], t, context)
    with pytest.raises(ValueError, match=r"t is \[1\]; give one time per video: \[2\]"):
        model(x, t[:1], context)
    with pytest.raises(ValueError, match=r"context is \[2, 5, 3\].*\[2, N, 8\]"):
        model(x, t, context[..., :3])
    with pytest.raises(ValueError, match=r"context is \[1, 5, 8\].*\[2, N, 8\]"):
        model(x, t, context[:1])
    with pytest.raises(ValueError, match=r"image is \[2, 3, 8\], but .* text alone: leave it out"):
        model(x, t, context, context[:, :3])


def test_a_wrong_image_is_refused_with_the_numbers_and_the_fix():
    model = small_wan(image_dim=24)
    x, t, context, image = draw_batch(model.config)
    with pytest.raises(ValueError, match=r"image is None; give picture tokens \[2, M, 24\]"):
        model(x, t, context)
    with pytest.raises(ValueError, match=r"image is \[1, 3, 24\].*\[2, M, 24\]"):
        model(x, t, context, image[:1])
    two = small_wan(image_dim=24, pos_embed_seq_len=6)
    with pytest.raises(ValueError, match=r"image is \[2, 3, 24\].*\[2, 6, 24\]"):
        two(x, t, context, image)
