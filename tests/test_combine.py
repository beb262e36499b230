"""The gates: the kernel (in Triton's interpreter where there is no GPU) and its PyTorch twin."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import assert_accurate, poison, problems, tensors

from flexsparse import VideoTiling, reference
from flexsparse.stages import gates
from flexsparse.stages.gates import combine, combine_twin

device = "cuda" if torch.cuda.is_available() else "cpu"
linux = pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")


def kernel(fine, coarse, gate_coarse, gate_fine, tiling):
    from flexsparse.kernels.combine import combine

    shape = list(tiling.video), list(tiling.tile), tiling.rows
    return combine(fine, coarse, gate_coarse, gate_fine, *shape)


implementations = pytest.mark.parametrize(
    "join", [pytest.param(kernel, id="triton", marks=linux), combine_twin]
)
small = problems(dims=(16, 24, 80), max_rows=384)


def draw_coarse(problem):
    generator = torch.Generator().manual_seed(problem["seed"] + 1)
    shape = problem["batch"], problem["heads"], problem["tiling"].num_tiles, problem["dim"]
    return torch.randn(shape, generator=generator, requires_grad=True)


def in_raster(fine, coarse, gate_coarse, gate_fine, tiling):
    """The sum as it is written, in raster order."""
    spread = coarse[..., reference.tile_of_token(tiling.video, tiling.tile), :]
    return (fine if gate_fine is None else fine * gate_fine) + spread * gate_coarse


def with_gradients(join, fine, coarse, gate_coarse, gate_fine, tiling, grad):
    """The output, and the gradients in fine, coarse, gate_coarse and, if given, gate_fine."""
    inputs = [x if x is None else x.detach() for x in (fine, coarse, gate_coarse, gate_fine)]
    given = [x.requires_grad_() for x in inputs if x is not None]
    out = join(*inputs, tiling)
    return [out, *torch.autograd.grad(out, given, grad)]


def into_memory(x, tiling, order="rows"):
    """Tile-major, with NaN in padding, in the memory orders that attention and projections give."""
    x = poison(tiling.to_tiles(x.detach()), tiling).to(device)
    if order == "heads":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if order == "gap":
        return torch.cat([x, x], -1)[..., : x.shape[-1]]
    return x.mT.contiguous().mT if order == "backwards" else x


def out_of_memory(results, tiling):
    """Back in raster order, with nothing in padding; the gradient in coarse is of tiles."""
    out, dfine, dcoarse, *dgates = (x.cpu() for x in results)
    tiled = [out, dfine, *dgates]
    assert all(torch.equal(x, tiling.zero_padding(x)) for x in tiled)
    out, dfine, *dgates = map(tiling.from_tiles, tiled)
    return [out, dfine, dcoarse, *dgates]


@implementations
@settings(max_examples=10)
@given(
    problem=small,
    gated=st.booleans(),
    orders=st.lists(st.sampled_from(["rows", "heads", "gap", "backwards"]), min_size=4, max_size=4),
)
def test_values_and_gradients_ignore_padding_in_any_memory_order(join, problem, gated, orders):
    tiling, coarse = problem["tiling"], draw_coarse(problem)
    fine, gate_coarse, gate_fine, grad = raster = tensors(4, problem)
    factors = fine, coarse, gate_coarse, gate_fine if gated else None
    wide = [x if x is None else x.double() for x in factors]
    exact = with_gradients(in_raster, *wide, tiling, grad.double())
    plain = with_gradients(in_raster, *factors, tiling, grad)

    in_memory = (into_memory(x, tiling, order) for x, order in zip(raster, orders))
    fine, gate_coarse, gate_fine, grad = in_memory
    factors = fine, coarse.to(device), gate_coarse, gate_fine if gated else None
    ours = with_gradients(join, *factors, tiling, grad)
    assert_accurate(out_of_memory(ours, tiling), [plain], exact, raster)


@implementations
@pytest.mark.parametrize("tile, rows", [((4, 4, 5), 80), ((4, 8, 8), 256)])
def test_half_precision_is_computed_in_fp32_and_rounded_once(join, tile, rows):
    """Whole numbers all, so that sums are exact; products and sums on the way overflow fp16."""
    tiling = VideoTiling((5, 8, 9), tile, rows)

    def full(value):
        x = torch.full((1, 2, tiling.padded_tokens, 16), value, dtype=torch.float16)
        return poison(x, tiling).to(device)

    coarse = 400.0 + torch.arange(32.0 * tiling.num_tiles, device=device).view(1, 2, -1, 16) % 8
    factors = full(500), coarse, full(-250), full(200)
    results = with_gradients(join, *factors, tiling, full(64))
    out, dfine, dcoarse, *dgates = results
    tokens = tiling.counts(device)[:, None]
    assert dcoarse.dtype == torch.float32 and torch.equal(
        dcoarse, (64 * -250 * tokens) + 0 * coarse
    )
    due = [(coarse - 400) * -250, 64 * 200 + 0 * coarse, 64 * coarse, 64 * 500 + 0 * coarse]
    for found, of_tile in zip([out, dfine, *dgates], due, strict=True):
        spread = tiling.zero_padding(of_tile.repeat_interleave(rows, 2))
        assert found.dtype == torch.float16 and torch.equal(found.float(), spread)


@implementations
@settings(max_examples=3)
@given(problem=small)
def test_no_fine_gate_is_a_gate_of_ones(join, problem):
    tiling, coarse = problem["tiling"], draw_coarse(problem).to(device)
    fine, gate_coarse, grad = (into_memory(x, tiling) for x in tensors(3, problem))
    ones = torch.ones_like(fine)
    without = with_gradients(join, fine, coarse, gate_coarse, None, tiling, grad)
    as_ones = with_gradients(join, fine, coarse, gate_coarse, ones, tiling, grad)
    assert len(without) == 4 and len(as_ones) == 5
    assert all(torch.equal(a, b) for a, b in zip(without, as_ones))


@implementations
@pytest.mark.filterwarnings("ignore:invalid value encountered in multiply")  # infinity times zero
def test_what_overflows_stays_out_of_padding(join):
    tiling = VideoTiling((3, 4, 5), (2, 4, 4))
    x = into_memory(torch.randn(1, 2, tiling.tokens, 16), tiling)
    coarse = torch.full((1, 2, tiling.num_tiles, 16), torch.inf, device=device)
    results = with_gradients(join, x, coarse, x, x, tiling, x)
    out, _, _, dgate_coarse, _ = out_of_memory(results, tiling)
    assert out.isinf().all() and dgate_coarse.isinf().all()


@linux
@pytest.mark.parametrize("order", ["rows", "heads"])
def test_heads_merge_without_a_copy_and_fine_keeps_its_memory_order(order):
    tiling = VideoTiling((3, 4, 5), (2, 4, 4))
    x = torch.randn(2, 3, tiling.tokens, 16)
    fine, coarse = into_memory(x, tiling, order), torch.randn(2, 3, tiling.num_tiles, 16).to(device)
    out, dfine, _, *dgates = with_gradients(kernel, fine, coarse, fine, fine, tiling, fine)
    assert all(x.transpose(1, 2).is_contiguous() for x in (out, *dgates))
    assert dfine.stride() == fine.stride()


@implementations
def test_runs_are_equal_to_the_bit(join):
    tiling, generator = VideoTiling((5, 6, 7), (3, 5, 4)), torch.Generator().manual_seed(0)
    drawn = [torch.randn(1, 2, tiling.tokens, 24, generator=generator) for _ in range(4)]
    fine, *gates, grad = (into_memory(x, tiling) for x in drawn)
    coarse = torch.randn(1, 2, tiling.num_tiles, 24, generator=generator).to(device)
    runs = [with_gradients(join, fine, coarse, *gates, tiling, grad) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_the_device_decides(monkeypatch):
    tiling = VideoTiling((2, 4, 4), (2, 2, 2))
    x = torch.randn(1, 1, tiling.padded_tokens, 16, device=device)
    called = []
    monkeypatch.setattr(gates, "combine_twin", lambda *a: called.append(a))
    combine(x, torch.randn(1, 1, 4, 16, device=device), x, None, tiling)
    assert bool(called) == (device == "cpu")


@linux
@pytest.mark.parametrize("gated", [True, False])
def test_the_kernels_are_well_formed_operators(gated):
    from flexsparse.kernels.combine import combine, combine_backward

    tiling = VideoTiling((3, 4, 5), (2, 4, 4))
    shape = list(tiling.video), list(tiling.tile), tiling.rows
    fine, gate_coarse, gate_fine = (
        torch.randn(1, 2, tiling.padded_tokens, 16, device=device, requires_grad=True)
        for _ in range(3)
    )
    coarse = torch.randn(1, 2, tiling.num_tiles, 16, device=device, requires_grad=True)
    factors = fine, coarse, gate_coarse, gate_fine if gated else None
    checks = ["test_schema", "test_autograd_registration"]
    if device == "cuda":  # Triton's interpreter cannot run on fake tensors
        checks += ["test_faketensor", "test_aot_dispatch_static"]
    torch.library.opcheck(combine, (*factors, *shape), test_utils=checks)
    detached = [x if x is None else x.detach() for x in (fine, *factors)]
    torch.library.opcheck(combine_backward, (*detached, *shape), test_utils=checks[:1] + checks[2:])
