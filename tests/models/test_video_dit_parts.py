"""Patches, rotary embedding, and the embedding of time."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import assert_accurate, seeds

from models.video_dit.embed import patchify, timestep_embedding, unpatchify
from models.video_dit.rope import THETA, rotary_table, rotate

triples = st.tuples(*[st.integers(1, 4)] * 3)


@given(triples, triples, st.integers(1, 3), seeds)
@settings(max_examples=25)
def test_patches_are_in_raster_order_and_come_back_exactly(grid, patch, channels, seed):
    torch.manual_seed(seed)
    x = torch.randn(2, channels, *(g * p for g, p in zip(grid, patch)))
    tokens = patchify(x, patch)
    assert torch.equal(unpatchify(tokens, grid, patch), x)
    t, h, w = (int(torch.randint(g, ())) for g in grid)
    token = (t * grid[1] + h) * grid[2] + w
    place = [slice(i * p, (i + 1) * p) for i, p in zip((t, h, w), patch)]
    assert torch.equal(tokens[:, token], x[:, :, *place].flatten(1))


def rotate_by_formula(x, grid, dtype):
    """Every token's complex channels times exp(i * place * frequency), computed in `dtype`."""
    pairs = x.shape[-1] // 2
    spatial = pairs // 3
    places = torch.cartesian_prod(*(torch.arange(size, dtype=dtype) for size in grid))
    axes = torch.tensor([0] * (pairs - 2 * spatial) + [1] * spatial + [2] * spatial)
    number = torch.cat([torch.arange(n) for n in (pairs - 2 * spatial, spatial, spatial)])
    share = torch.bincount(axes, minlength=3)[axes]
    angle = places[:, axes] * THETA ** (-number.to(dtype) / share)
    turned = torch.complex(*x.to(dtype).chunk(2, -1)) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), -1)


@given(st.tuples(*[st.integers(1, 9)] * 3), st.sampled_from([16, 32, 64, 128]), seeds)
@settings(max_examples=25)
def test_rotation_is_the_formula_for_every_token(grid, head_dim, seed):
    torch.manual_seed(seed)
    x = torch.randn(1, 2, grid[0] * grid[1] * grid[2], head_dim)
    exact = rotate_by_formula(x, grid, torch.float64)
    ours = rotate(x, rotary_table(grid, head_dim, x.device))
    eager = rotate_by_formula(x, grid, torch.float32)
    assert_accurate([ours], [[eager]], [exact])


def test_rotation_keeps_the_dtype_and_rounds_once():
    x = torch.randn(1, 1, 60, 32, dtype=torch.bfloat16)
    table = rotary_table((3, 4, 5), 32, x.device)
    assert torch.equal(rotate(x, table), rotate(x.float(), table).to(torch.bfloat16))


def test_times_closer_than_bf16_can_tell_stay_apart():
    t = torch.tensor([0.9985, 0.9995])
    assert t.bfloat16().unique().numel() == 1
    embedding = timestep_embedding(t, 64)
    assert embedding.dtype == torch.float32
    assert not torch.equal(*embedding)
    assert timestep_embedding(t.double(), 64).dtype == torch.float32
