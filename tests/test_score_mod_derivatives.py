"""score_mod on the CPU: second derivatives, and one line for what there is none of."""

from unittest import mock

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from flexsparse import flex_attention
from flexsparse.engines import cpu_scores


def problem(length=40, dim=16, dtype=torch.float32):
    """q, k, v and a bias [heads, length], with gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 2, length, dim)] * 3 + [(2, length)]
    drawn = (torch.randn(*shape, generator=generator) for shape in shapes)
    return [x.to(dtype).requires_grad_() for x in drawn]


def attend(q, k, v, bias, mask=None):
    def score_mod(score, b, h, q_idx, kv_idx):
        return score * bias[h, q_idx].cos() + bias[h, kv_idx]

    return flex_attention(q, k, v, score_mod=score_mod, block_mask=mask)


def test_second_derivatives_of_all_inputs():
    def causal(b, h, q, kv):
        return q >= kv

    mask = create_block_mask(causal, None, None, 20, 20, "cpu", BLOCK_SIZE=(8, 8))
    inputs = problem(20, 4, torch.float64)
    with mock.patch.object(cpu_scores, "CHUNK", 1):  # many chunks
        assert torch.autograd.gradgradcheck(
            lambda *x: attend(*x, mask=mask), inputs, fast_mode=True
        )


@pytest.mark.parametrize("shape", [(1,), (150,), (4 << 20,)])  # of a chunk, 137 GB
def test_a_row_in_place_of_a_number_is_refused(shape):
    q, k, v, _ = problem(64)
    bias = torch.zeros(1).expand(2, *shape)
    line = rf"^score_mod returned shape \[{shape[0]}\] for a score of shape \[\]: [^\n]*index all"
    with pytest.raises(ValueError, match=line):
        flex_attention(q, k, v, score_mod=lambda score, b, h, *_: score + bias[h])


@pytest.mark.parametrize("which", [0, 2, 3])  # q, v, what is captured
@pytest.mark.parametrize("trains", range(4))
def test_vmap_of_any_input_has_no_backward_and_says_so(which, trains):
    inputs = [x.detach().requires_grad_(i == trains) for i, x in enumerate(problem())]
    dims = [0 if i == which else None for i in range(4)]
    given = [x if dim is None else torch.stack([x, 2 * x]) for x, dim in zip(inputs, dims)]
    with pytest.raises(NotImplementedError, match=r"^score_mod on a CPU has no backward.*vmap: "):
        torch.vmap(attend, in_dims=tuple(dims))(*given)
    if torch.__version__ < "2.13":  # whose checkpoint vmap cannot enter
        return
    with torch.no_grad():
        found = torch.vmap(attend, in_dims=tuple(dims))(*given)
        for i, x in enumerate(found):
            one = (y if dim is None else y[i] for y, dim in zip(given, dims))
            torch.testing.assert_close(x, attend(*one))


@pytest.mark.parametrize("which", range(4))
def test_func_grad_is_refused(which):
    inputs = [x.detach() for x in problem()]

    def total(*inputs):
        return attend(*inputs).sum()

    line = r"^score_mod on a CPU has no rule for torch.func.grad.*use torch.autograd.grad"
    for grad in (torch.func.grad, torch.func.jacrev):
        with pytest.raises(NotImplementedError, match=line):
            grad(total, argnums=which)(*inputs)
