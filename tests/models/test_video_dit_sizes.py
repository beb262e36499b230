"""The named sizes are as large as they say, and a config refuses what cannot work."""

from dataclasses import replace

import pytest
import torch

from models.attention import VSA, Dense
from models.video_dit import VideoDiTConfig, debug, dit_1b4, dit_60m, dit_120m, dit_410m


def parameters(config: VideoDiTConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in config.build().parameters())


@pytest.mark.parametrize(
    ("size", "millions"), [(dit_60m, 60), (dit_120m, 120), (dit_410m, 410), (dit_1b4, 1400)]
)
def test_a_size_is_what_it_is_called_and_vsa_adds_its_gates(size, millions):
    config = size()
    assert parameters(config) == pytest.approx(millions * 1e6, rel=0.03)
    gate = (config.dim + 1) * config.dim
    dense, pretrain = parameters(config), parameters(size(attention=VSA()))
    assert pretrain - dense == config.layers * 2 * gate
    assert parameters(size(attention=VSA(adapt=True))) - dense == config.layers * gate


@pytest.mark.parametrize("attention", [Dense(), VSA(), VSA(adapt=True), VSA(tile=None)])
def test_debug_is_under_a_million_with_every_slot(attention):
    assert parameters(debug(attention=attention)) <= 1_000_000


def test_120m_is_the_ablation_model_of_vsa():
    config = dit_120m(attention=VSA())
    assert (config.layers, config.heads, config.head_dim, config.ffn) == (12, 12, 64, 3072)
    with torch.device("meta"):
        model = config.build()
    assert (model.grid, model.tokens, model.top_k) == ((16, 32, 32), 16_384, 32)


def test_sizes_take_changes():
    assert debug(layers=1, attention=VSA()) == replace(debug(), layers=1, attention=VSA())


def test_a_video_that_patches_do_not_divide_is_refused_with_the_size_that_fits():
    with pytest.raises(ValueError, match=r"\(5, 25, 43\).*\(1, 4, 4\).*to \(5, 24, 40\)"):
        debug(video=(5, 25, 43))
    with pytest.raises(ValueError, match=r"to \(4, 4, 40\)"):
        debug(video=(4, 2, 40))


def test_a_head_dim_that_no_kernel_takes_is_refused_with_a_dim_that_works():
    with pytest.raises(ValueError, match=r"dim 100 / 4 heads = 25 .* multiple of 16: try dim 128"):
        debug(dim=100)
    debug(dim=128)
