"""Compute blocks fit the masks, and are for our masks alone."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flexsparse import VideoTiling, flex_attention, kernel_options, vsa_mask
from flexsparse.kernel_configs import (
    BACKWARD,
    BACKWARD_FP32,
    FORWARD,
    FORWARD_FP32,
    TABLES,
    Backward,
    Forward,
    backward_config,
    forward_config,
)

HALF = [torch.float16, torch.bfloat16]
head_dims = st.integers(1, 16).map(lambda x: 16 * x)
rows = st.integers(1, 16).map(lambda x: 16 * x)
gpus = st.sampled_from([(7, 65536), (8, 101376), (8, 166912), (9, 232448), (10, 232448)])
gpus |= st.just((12, 101376))


@given(head_dims, rows, rows, st.sampled_from([*HALF, torch.float32]), gpus)
def test_blocks_divide_the_masks_and_fit_the_gpu(head_dim, q_rows, kv_rows, dtype, gpu):
    forward = forward_config(head_dim, dtype, q_rows, kv_rows, *gpu)
    backward = backward_config(head_dim, dtype, q_rows, kv_rows, *gpu)
    sizes = [forward.m, forward.n, *backward[:4]]
    assert all(size >= 16 and size & (size - 1) == 0 for size in sizes)
    for q_size, kv_size in (forward[:2], backward[:2], backward[2:4]):
        assert q_rows % q_size == 0 and kv_rows % kv_size == 0
    assert backward.n1 % backward.m1 == 0 and backward.m2 % backward.n2 == 0
    wide = 1 << (head_dim - 1).bit_length()
    for config in (forward, backward):
        assert config.stages >= 1 and config.warps in (4, 8)
        fits = config.shared_memory(wide, dtype.itemsize) < gpu[1]
        assert fits or (config.stages == 1 and (head_dim > 128 or gpu[0] == 7))


@pytest.mark.parametrize(
    "table, choose, dtype",
    [
        (FORWARD, forward_config, torch.bfloat16),
        (BACKWARD, backward_config, torch.bfloat16),
        (FORWARD_FP32, forward_config, torch.float32),
        (BACKWARD_FP32, backward_config, torch.float32),
    ],
)
def test_every_row_is_somebodys_and_says_why(table, choose, dtype):
    for number, row in enumerate(table):
        sizes = row.head_dim, dtype, row.q_rows, row.kv_rows
        taken = [choose(*sizes, gpu) for gpu in row.gpus]
        earlier = [r for r in table[:number] if r.head_dim >= row.head_dim]
        hidden = [r for r in earlier if r.q_rows <= row.q_rows and r.kv_rows <= row.kv_rows]
        assert not {*row.gpus} & {gpu for r in hidden for gpu in r.gpus}, f"{row} is hidden"
        assert taken == [row.config] * len(row.gpus) and len(row.why) > 10


def test_shared_memory_is_what_the_compiler_said():
    # 64 x 64 blocks, D = 128, three stages; backward with two: compiled for sm_90
    assert Forward(64, 64, 3, 4).shared_memory(128, 2) == 114688
    assert Backward(64, 64, 64, 64, 2, 8).shared_memory(128, 2) == 98304


def lowered(options, q_rows, kv_rows, direction):
    """What Inductor is told while it lowers a call on a Hopper GPU."""
    from torch._inductor.choices import InductorChoices
    from torch._inductor.virtualized import V

    lists = (None,) * 10 + (q_rows, kv_rows, None)
    captured = (None,) * 20  # by a score_mod
    node = SimpleNamespace(args=(1, 2, 3, None, lists, 0.1, options, captured))
    arguments = 128, torch.bfloat16, "cuda"
    hopper = SimpleNamespace(shared_memory_per_block_optin=232448)
    with (
        V.set_graph_handler(SimpleNamespace(current_node=node)),
        mock.patch("torch.cuda.get_device_capability", lambda *_: (9, 0)),
        mock.patch("torch.cuda.get_device_properties", lambda *_: hopper),
        mock.patch("torch.cuda.current_device", lambda: 0),
    ):
        return [
            getattr(choices, f"get_flex_attention_{direction}_configs")(*arguments)
            for choices in (kernel_options._make_choices(), InductorChoices())
        ]


@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_only_marked_masks_and_those_that_torch_cannot_take_get_our_configs(direction):
    ours, torchs = lowered({"BACKEND": "AUTO"}, 128, 128, direction)
    assert ours == torchs  # another user of FlexAttention
    choose = forward_config if direction == "fwd" else backward_config
    for blocks in ((128, 128), (128, 64), (32, 64)):
        found, _ = lowered({kernel_options.MARK: True}, *blocks, direction)
        due = choose(128, torch.bfloat16, *blocks)
        assert [tuple(vars(c).values()) for c in found] == [(*due,)]
    symbols = SimpleNamespace(), SimpleNamespace()  # block sizes in a graph of dynamic shapes
    ours, torchs = lowered({}, *symbols, direction)
    assert ours == torchs
    found, torchs = lowered({}, 64, 64, direction)  # torch has none that divides these
    assert not any(kernel_options._divides(c, 64, 64) for c in torchs)
    assert all(kernel_options._divides(c, 64, 64) for c in found)


def test_lengths_divide_where_every_query_block_is_whole():
    tiling = VideoTiling((4, 8, 12))
    q = tiling.to_tiles(torch.randn(1, 1, tiling.tokens, 16))
    for query_tiles, whole in ((1, True), (2, True), (4, False)):
        mask = vsa_mask(q, q, tiling, top_k=2, query_tiles=query_tiles)
        options = kernel_options.options_for(mask, {}, False)
        assert options["IS_DIVISIBLE"] == whole and options[kernel_options.MARK]
    assert options["ROWS_GUARANTEED_SAFE"] and options["BACKEND"] == "TRITON"


def test_what_a_caller_says_goes_first_and_a_score_mod_may_hide_a_row():
    tiling = VideoTiling((4, 8, 12))
    q = tiling.to_tiles(torch.randn(1, 1, tiling.tokens, 16))
    mask = vsa_mask(q, q, tiling, top_k=2)
    given = {"fwd_BLOCK_M": 32, "IS_DIVISIBLE": False}
    options = kernel_options.options_for(mask, given, False)
    assert options["fwd_BLOCK_M"] == 32 and options["IS_DIVISIBLE"] is False
    forced = kernel_options.options_for(mask, {"FORCE_USE_FLEX_ATTENTION": True}, False)
    assert "BACKEND" not in forced
    assert "ROWS_GUARANTEED_SAFE" not in kernel_options.options_for(mask, {}, True)


def test_the_mark_changes_with_the_tables():
    """Inductor caches kernels by their options, not by what chose their blocks."""
    row = FORWARD[2]
    other = [*FORWARD[:2], row._replace(config=Forward(64, 64, 3, 8)), *FORWARD[3:]]
    assert kernel_options.hash_of(TABLES) == kernel_options.TABLES_HASH
    assert kernel_options.hash_of((other, *TABLES[1:])) != kernel_options.TABLES_HASH
    assert str(kernel_options.TABLES_HASH) in kernel_options._make_choices().uuid()


def test_flash_is_refused_with_the_reason():
    tiling = VideoTiling((4, 8, 16), (4, 4, 8))
    q = tiling.to_tiles(torch.randn(1, 1, tiling.tokens, 16)).bfloat16()
    mask = vsa_mask(q, q, tiling, top_k=2)

    def refuse(q, mask, words, gpu=(9, 0), installed=True):
        with (
            mock.patch.object(kernel_options, "_has_flash", lambda: installed),
            mock.patch.object(kernel_options, "_major", lambda: gpu[0]),
            pytest.raises(ValueError, match=words),
        ):
            kernel_options.check_flash(q, mask)

    refuse(q, mask, "flash-attn-4, which is not installed", installed=False)
    refuse(q.float(), mask, "float16 and bfloat16, not torch.float32")
    refuse(q, mask, "multiple of 256 query rows by 128 .* sm_100; these are 128 by 128", (10, 0))
    pair = vsa_mask(q, q, tiling, top_k=2, query_tiles=2)
    refuse(q, pair, "blocks of 128 query rows by 128 .* sm_90; these are 256 by 128")
    small = VideoTiling((4, 8, 16))
    refuse(q, vsa_mask(q, q, small, top_k=2), "these are 64 by 64")
    padded = VideoTiling((3, 10, 8), (3, 5, 8))
    x = padded.to_tiles(torch.randn(1, 1, padded.tokens, 16))
    refuse(q, vsa_mask(x, x, padded, top_k=2), "every tile of this mask has some")
    with (
        mock.patch.object(kernel_options, "_has_flash", lambda: True),
        mock.patch.object(kernel_options, "_major", lambda: 9),
    ):
        kernel_options.check_flash(q, mask)
        kernel_options.check_flash(q, None)
    with pytest.raises(ValueError, match="an engine for CUDA; the tensors are on a CPU"):
        flex_attention(q, q, q, block_mask=mask, kernel_options={"BACKEND": "FLASH"})
