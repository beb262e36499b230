"""A mask means the same to every reader: mask_mod, the lists both ways, torch's kernels."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import assert_accurate, problems, tensors
from torch.nn.attention.flex_attention import create_mask
from torch.nn.attention.flex_attention import flex_attention as torch_flex_attention

from flexsparse import (
    Threshold,
    VideoTiling,
    bsa_mask,
    flex_attention,
    prune_queries,
    vsa_mask,
)
from flexsparse.choice.block_mask import TileBlockMask, tile_block_mask
from flexsparse.vsa import vsa_tile_map


def make(problem):
    """Tile-major q, k, v and their mask."""
    tiling = problem["tiling"]
    qkv = [tiling.to_tiles(x.detach()) for x in tensors(3, problem)]
    choice = dict(top_k=problem["top_k"], query_tiles=problem.get("query_tiles", 1))
    return qkv, vsa_mask(*qkv[:2], tiling, **choice)


@settings(max_examples=20)
@given(problems(), st.integers(0, 40))
def test_its_lists_can_be_made_again_of_its_bits(problem, text):
    """As a GPU's backward does, which is handed no lists."""
    tiling = replace(problem["tiling"], text=text)
    q, k = (tiling.to_tiles(x.detach()) for x in tensors(2, {**problem, "tiling": tiling}))
    divides = not text or tiling.num_tiles % problem["query_tiles"] == 0
    choice = dict(top_k=problem["top_k"], query_tiles=problem["query_tiles"] if divides else 1)
    lengths = torch.arange(problem["batch"]) * text // 2 if text else None
    masks = [vsa_mask(q, k, tiling, text_lengths=lengths, **choice)]
    kept = prune_queries(q, tiling, keep=0.5, text_lengths=lengths)
    masks.append(bsa_mask(kept, k, tiling, kv=Threshold(2), text_lengths=lengths))
    for mask in masks:
        again = mask.made_of.mask()
        for name, x in vars(mask).items():
            if isinstance(x, torch.Tensor):
                assert torch.equal(getattr(again, name), x), name
        assert (again.seq_lengths, again.BLOCK_SIZE) == (mask.seq_lengths, mask.BLOCK_SIZE)


def listed(num, indices, n):
    """Lists to a bool map, one row at a time; checks that each row ascends without repetition."""
    found = torch.zeros(*num.shape, n, dtype=torch.bool)
    for place in torch.cartesian_prod(*map(torch.arange, num.shape)).tolist():
        row = indices[tuple(place)][: num[tuple(place)]]
        assert (row.diff() > 0).all()
        found[tuple(place)][row.long()] = True
    return found


