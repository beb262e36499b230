"""Compute blocks fit the masks, and are for our masks alone."""

import math
import re
import runpy
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask, create_mask

from benchmarks import torch_versions
from flexsparse import VideoTiling, flex_attention, torch_names, vsa_mask
from flexsparse.engines import flex, inductor_choices, kernel_options
from flexsparse.engines.kernel_configs import (
    BACKWARD,
    BACKWARD_FP32,
    FORWARD,
    FORWARD_FP32,
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


def lowered(block_mask, direction, told=(128, torch.bfloat16, "cuda")):
    """What ours and torch's choices answer while Inductor lowers a call on a Hopper GPU."""
    from torch._inductor.choices import InductorChoices
    from torch._inductor.virtualized import V

    captured = ("a node",) * 20  # by a score_mod
    args = 1, 2, 3, None, block_mask, 0.1, {"BACKEND": "AUTO"}, captured
    hopper = SimpleNamespace(shared_memory_per_block_optin=232448)
    with (
        V.set_graph_handler(SimpleNamespace(current_node=SimpleNamespace(args=args))),
        mock.patch("torch.cuda.get_device_capability", lambda *_: (9, 0)),
        mock.patch("torch.cuda.get_device_properties", lambda *_: hopper),
        mock.patch("torch.cuda.current_device", lambda: 0),
    ):
        return [
            getattr(choices, f"get_flex_attention_{direction}_configs")(*told)
            for choices in (inductor_choices.make_choices(), InductorChoices())
        ]


def as_lowered(q_rows, kv_rows, entries=10):
    """A BlockMask's as_tuple() in a graph: up to torch 2.12 it has ten entries before its sizes,
    in 2.13 four more."""
    subgraph = torch.fx.Graph().get_attr("mask_graph")
    return (*(None,) * entries, q_rows, kv_rows, subgraph)


@pytest.mark.parametrize("entries", [10, 14])
@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_up_to_torch_2_13_masks_that_torch_cannot_take_get_our_configs(direction, entries):
    ours, torchs = lowered(as_lowered(128, 128, entries), direction)
    assert ours == torchs  # another user of FlexAttention
    symbols = SimpleNamespace(), SimpleNamespace()  # block sizes in a graph of dynamic shapes
    ours, torchs = lowered(as_lowered(*symbols, entries), direction)
    assert ours == torchs
    choose = forward_config if direction == "fwd" else backward_config
    for told in ((128, torch.bfloat16, "cuda"), (128, "more", torch.bfloat16, "cuda")):
        asked = f"torch._inductor.choices.InductorChoices.get_flex_attention_{direction}_configs"
        with mock.patch(asked, lambda self, *_: torchs):
            found, _ = lowered(as_lowered(64, 64, entries), direction, told)
        assert [tuple(vars(c).values()) for c in found] == [(*choose(128, told[-2], 64, 64),)]


def test_from_torch_2_14_on_nothing_is_installed():
    from torch._inductor import config

    installed = config.inductor_choices_class
    assert (installed is None) == (kernel_options.TAKES_OPTIONS or not torch.version.cuda)


def test_a_torch_that_is_newer_than_those_proven_is_named():
    passed = torch_versions.passed()
    ends = [".".join(version.split(".")[:2]) for version in (passed[0], passed[-1])]
    assert ends == [*torch_names.PROVEN]
    assert torch_names.unproven() is None
    assert torch_names.unproven("2.15.3+cu130") is None
    words = "torch 2.16.0 is newer than those that flexsparse is proven with, 2.11 to 2.15"
    assert torch_names.unproven("2.16.0") == words
    with mock.patch.dict(sys.modules, {"torch._library.autograd": None}):
        with mock.patch.object(torch, "__version__", "2.16.0"):
            with pytest.raises(ImportError, match=f"^{re.escape(words)}: .*torch._library"):
                runpy.run_path(str(torch_names.__file__))
        with pytest.raises(ImportError, match=f"^torch {re.escape(torch.__version__)} lacks what"):
            runpy.run_path(str(torch_names.__file__))


def hopper_options(mask, given, has_score_mod=False, dtype=torch.bfloat16):
    q = torch.empty(1, 1, 1, 128, dtype=dtype)
    with mock.patch.object(kernel_options, "gpu", lambda: (9, 232448)):
        return kernel_options.options_for(q, mask, given, has_score_mod)


def test_the_tables_are_handed_over_as_public_options():
    tiling = VideoTiling((4, 8, 12))
    q = tiling.to_tiles(torch.randn(1, 1, tiling.tokens, 16))
    for query_tiles in (1, 2):
        mask = vsa_mask(q, q, tiling, top_k=2, query_tiles=query_tiles)
        forward, backward = (
            choose(128, torch.bfloat16, *mask.BLOCK_SIZE, 9)
            for choose in (forward_config, backward_config)
        )
        options = hopper_options(mask, {})
        names = "BLOCK_M", "BLOCK_N", "num_stages", "num_warps"
        assert tuple(options[f"fwd_{x}"] for x in names) == forward
        names = "BLOCK_M1", "BLOCK_N1", "BLOCK_M2", "BLOCK_N2", "num_stages", "num_warps"
        assert tuple(options[f"bwd_{x}"] for x in names) == backward


def test_lengths_divide_where_every_query_block_is_whole():
    tiling = VideoTiling((4, 8, 12))
    q = tiling.to_tiles(torch.randn(1, 1, tiling.tokens, 16))
    for query_tiles, whole in ((1, True), (2, True), (4, False)):
        mask = vsa_mask(q, q, tiling, top_k=2, query_tiles=query_tiles)
        options = hopper_options(mask, {})
        assert options["IS_DIVISIBLE"] == whole
    assert options["ROWS_GUARANTEED_SAFE"] and options["BACKEND"] == "TRITON"


def test_what_a_caller_says_goes_first_and_a_score_mod_may_hide_a_row():
    tiling = VideoTiling((4, 8, 12))
    q = tiling.to_tiles(torch.randn(1, 1, tiling.tokens, 16))
    mask = vsa_mask(q, q, tiling, top_k=2)
    given = {"fwd_BLOCK_M": 32, "IS_DIVISIBLE": False}
    options = hopper_options(mask, given)
    assert options["fwd_BLOCK_M"] == 32 and options["IS_DIVISIBLE"] is False
    of_both = hopper_options(mask, {"num_warps": 4, "BLOCK_M": 32})  # torch prefers fwd_ and bwd_
    assert not {"fwd_num_warps", "bwd_num_warps", "fwd_BLOCK_M"} & of_both.keys()
    assert of_both["num_warps"] == 4 and of_both["BLOCK_M"] == 32 and "fwd_BLOCK_N" in of_both
    assert "BACKEND" not in hopper_options(mask, {"FORCE_USE_FLEX_ATTENTION": True})
    assert "ROWS_GUARANTEED_SAFE" not in hopper_options(mask, {}, has_score_mod=True)


def test_q_and_the_scale_make_up_one_over_sqrt_d_and_training_scales_no_q_in_kernels():
    for dim, trains, said, prescales in (
        (128, True, None, False),
        (128, False, None, True),
        (64, False, None, False),  # or ptxas serialises products
        (128, False, {"BACKEND": "FLASH"}, False),
        (128, True, {"BACKEND": "FLASH"}, False),
        (128, False, {"PRESCALE_QK": False}, False),
    ):
        q = SimpleNamespace(is_cuda=True, requires_grad=trains, shape=(1, 1, 64, dim))
        scale, options = kernel_options.folded_scale(dim, trains, said)
        factor = flex.query_factor(q, q, q, said)
        assert factor * scale * math.sqrt(dim) == pytest.approx(1, abs=1e-15)
        assert said != {"BACKEND": "FLASH"} or factor == 1  # which would round q for nothing
        assert options.get("PRESCALE_QK", False) == prescales
        assert {**options, **(said or {})} == options
    assert flex.query_factor(torch.empty(1, 1, 64, 128), q, q) == 1


def test_flash_is_refused_with_the_reason():
    tiling = VideoTiling((4, 8, 16), (4, 4, 8))
    q = tiling.to_tiles(torch.randn(1, 1, tiling.tokens, 16)).bfloat16()
    mask = vsa_mask(q, q, tiling, top_k=2)

    def refuse(q, mask, words, gpu=(9, 0), installed=True, trains=True):
        with (
            mock.patch.object(kernel_options, "_has_flash", lambda: installed),
            mock.patch.object(kernel_options, "_major", lambda: gpu[0]),
            pytest.raises(ValueError, match=words),
        ):
            kernel_options.check_flash(q, mask, trains)

    refuse(q, mask, "flash-attn-4, which is not installed", installed=False)
    refuse(q.float(), mask, "float16 and bfloat16, not torch.float32")
    refuse(q, mask, "multiple of 256 query rows by 128 .* sm_100; these are 128 by 128", (10, 0))
    pair = vsa_mask(q, q, tiling, top_k=2, query_tiles=2)
    refuse(q, pair, "blocks of 128 query rows by 128 .* sm_90; these are 256 by 128")
    small = VideoTiling((4, 8, 16))
    refuse(q, vsa_mask(q, q, small, top_k=2), "these are 64 by 64")
    padded = VideoTiling((3, 10, 8), (3, 5, 8))
    x = padded.to_tiles(torch.randn(1, 1, padded.tokens, 16))
    partial = vsa_mask(x, x, padded, top_k=2)
    refuse(q, partial, "every tile of this mask has some")
    for of_2_14 in (False, True):
        with mock.patch.object(kernel_options, "TAKES_OPTIONS", of_2_14):
            refuse(q, partial, "every tile of this mask has some")
            if not of_2_14:
                refuse(q, partial, "every tile of this mask has some", trains=False)
    with (
        mock.patch.object(kernel_options, "_has_flash", lambda: True),
        mock.patch.object(kernel_options, "_major", lambda: 9),
    ):
        kernel_options.check_flash(q, mask)
        kernel_options.check_flash(q, None)
        with mock.patch.object(kernel_options, "TAKES_OPTIONS", True):
            kernel_options.check_flash(q, partial, trains=False)
    with pytest.raises(ValueError, match="an engine for CUDA; the tensors are on a CPU"):
        flex_attention(q, q, q, block_mask=mask, kernel_options={"BACKEND": "FLASH"})


def test_flash_is_refused_where_it_would_drop_the_lists(monkeypatch):
    monkeypatch.setattr(kernel_options, "_has_flash", lambda: True)
    monkeypatch.setattr(kernel_options, "_major", lambda: 9)
    q = torch.randn(1, 1, 256, 16).bfloat16()
    num, indices = torch.ones(1, 1, 2, dtype=torch.int32), torch.zeros(1, 1, 2, 1).int()
    bare = BlockMask.from_kv_blocks(num, indices, num, indices, BLOCK_SIZE=128)
    for of_2_14, trains, refused in ((0, 0, True), (0, 1, True), (1, 1, True), (1, 0, False)):
        monkeypatch.setattr(kernel_options, "TAKES_OPTIONS", bool(of_2_14))
        with pytest.raises(ValueError, match="attends to all") if refused else nullcontext():
            kernel_options.check_flash(q, bare, bool(trains))


def test_flash_is_given_the_whole_mask_mod(monkeypatch):
    """torch drops the lists in FLASH's backward where the mask_mod is trivial: dense gradients."""
    tiling = VideoTiling((4, 8, 16), (4, 4, 8))
    q = tiling.to_tiles(torch.randn(1, 1, tiling.tokens, 16))
    mask = vsa_mask(q, q, tiling, top_k=2)
    on_gpu = SimpleNamespace(is_cuda=True, requires_grad=True, dtype=torch.bfloat16, shape=q.shape)
    monkeypatch.setattr(kernel_options, "_has_flash", lambda: True)
    monkeypatch.setattr(kernel_options, "gpu", lambda: (9, 232448))
    monkeypatch.setattr(kernel_options, "_major", lambda: 9)
    monkeypatch.setattr(flex, "_compiled_flex_attention", lambda *x, block_mask, **_: block_mask)
    monkeypatch.setattr(flex, "_compiled_attend_to_bits", lambda *x, **_: x[3])

    def handed(backend):
        given = None, mask, None, False, {"BACKEND": backend}, None
        return flex._torch_attention(on_gpu, on_gpu, on_gpu, *given)[0]

    whole = handed("FLASH")
    assert whole is mask and handed("TRITON") is mask.made_of
    with torch.no_grad():
        assert handed("TRITON").mask_mod is not mask.mask_mod
    everywhere = create_mask(whole.mask_mod, 1, 1, *mask.seq_lengths, "cpu")
    assert torch.equal(everywhere[0, 0, ::128, ::128].int(), mask.to_dense()[0, 0])
    assert not everywhere.all()
