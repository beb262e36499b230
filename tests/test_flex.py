"""flex_attention beyond our own masks: any BlockMask on CPU, torch's signature, and its errors."""

import pytest
import torch
import torch.nn.functional as F
from laws import assert_accurate
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, create_mask

from flexsparse import VideoTiling, flex_attention, vsa_mask


def causal(b, h, q, kv):
    return q >= kv


def by_head(b, h, q, kv):
    return (q - kv).abs() <= 20 * (h + 1) + 30 * b


def nothing_for_the_first(b, h, q, kv):
    return (q >= 40) & (kv < 100)


def qkv(q_len=200, kv_len=None, heads=4, kv_heads=None, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(heads, q_len, 16), *[(kv_heads or heads, kv_len or q_len, 16)] * 2]
    drawn = [torch.randn(2, *shape, generator=generator) for shape in shapes]
    return [x.to(dtype).requires_grad_() for x in drawn]


def gradients(out, inputs):
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return out, *torch.autograd.grad(out, inputs, grad)


@pytest.mark.parametrize("block", [(128, 128), (64, 32)])
@pytest.mark.parametrize(
    "mask_mod, batch, heads",
    [(causal, None, None), (by_head, 2, 4), (by_head, None, 4), (nothing_for_the_first, 2, None)],
)
def test_any_block_mask_and_its_gradients(mask_mod, batch, heads, block):
    mask = create_block_mask(mask_mod, batch, heads, 200, 200, "cpu", BLOCK_SIZE=block)
    dense = create_mask(mask_mod, batch, heads, 200, 200, "cpu")

    def math(*x):
        return F.scaled_dot_product_attention(*x, attn_mask=dense)

    inputs, doubles = qkv(), qkv(dtype=torch.float64)
    exact = gradients(math(*doubles), doubles)
    found = gradients(flex_attention(*inputs, block_mask=mask), inputs)
    assert_accurate(found, [gradients(math(*inputs), inputs)], exact, inputs)


def test_grouped_heads_and_other_lengths():
    mask = create_block_mask(causal, None, None, 150, 230, "cpu")
    dense = create_mask(causal, None, None, 150, 230, "cpu")

    def math(*x):
        return F.scaled_dot_product_attention(*x, attn_mask=dense, enable_gqa=True)

    inputs, doubles = qkv(150, 230, 4, 2), qkv(150, 230, 4, 2, torch.float64)
    exact = gradients(math(*doubles), doubles)
    found = gradients(flex_attention(*inputs, block_mask=mask, enable_gqa=True), inputs)
    assert_accurate(found, [gradients(math(*inputs), inputs)], exact, inputs)


def test_no_mask_is_dense_and_scale_is_heard():
    inputs, doubles = qkv(), qkv(dtype=torch.float64)
    for scale in (None, 0.5):
        plain = F.scaled_dot_product_attention(*inputs, scale=scale)
        exact = F.scaled_dot_product_attention(*doubles, scale=scale)
        assert_accurate([flex_attention(*inputs, scale=scale)], [[plain]], [exact], inputs)


def test_lse_in_both_spellings():
    mask = create_block_mask(causal, None, None, 200, 200, "cpu")
    inputs, doubles = qkv(), qkv(dtype=torch.float64)

    def lse(q, k, v):
        scores = q @ k.transpose(-1, -2) / 4
        return scores.masked_fill(~torch.ones(200, 200).tril().bool(), -torch.inf).logsumexp(-1)

    out, found = flex_attention(*inputs, block_mask=mask, return_lse=True)
    same, aux = flex_attention(*inputs, block_mask=mask, return_aux=AuxRequest(lse=True))
    assert torch.equal(out, same) and torch.equal(found, aux.lse)
    found = gradients(found, inputs[:2])
    plain, exact = (gradients(lse(*x), x[:2]) for x in (inputs, doubles))
    assert_accurate(found, [plain], exact, inputs)


def test_bad_input_is_one_clear_line():
    q, k, v = qkv()
    mask = create_block_mask(causal, None, None, 200, 200, "cpu")
    with pytest.raises(ValueError, match="cpu/torch.float64"):
        flex_attention(q.double(), k, v)
    with pytest.raises(ValueError, match="meta/torch.float32"):
        flex_attention(q.to("meta"), k, v)
    with pytest.raises(ValueError, match="4 heads, key 2.*enable_gqa=True"):
        flex_attention(q, k[:, :2], v[:, :2])
    with pytest.raises(ValueError, match="100 and 200 rows; the block mask is for 200 and 200"):
        flex_attention(q[:, :, :100], k, v, block_mask=mask)
    for bad_k, bad_v in [
        (k[..., :8], v),
        (k[:, :, :128], v),
        (k, v[:, :, :128]),
        (k, v[:, :2]),
        (k[:1], v),
    ]:
        with pytest.raises(ValueError, match="must agree.*query, key and value are"):
            flex_attention(q, bad_k, bad_v)
    with pytest.raises(ValueError, match="key has batch 2, query 1"):
        flex_attention(q[:1], k, v)
    with pytest.raises(ValueError, match="floating dtype, not cpu/torch.int32"):
        flex_attention(q.int(), k.int(), v.int())
    with pytest.raises(ValueError, match="must not be empty"):
        flex_attention(q[:0], k[:0], v[:0])
    with pytest.raises(ValueError, match=r"\[batch, heads, tokens, dim\]"):
        flex_attention(q[0], k[0], v[0])
    with pytest.raises(ValueError, match="not both"):
        flex_attention(q, k, v, return_lse=True, return_aux=AuxRequest(lse=True))
    two = create_block_mask(by_head, 1, 2, 200, 200, "cpu")
    with pytest.raises(ValueError, match="heads 2, query 4: give it 1 or 4"):
        flex_attention(q, k, v, block_mask=two)


def test_raster_tensors_are_told_to_tile():
    tiling = VideoTiling((3, 5, 5), (2, 4, 4))
    raster = torch.randn(1, 2, tiling.tokens, 16)
    tiled = tiling.to_tiles(raster)
    with pytest.raises(ValueError, match=r"^value has 75 rows.*to_tiles\(value\) first"):
        flex_attention(tiled, tiled, raster, block_mask=vsa_mask(tiled, tiled, tiling, top_k=2))
