"""Forward-mode derivatives: jvp of the CPU operator, of VSA and BSA whole, and what is refused."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from block_problems import Problem
from block_problems import problems as block_problems
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import assert_accurate, poison, problems, seeds, tensors
from torch import Tensor
from torch.autograd import forward_ad

from flexsparse import (
    VideoTiling,
    bsa_attention,
    flex_attention,
    reference,
    vsa_attention,
    vsa_mask,
)
from flexsparse.engines import cpu, cpu_jvp
from flexsparse.vsa import vsa_tile_map

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # torch's own

TEXT = VideoTiling((3, 5, 4), tile=(2, 2, 2), text=5)
VIDEO = TEXT.of_video


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pushed(attend, problem: Problem, tangents: list[Tensor | None]) -> list[Tensor]:
    """Tangents of the output, and of lse where a row sees something."""
    moved = [i for i, t in enumerate(tangents) if t is not None]

    def f(*some: Tensor) -> tuple[Tensor, Tensor]:
        inputs = list(problem.tensors)
        for i, x in zip(moved, some):
            inputs[i] = x
        return attend(replace(problem, tensors=tuple(inputs)))

    given_ = tuple(problem.tensors[i] for i in moved), tuple(tangents[i] for i in moved)
    (_, lse), (dout, dlse) = torch.func.jvp(f, *given_)
    return [dout, dlse.masked_fill(lse == -torch.inf, 0)]


@given(
    block_problems(8),
    seeds,
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from([1, 8, 64]),
    st.integers(1, 9),
    st.sampled_from(["qkv", "q", "k", "v", "qv"]),
)
def test_jvp_of_the_operator_is_that_of_masked_softmax(problem, seed, dtype, logits, chunk, moved):
    q, k, v = problem.to(dtype).tensors
    problem = replace(problem, tensors=(q * logits, k, v))
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(x.shape, generator=generator).to(dtype) for x in problem.tensors]
    drawn = [x if name in moved else None for name, x in zip("qkv", drawn)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "FORWARD_CHUNK", 4**chunk)
        patch.setattr(cpu_jvp, "CHUNK", 4**chunk)
        ours = pushed(Problem.attend, problem, drawn)
    plain = pushed(Problem.dense, problem, drawn)
    doubles = [x if x is None else x.double() for x in drawn]
    exact = pushed(Problem.dense, problem.to(torch.float64), doubles)
    inputs = [*problem.tensors, *(x for x in drawn if x is not None)]
    assert_accurate(ours, [plain], exact, inputs)


@settings(max_examples=40)
@given(block_problems(), seeds)
def test_nothing_unseen_reaches_a_tangent(problem, seed):
    """Not NaN in keys hidden from all or in rows that see nothing, nor in their tangents."""
    mask = problem.mask().unflatten(1, (problem.tensors[1].shape[1], -1))
    unseen, blind = ~mask.any(2).any(-2)[..., None], ~problem.mask().any(-1)[..., None]
    hidden = blind, unseen, unseen
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(x.shape, generator=generator) for x in problem.tensors]
    both = []
    for value in torch.nan, 0.0:
        filled = [
            [x.masked_fill(h, value) for x, h in zip(xs, hidden)] for xs in (drawn, problem.tensors)
        ]
        both.append(pushed(Problem.attend, replace(problem, tensors=tuple(filled[1])), filled[0]))
    for dirty, clean in zip(*both):
        assert torch.equal(dirty, clean)
        assert not clean[blind.expand_as(clean) if clean.dim() == 4 else blind[..., 0]].any()


@settings(max_examples=15)
@given(problems(), st.integers(0, 2))
def test_vsa_moves_as_the_oracle_with_the_same_choice(problem, gates):
    tiling, n = problem["tiling"], 3 + gates
    drawn = [x.detach() for x in tensors(2 * n, problem)]
    choice = dict(top_k=problem["top_k"], query_tiles=problem["query_tiles"])
    chosen = vsa_tile_map(*map(tiling.to_tiles, drawn[:2]), tiling, **choice)
    names = "gate_coarse", "gate_fine"

    def ours(*x: Tensor) -> Tensor:
        q, k, v, *g = (tiling.to_tiles(y) for y in x)
        return tiling.from_tiles(vsa_attention(q, k, v, tiling, **choice, **dict(zip(names, g))))

    def oracle(dtype: torch.dtype, *x: Tensor) -> Tensor:
        given_ = dict(top_k=0, tile_map=chosen, dtype=dtype, **dict(zip(names, x[3:])))
        return reference.vsa(*x[:3], tiling.video, tiling.tile, **given_)

    def move(f, x: list[Tensor]) -> Tensor:
        return torch.func.jvp(f, tuple(x[:n]), tuple(x[n:]))[1]

    plain = move(partial(oracle, torch.float32), drawn)
    exact = move(partial(oracle, torch.float64), [x.double() for x in drawn])
    assert_accurate([move(ours, drawn)], [[plain]], [exact], drawn)


def vsa(q, k, v, gate, tiling, **options):
    return vsa_attention(q, k, v, tiling, top_k=2, gate_coarse=gate, gate_fine=gate, **options)


def bsa(q, k, v, gate, tiling, fill="nearest", **options):
    options |= dict(kv=2, keep=0.5, fill=fill, enable_gqa=True)
    return bsa_attention(q, k[:, :1], v[:, :1], tiling, **options)


def scored(q, k, v, gate, tiling):
    bias, mask = gate[0, 0, :, 0], vsa_mask(q, k, tiling, top_k=2)
    return flex_attention(q, k, v, lambda s, b, h, i, j: s.tanh() + bias[j], mask)


def with_lse(q, k, v, gate, tiling):
    mask = vsa_mask(q, k, tiling, top_k=2)
    out, lse = flex_attention(q, k, v, block_mask=mask, return_lse=True)
    return torch.cat((out, tiling.zero_padding(lse[..., None])), -1)


LENGTHS = torch.tensor([5, 2])
WHOLE = {
    "vsa": (VIDEO, vsa),
    "vsa, text": (TEXT, vsa),
    "vsa, texts": (TEXT, partial(vsa, text_lengths=LENGTHS)),
    "bsa": (VIDEO, bsa),
    "bsa, center": (VIDEO, partial(bsa, fill="center")),
    "bsa, texts": (TEXT, partial(bsa, text_lengths=LENGTHS)),
    "score_mod": (VIDEO, scored),
    "lse": (VIDEO, with_lse),
}


@pytest.mark.parametrize("mode", ["jvp", "forward_ad", "compiled"])
@pytest.mark.parametrize("name", WHOLE)
def test_tangents_are_central_differences(name, mode):
    if mode == "compiled" and name not in ("vsa", "bsa"):
        pytest.skip("seconds of compilation each")
    if torch.__version__ < "2.13" and (mode == "compiled" or name == "score_mod"):
        pytest.skip("refused by torch itself: a rule within jvp, a checkpoint under jvp")
    tiling, attend = WHOLE[name]
    f = partial(attend, tiling=tiling)
    inputs = [normal(2, 2, tiling.padded_tokens, 16, seed=i) for i in range(4)]
    tangents = [normal(*inputs[0].shape, seed=9 + i) for i in range(4)]
    if mode == "forward_ad":  # beside a graph for backward
        with forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(x.clone().requires_grad_(), t)
                for x, t in zip(inputs, tangents)
            ]
            found = forward_ad.unpack_dual(f(*duals)).tangent
    else:
        push = partial(torch.func.jvp, f)
        push = (
            torch.compile(push, fullgraph=True, backend="aot_eager") if mode == "compiled" else push
        )
        found = push(tuple(inputs), tuple(tangents))[1]

    def moved(h: float) -> Tensor:
        return f(*(x + h * t for x, t in zip(inputs, tangents)))

    # Differences are off by rounding, eps / h of it, and by the third derivative, h^2 of that.
    wanted, half = ((moved(h) - moved(-h)) / (2 * h) for h in (1e-5, 5e-6))
    eps = torch.finfo(torch.float64).eps
    bound = 4 * (wanted - half).abs().max() + 100 * eps / 1e-5 * moved(0).abs().max()
    assert found is not None and (found - wanted).abs().max() <= bound


@settings(max_examples=10)
@given(problems(dims=(16,)))
def test_nan_in_padding_moves_nothing(problem):
    tiling = problem["tiling"]
    drawn = [tiling.to_tiles(x.detach()) for x in tensors(8, problem)]

    def f(*x: Tensor) -> Tensor:
        mine = vsa_attention(
            *x[:3], tiling, top_k=problem["top_k"], gate_coarse=x[3], gate_fine=x[3]
        )
        return mine + bsa_attention(*x[:3], tiling, kv=problem["top_k"])

    dirty = [poison(x, tiling) for x in drawn]
    push = partial(torch.func.jvp, f)
    wanted, found = (push(tuple(x[:4]), tuple(x[4:])) for x in (drawn, dirty))
    assert all(torch.equal(x, y) for x, y in zip(found, wanted))


@pytest.mark.parametrize("name", ["vsa", "bsa"])
def test_backward_through_the_value_beside_a_tangent(name):
    """As few-step distillation takes it: the tangent is detached and part of the target."""
    tiling, attend = WHOLE[name]
    q, k, v, gate, *tangents = (normal(1, 2, tiling.padded_tokens, 16, seed=i) for i in range(6))
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)

    def f(q: Tensor, v: Tensor) -> Tensor:
        return attend(q * weight, k, v, gate, tiling)

    out, tangent = torch.func.jvp(f, (q, v), tuple(tangents))
    (found,) = torch.autograd.grad((out - tangent.detach()).square().sum(), weight)
    (wanted,) = torch.autograd.grad((f(q, v) - tangent.detach()).square().sum(), weight)
    assert torch.equal(found, wanted)
    with pytest.raises(NotImplementedError, match="first ones only"):
        torch.autograd.grad(torch.func.jvp(f, (q, v), tuple(tangents))[1].sum(), weight)


def test_second_derivatives_are_refused():
    tiling = VIDEO
    q, dq = (normal(1, 1, tiling.padded_tokens, 16, seed=i) for i in range(2))

    def loss(x: Tensor) -> Tensor:
        return vsa_attention(x, q, q, tiling, top_k=2).square().sum()

    def push(f):
        return lambda x: torch.func.jvp(f, (x,), (dq,))[1]

    def slope(x: Tensor) -> Tensor:
        x = x.requires_grad_() if not x.requires_grad else x
        return torch.autograd.grad(loss(x), x, create_graph=True)[0]

    with pytest.raises(NotImplementedError, match="first ones only"):
        slope(q.clone()).sum().backward()
    with pytest.raises(NotImplementedError, match="_jvp.default has no forward-mode derivative"):
        push(push(loss))(q)
    with pytest.raises(NotImplementedError, match="use torch.autograd.grad"):
        torch.func.grad(loss)(q)
    with pytest.raises(NotImplementedError, match="use torch.autograd.grad"):
        push(torch.func.grad(loss))(q)
    with pytest.raises(NotImplementedError, match="_backward.default has no forward-mode"):
        with forward_ad.dual_level():
            slope(forward_ad.make_dual(q, dq))


def test_kernels_refuse_tangents():
    """All that have a backward; what refuses stands before the kernel, and needs no GPU."""
    x = torch.zeros(1, 1, 16, 16)
    shape = [2, 2, 4], [2, 2, 4], 16
    index = torch.zeros(1, 1, 1, 16, dtype=torch.int32)
    ops = torch.ops.flexsparse
    calls = {
        "coarse_attention": lambda x: ops.coarse_attention(x, x, x, 1.0, False),
        "coarse_attention_backward": lambda x: ops.coarse_attention_backward(
            x, x, x, x, x, x[..., 0], 1.0
        ),
        "pool_tiles": lambda x: ops.pool_tiles([x], *shape, 1),
        "combine": lambda x: ops.combine(x, x, x, None, *shape),
        "combine_backward": lambda x: ops.combine_backward(x, x, x, x, None, *shape),
        "restore_rows": lambda x: ops.restore_rows(x, index, *shape, [2, 2, 4], 16, False),
        "restore_rows_backward": lambda x: ops.restore_rows_backward(x, index, 16),
        "prune_queries": lambda x: ops.prune_queries(x, *shape, [2, 2, 4], 0.5, 8, 16),
        "prune_queries_backward": lambda x: ops.prune_queries_backward(x, index, 16),
    }
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        for name, call in calls.items():
            with pytest.raises(NotImplementedError, match=f"{name}.default has no forward-mode"):
                call(dual)
        with pytest.raises(NotImplementedError, match="flex_attention on CUDA has no forward-mode"):
            flex_attention(*[dual.to("meta")] * 3)


@pytest.mark.parametrize("attend", [partial(vsa_attention, top_k=2), partial(bsa_attention, kv=2)])
def test_linearize(attend):
    q, k, v, t = (VIDEO.to_tiles(normal(1, 2, VIDEO.tokens, 16, seed=i)) for i in range(4))
    out, push = torch.func.linearize(lambda q: attend(q, k, v, VIDEO), q)
    due, tangent = torch.func.jvp(lambda q: attend(q, k, v, VIDEO), (q,), (t,))
    assert torch.equal(out, due)
    torch.testing.assert_close(push(t), tangent)


@pytest.mark.parametrize("tiling", [VIDEO, VideoTiling((4, 4, 4), tile=(4, 4, 4))])
def test_dense_attention_has_a_forward_mode(tiling):
    q, k, v, t = (tiling.to_tiles(normal(1, 2, tiling.tokens, 16, seed=i)) for i in range(4))

    def attend(q):
        return vsa_attention(q, k, v, tiling, top_k=None)

    _, tangent = torch.func.jvp(attend, (q,), (t,))
    step = 1e-6
    assert_near = torch.testing.assert_close
    assert_near(tangent, (attend(q + step * t) - attend(q - step * t)) / (2 * step))
