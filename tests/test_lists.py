"""The lists of a choice of tiles: a Triton kernel that counts, and its PyTorch twin."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import seeds, tilings

from flexsparse import VideoTiling
from flexsparse.choice import lists
from flexsparse.choice.lists import block_lists, tile_lists_twin
from flexsparse.choice.selection import pack_bits

device = "cuda" if torch.cuda.is_available() else "cpu"
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")


def kernel(bits, tiling, most, by_key):
    from flexsparse.kernels.tile_lists import tile_lists

    shape = tiling.video, tiling.tile, tiling.rows, tiling.text_tiles
    return [x.cpu() for x in tile_lists(bits.to(device), *shape, most, by_key)]


implementations = pytest.mark.parametrize(
    "make",
    [pytest.param(kernel, id="triton", marks=on_linux), pytest.param(tile_lists_twin, id="twin")],
)
MIXED = VideoTiling((7, 9, 8), (4, 4, 4))  # some tiles without padding, some with
WITH_TEXT = VideoTiling((8, 8, 20), (4, 4, 4), text=130)  # text tiles are partial, padded or not


def rows_of(num, indices, n):
    """Every list as Python's, checked to be of indices even where nothing is listed."""
    assert num.dtype == indices.dtype == torch.int32
    assert ((indices[..., 0] >= 0) & (indices[..., 0] < n)).all()
    flat = indices.reshape(-1, indices.shape[-1])
    return [row[:count].tolist() for row, count in zip(flat, num.flatten().tolist(), strict=True)]


def expected(chosen):
    return [row.nonzero().flatten().tolist() for row in chosen.reshape(-1, chosen.shape[-1])]


@implementations
@settings(max_examples=12)
@given(st.one_of(tilings(), st.just(MIXED), st.just(WITH_TEXT)), st.data(), seeds)
def test_lists_are_the_chosen_tiles_in_ascending_order(make, tiling, data, seed):
    n, generator = tiling.key_tiles, torch.Generator().manual_seed(seed)
    blocks = -(-n // data.draw(st.integers(1, min(n, 3))))
    share = data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    chosen = torch.rand(2, 2, blocks, n, generator=generator) < share
    most = max(1, int(chosen.sum(-1).amax()))
    some_partial = tiling.full_tiles < n
    kinds = 2 if some_partial and tiling.full_tiles else 1
    for by_key in (True, False):
        num, indices, *rest = make(pack_bits(chosen), tiling, most, by_key)
        assert indices.shape == (kinds, 2, 2, blocks, most) and len(rest) == 2 * by_key
        full = (tiling.counts() == tiling.rows) & (torch.arange(n) < tiling.num_tiles)
        for kind, own in enumerate((chosen & ~full, chosen & full)):  # partial, full
            there_is = (some_partial, tiling.full_tiles > 0)[kind]
            listed = indices[kind % kinds] if there_is else torch.zeros(2, 2, blocks, 1).int()
            assert rows_of(num[kind], listed, n) == expected(own)
            if by_key:
                k_num, k_indices = rest
                found = rows_of(k_num[kind], k_indices, blocks)
                assert found == expected(own.transpose(-1, -2))


@on_linux
def test_many_tiles_and_the_same_twice():
    """More query blocks than a program of the key side reads at a time, and rows of all tiles."""
    tiling = VideoTiling((4, 14, 14), (1, 2, 2))
    n = tiling.num_tiles
    chosen = torch.rand(1, 1, n, n, generator=torch.Generator().manual_seed(0)) < 0.1
    chosen[..., 5, :] = chosen[..., 150] = True
    rows, by_key = expected(chosen), expected(chosen.transpose(-1, -2))
    for _ in range(2):
        (num, _), (indices,), (k_num, _), k_indices = kernel(pack_bits(chosen), tiling, n, True)
        assert rows_of(num, indices, n) == rows
        assert rows_of(k_num, k_indices, n) == by_key


@on_linux
def test_a_list_that_is_too_long_is_refused_or_stays_in_its_place():
    tiling = VideoTiling((4, 4, 12), (2, 4, 4))
    bits = pack_bits(torch.ones(1, 1, 6, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="a row has 6 tiles, more than most=4"):
        tile_lists_twin(bits, tiling, 4, False)
    (_, num), (indices,) = kernel(bits, tiling, 4, False)
    assert rows_of(num, indices, 6) == 6 * [[0, 1, 2, 3]]


def test_partial_lists_stand_first_and_the_device_decides(monkeypatch):
    chosen = torch.ones(1, 1, MIXED.num_tiles, MIXED.num_tiles, dtype=torch.bool)
    bits = pack_bits(chosen).to(device)
    (num, indices, full_num, full_indices), by_key = block_lists(
        bits, MIXED, most=MIXED.num_tiles, by_key=True
    )
    assert (full_num == MIXED.full_tiles).all() and (num + full_num == MIXED.num_tiles).all()
    is_full = (MIXED.counts() == MIXED.rows).to(device)
    assert is_full[full_indices[0, 0, 0, : MIXED.full_tiles].long()].all()
    assert torch.equal(by_key[0] > 0, ~is_full[None, None])
    assert block_lists(bits, MIXED, most=MIXED.num_tiles, by_key=False)[1] is None
    called, real = [], lists.tile_lists_twin
    monkeypatch.setattr(lists, "tile_lists_twin", lambda *a: called.append(a) or real(*a))
    block_lists(bits, MIXED, most=MIXED.num_tiles, by_key=False)
    assert bool(called) == (device == "cpu")


@on_linux
def test_the_kernel_is_a_well_formed_operator():
    from flexsparse.kernels.tile_lists import tile_lists

    bits = torch.ones(1, 1, MIXED.num_tiles, 1, dtype=torch.int32, device=device)
    checks = ["test_schema", "test_autograd_registration"]
    if device == "cuda":  # Triton's interpreter cannot run on fake tensors
        checks += ["test_faketensor"]
    arguments = bits, MIXED.video, MIXED.tile, MIXED.rows, 0, 2, True
    torch.library.opcheck(tile_lists, arguments, test_utils=checks)


@pytest.mark.parametrize("row", range(4))
def test_the_longest_row_decides_whether_lists_are_too_long(row):
    """Rows are of unequal length, and any of them may be the longest."""
    tiling = VideoTiling((4, 4, 8), (2, 4, 4))
    lengths = torch.tensor([1, 2, 0, 2])
    lengths[row] = 3
    chosen = (torch.arange(4) < lengths[:, None])[None, None]
    with pytest.raises(ValueError, match="a row has 3 tiles, more than most=2"):
        tile_lists_twin(pack_bits(chosen), tiling, 2, False)
    num, _ = tile_lists_twin(pack_bits(chosen), tiling, 3, False)
    assert torch.equal(num.sum(0)[0, 0], lengths.int())