@settings(max_examples=20)
@given(problems(dims=(16,), max_rows=512))
def test_mask_mod_and_both_lists_agree(problem):
    tiling = problem["tiling"]
    n, rows, per_block = tiling.num_tiles, tiling.rows, problem["query_tiles"]
    (q, k, _), mask = make(problem)
    size = tiling.padded_tokens
    assert mask.shape == (problem["batch"], problem["heads"], size, size)
    assert mask.BLOCK_SIZE == (per_block * rows, rows)
    dense = create_mask(mask.mask_mod, problem["batch"], problem["heads"], size, size, "cpu")
    by_tile = dense.unflatten(3, (n, rows)).unflatten(2, (n, rows)).transpose(3, 4)

    # mask_mod is tile choice and padding, and nothing else
    chosen = vsa_tile_map(q, k, tiling, top_k=problem["top_k"], query_tiles=per_block)
    assert torch.equal(dense[..., ~tiling.valid()].any(), torch.tensor(False))
    assert torch.equal(by_tile.any(-1).any(-1), chosen)
    by_tile, chosen = by_tile[:, :, ::per_block], chosen[:, :, ::per_block]  # now of blocks
    blocks = -(-n // per_block)

    partial = listed(mask.kv_num_blocks, mask.kv_indices, n)
    full = torch.zeros_like(partial)
    if mask.full_kv_num_blocks is not None:
        full = listed(mask.full_kv_num_blocks, mask.full_kv_indices, n)
    assert torch.equal(full, by_tile.all(-1).all(-1))
    assert torch.equal(partial, chosen & ~full)
    assert torch.equal(mask.to_dense().bool(), chosen)

    by_key = listed(mask.q_num_blocks, mask.q_indices, blocks)
    assert torch.equal(by_key, partial.transpose(-1, -2))
    if mask.full_q_num_blocks is not None:
        by_key = listed(mask.full_q_num_blocks, mask.full_q_indices, blocks)
        assert torch.equal(by_key, full.transpose(-1, -2))

    # what the kernels walk: the same lists, with padding alone to be masked within them
    inner = mask.within_tiles()
    assert torch.equal(TileBlockMask.to_dense(inner).bool(), chosen)
    within = create_mask(inner.mask_mod, 1, 1, size, size, "cpu")
    assert torch.equal(within.expand_as(dense), tiling.valid().expand_as(dense))


@settings(max_examples=10)
@given(problems(dims=(16,), max_rows=512))
def test_torch_reads_it_the_same_in_eager_mode(problem):
    tiling = problem["tiling"]
    qkv, mask = make(problem)
    with torch.no_grad():
        theirs = tiling.from_tiles(torch_flex_attention(*qkv, block_mask=mask))
        exact = [x.double() for x in qkv]
        exact = tiling.from_tiles(torch_flex_attention(*exact, block_mask=mask))
    ours = tiling.from_tiles(flex_attention(*qkv, block_mask=mask))
    assert_accurate([ours], [[theirs]], [exact], qkv)


@pytest.mark.parametrize(
    "video, tile",
    [
        pytest.param((4, 8, 8), (4, 4, 4), id="full"),
        pytest.param((5, 8, 9), (3, 5, 4), id="padded and ragged"),
    ],
)
def test_torch_compiled_on_cpu_reads_it_the_same(video, tile):
    tiling = VideoTiling(video, tile)
    problem = dict(tiling=tiling, batch=2, heads=2, dim=32, seed=0, top_k=2)
    qkv, mask = make(problem)
    compiled = torch.compile(torch_flex_attention, dynamic=False, fullgraph=True)
    with torch.no_grad():
        theirs = tiling.from_tiles(compiled(*qkv, block_mask=mask))
        exact = [x.double() for x in qkv]
        exact = tiling.from_tiles(torch_flex_attention(*exact, block_mask=mask))
    ours = tiling.from_tiles(flex_attention(*qkv, block_mask=mask))
    assert_accurate([ours], [[theirs]], [exact], qkv)
    assert_accurate([theirs], [[ours]], [exact], qkv)


@settings(max_examples=50)
@given(
    st.sampled_from(
        [  # some tiles full and some not, 4 of 12 and 2 of 12; all full; none
            VideoTiling((7, 9, 8), (4, 4, 4)),
            VideoTiling((5, 6, 7), (2, 4, 4)),
            VideoTiling((8, 8, 12), (4, 4, 4)),
            VideoTiling((6, 10, 8), (3, 5, 4)),
        ]
    ),
    st.integers(1, 8),
    st.integers(1, 3),
)
def test_partial_and_full_lists_have_one_layout(tiling, k, query_tiles):
    """On CUDA, where both are found by the strides of one."""
    blocks = -(-tiling.num_tiles // query_tiles)
    chosen = torch.empty(2, 3, blocks, tiling.num_tiles, dtype=torch.bool, device="meta")
    mask = tile_block_mask(chosen, tiling, most=k, query_tiles=query_tiles)
    for each in (mask, mask.within_tiles()):
        for name in ("kv_num_blocks", "kv_indices", "q_num_blocks", "q_indices"):
            partial, full = getattr(each, name), getattr(each, f"full_{name}")
            assert partial.is_contiguous()
            assert full is None or (full.shape, full.stride()) == (partial.shape, partial.stride())
    assert mask.kv_indices.shape[-1] == k  # narrow


def test_lists_are_narrow_and_inference_needs_one_direction():
    tiling = VideoTiling((8, 16, 16), (4, 4, 4))
    q = torch.randn(1, 2, tiling.padded_tokens, 16)
    mask = vsa_mask(q, q, tiling, top_k=3)
    assert mask.full_kv_indices.shape == (1, 2, 32, 3)
    with torch.no_grad():
        mask = vsa_mask(q, q, tiling, top_k=3)
    assert mask.q_indices is None and mask.full_q_indices is None


def test_it_draws_itself_and_knows_its_sparsity():
    tiling = VideoTiling((4, 8, 8), (2, 4, 4))
    q = torch.randn(1, 2, tiling.padded_tokens, 16)
    mask = vsa_mask(q, q, tiling, top_k=2)
    assert mask.sparsity() == 75.0
    assert "sparsity=75.00%" in str(mask)
    assert mask.shape == (1, 2, tiling.padded_tokens, tiling.padded_tokens)


def test_it_says_what_it_cannot_do():
    tiling = VideoTiling((4, 8, 8), (2, 4, 4))
    q = torch.randn(2, 2, tiling.padded_tokens, 16)
    mask = vsa_mask(q, q, tiling, top_k=2)
    for change in (lambda: mask[0], lambda: mask._adjust(64, 64), lambda: mask.to("cpu")):
        with pytest.raises(NotImplementedError, match="build it from the q and k that it is for"):
            change()
