"""Problems for the CPU operator, any lists and masks, and what they equal in plain PyTorch."""

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from laws import seeds
from torch import Tensor

from flexsparse.engines.cpu import block_sparse_attention

GARBAGE = torch.tensor([-1, 2**31 - 1, -(2**31), 12345], dtype=torch.int32)


@dataclass(frozen=True)
class Problem:
    """Inputs of the operator: q, k, v, then lists, block sizes and scale."""

    tensors: tuple[Tensor, Tensor, Tensor]
    lists: tuple[Tensor | None, ...]
    blocks: tuple[int, int]
    scale: float

    def to(self, dtype: torch.dtype) -> "Problem":
        return replace(self, tensors=tuple(x.detach().to(dtype) for x in self.tensors))

    def attend(self) -> tuple[Tensor, Tensor]:
        return block_sparse_attention(*self.tensors, *self.lists, *self.blocks, self.scale)[:2]

    def mask(self) -> Tensor:
        """Bool [B, Hq, Lq, Lk]: who sees whom, written from the lists one entry at a time."""
        q, k, _ = self.tensors
        (q_block, kv_block), (batch, heads, q_len, _), k_len = self.blocks, q.shape, k.shape[2]
        nq, nk = -(-q_len // q_block), -(-k_len // kv_block)
        see = torch.zeros(batch, heads, nq, nk, q_block, kv_block, dtype=torch.bool)
        whole = torch.ones((), dtype=torch.bool)
        for num, idx, part in (*self.lists[:2], whole), self.lists[2:]:
            if num is None:
                continue
            part = part.expand(see.shape)
            num, idx = num.expand(batch, heads, -1), idx.expand(batch, heads, -1, -1)
            for b, h, i in torch.cartesian_prod(*map(torch.arange, (batch, heads, nq))).tolist():
                for j in idx[b, h, i, : num[b, h, i]].tolist():
                    see[b, h, i, j] = part[b, h, i, j]
        return see.transpose(3, 4).reshape(batch, heads, nq * q_block, -1)[:, :, :q_len, :k_len]

    def dense(self) -> tuple[Tensor, Tensor]:
        """Plain PyTorch: masked scores and softmax in the dtype of the tensors."""
        q, k, v = self.tensors
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        mask = self.mask()
        sees = mask.any(-1, keepdim=True)
        s = (q @ k.mT * self.scale).masked_fill(~mask, -torch.inf).masked_fill(~sees, 0)
        lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        lse = s.to(lse_dtype).logsumexp(-1).masked_fill(~sees[..., 0], -torch.inf)
        return s.softmax(-1) * sees @ v, lse

    def dense_flash(self) -> tuple[Tensor, Tensor]:
        """Plain PyTorch with FlashAttention's backward: p from lse, delta from out."""
        q, k, v = self.tensors
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        return Flash.apply(q @ k.mT * self.scale, v, self.mask())


class Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx, s: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        wide = s.to(torch.promote_types(s.dtype, torch.float32)).masked_fill(~mask, -torch.inf)
        lse = wide.logsumexp(-1)
        p = (wide - lse.masked_fill(lse == -torch.inf, 0)[..., None]).exp().to(s.dtype)
        out = p @ v
        ctx.save_for_backward(p, v, out)
        return out, lse

    @staticmethod
    def backward(ctx, g: Tensor, g_lse: Tensor) -> tuple[Tensor, Tensor, None]:
        p, v, out = ctx.saved_tensors
        delta = (g * out).sum(-1, keepdim=True) - g_lse[..., None].to(g.dtype)
        return p * (g @ v.mT - delta), p.mT @ g, None


def differentiate(problem: Problem, attend, g: Tensor, g_lse: Tensor) -> list[Tensor]:
    """Output, lse of the rows that see something, and the gradients of q, k and v."""
    inputs = tuple(x.detach().requires_grad_() for x in problem.tensors)
    out, lse = attend(replace(problem, tensors=inputs))
    g, g_lse, sees = g.to(out.dtype), g_lse.to(lse.dtype), lse != -torch.inf
    grads = torch.autograd.grad([out, lse[sees]], inputs, [g, g_lse[sees]])
    return [out.detach(), lse.detach(), *grads]


def random_lists(generator, batch, heads, nq, nk):
    """Lists of full and partial blocks: any counts, no block twice in a row, garbage at the end."""
    order = torch.rand(batch, heads, nq, nk, generator=generator).argsort(-1)
    full = torch.randint(0, nk + 1, (batch, heads, nq), generator=generator)
    partial = torch.randint(0, nk + 1, (batch, heads, nq), generator=generator)
    partial = torch.minimum(partial, nk - full)
    lists = []
    for num, start in (full, torch.zeros_like(full)), (partial, full):
        slot = torch.arange(nk)
        idx = order.gather(-1, (slot + start[..., None]) % nk).int()
        garbage = GARBAGE[torch.randint(0, 4, idx.shape, generator=generator)]
        lists += [num.int(), torch.where(slot < num[..., None], idx, garbage)]
    return lists


@st.composite
def problems(draw: st.DrawFn, min_len: int = 1) -> Problem:
    generator = torch.Generator().manual_seed(draw(seeds))
    batch, kv_heads, group = (draw(st.integers(1, 2)) for _ in range(3))
    heads, dim, v_dim = kv_heads * group, draw(st.integers(1, 9)), draw(st.integers(1, 9))
    q_len, k_len = draw(st.integers(min_len, 40)), draw(st.integers(min_len, 40))
    q_block, kv_block = draw(st.integers(4, 12)), draw(st.integers(4, 12))
    nq, nk = -(-q_len // q_block), -(-k_len // kv_block)
    one_or = lambda n: draw(st.sampled_from([1, n]))  # noqa: E731
    lists = random_lists(generator, one_or(batch), one_or(heads), nq, nk)
    columns = (1, 1, 1, nk, 1, kv_block)
    cells = one_or(batch), one_or(heads), one_or(nq), nk, one_or(q_block), kv_block
    part = torch.rand(draw(st.sampled_from([columns, cells])), generator=generator) < 0.6
    which = draw(st.sampled_from(["both", "full", "partial"]))
    lists = lists[:2] + ([None] * 3 if which == "full" else [*lists[2:], part])
    if which == "partial":
        lists[:2] = None, None
    shapes = (
        (batch, heads, q_len, dim),
        (batch, kv_heads, k_len, dim),
        (batch, kv_heads, k_len, v_dim),
    )
    tensors = tuple(torch.randn(shape, generator=generator) for shape in shapes)
    return Problem(tensors, tuple(lists), (q_block, kv_block), dim**-0.5)


def gradients_like(problem: Problem, seed: int) -> tuple[Tensor, Tensor]:
    (q, _, v), generator = problem.tensors, torch.Generator().manual_seed(seed)
    g = torch.randn(*q.shape[:3], v.shape[3], generator=generator)
    return g, torch.randn(q.shape[:3], generator=generator)
