"""The measure of accuracy catches what it is there for, in every dtype and at large logits."""

import pytest
import torch
from laws import assert_accurate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "logits, change", [(1, 0), (1, 1.05), (8, 0), (8, 1.05), (64, 0), (64, 1.5)]
)
def test_a_wrong_factor_is_caught(dtype, logits, change):
    generator = torch.Generator().manual_seed(0)
    q, k, v, g = (torch.randn(40, 8, generator=generator).to(dtype) for _ in range(4))
    q = q * logits

    def results(dtype):
        x = [t.to(dtype).requires_grad_() for t in (q, k, v)]
        out = (x[0] @ x[1].T / 8**0.5).softmax(-1) @ x[2]
        return [out.detach(), *torch.autograd.grad(out, x, g.to(dtype))]

    plain, exact = results(dtype), results(torch.float64)
    assert_accurate(plain, [plain], exact, [q, k, v, g])
    for i in range(4):
        wrong = [x * change if i == j else x for j, x in enumerate(plain)]
        with pytest.raises(AssertionError, match=f"result {i}"):
            assert_accurate(wrong, [plain], exact, [q, k, v, g])
