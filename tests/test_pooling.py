"""The Triton kernel (in Triton's interpreter where there is no GPU) and its PyTorch twin."""

import sys

import pytest
import torch
from hypothesis import given, settings
from laws import assert_accurate, poison, problems, tensors

from flexsparse import VideoTiling, reference
from flexsparse.stages import pooling
from flexsparse.stages.pooling import pool_each_twin, pool_tiles

device = "cuda" if torch.cuda.is_available() else "cpu"


def twin(x, tiling):
    return pool_each_twin([x], tiling)[0]


def kernel(x, tiling):
    from flexsparse.kernels import pool_tiles

    return pool_tiles.pool_tiles([x], tiling.video, tiling.tile, tiling.rows, 1)[0]


implementations = pytest.mark.parametrize(
    "pool",
    [
        pytest.param(
            kernel,
            id="triton",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux"),
        ),
        pytest.param(twin, id="twin"),
    ],
)


@implementations
@settings(max_examples=12)
@given(problem=problems(dims=(16, 24, 80)))
def test_means_and_gradients_ignore_padding(pool, problem):
    tiling = problem["tiling"]
    (x,) = tensors(1, problem)
    tiled = poison(tiling.to_tiles(x), tiling).to(device).detach().requires_grad_()
    out = pool(tiled, tiling)
    exact = reference.pool(x.double(), tiling.video, tiling.tile)
    assert_accurate([out.cpu()], [[reference.pool(x, tiling.video, tiling.tile)]], [exact])

    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(problem["seed"]))
    (dx,) = torch.autograd.grad(out, tiled, grad.to(device))
    expected = (grad / tiling.counts()[:, None]).repeat_interleave(tiling.rows, 2)
    assert torch.equal(dx.cpu(), tiling.zero_padding(expected))


@implementations
def test_half_inputs_are_summed_in_fp32_and_any_strides_do(pool):
    tiling = VideoTiling((3, 6, 8), (2, 4, 4))
    x = torch.randn(2, tiling.padded_tokens, 3, 16, device=device).bfloat16().transpose(1, 2)
    out = pool(x, tiling)
    assert out.dtype == torch.float32 and out.shape == (2, 3, 8, 16)
    exact = twin(x.double(), tiling)
    assert_accurate([out], [[twin(x.float(), tiling)]], [exact])
    assert pool(x.double(), tiling).dtype == torch.float64


@pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")
@pytest.mark.parametrize("kept", range(4))
def test_tensors_of_unlike_strides_are_pooled_side_by_side(kept):
    from flexsparse.kernels.pool_tiles import pool_tiles as op

    tiling = VideoTiling((3, 4, 5), (2, 4, 4))
    whole = lambda *size: torch.randint(-4, 5, size, device=device).float()  # noqa: E731
    length = tiling.padded_tokens
    fused = whole(2, length, 3, 2, 16)[:, :, 1].transpose(1, 2)  # a third of what q, k and v are in
    three = fused, whole(2, 2, length, 16), whole(2, length, 2, 16).transpose(1, 2)
    for order in (0, 1, 2), (1, 2, 0), (2, 0, 1):
        xs = [three[i].detach().requires_grad_() for i in order]
        found = op(xs, tiling.video, tiling.tile, tiling.rows, kept)
        due = pool_each_twin(xs, tiling)
        assert all(torch.equal(a, b) for a, b in zip(found, due, strict=True))
        sums = [sum(i * x.sum() for i, x in enumerate(means, 1)) for means in (found, due)]
        found, due = (torch.autograd.grad(x, xs) for x in sums)
        assert all(torch.equal(a, b) for a, b in zip(found, due))


def test_the_device_decides(monkeypatch):
    tiling = VideoTiling((2, 4, 4), (2, 2, 2))
    x = torch.randn(1, 1, tiling.padded_tokens, 16, device=device)
    called = []
    monkeypatch.setattr(pooling, "pool_each_twin", lambda xs, _: called.append(xs) or xs)
    pool_tiles(x, tiling)
    assert bool(called) == (device == "cpu")


def test_the_kernel_is_a_well_formed_operator():
    from flexsparse.kernels.pool_tiles import pool_tiles as op

    tiling = VideoTiling((3, 4, 5), (2, 4, 4))
    x = torch.randn(1, 2, tiling.padded_tokens, 16, device=device, requires_grad=True)
    checks = ["test_schema", "test_autograd_registration"]
    if device == "cuda":  # Triton's interpreter cannot run on fake tensors
        checks += ["test_faketensor", "test_aot_dispatch_static"]
    torch.library.opcheck(op, ([x], tiling.video, tiling.tile, tiling.rows, 1), test_utils=checks)
