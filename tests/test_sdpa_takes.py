"""What ``scaled_dot_product_attention`` takes, all entry points take, or refuse in one line."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flexsparse import (
    VideoTiling,
    bsa_attention,
    bsa_mask,
    flex_attention,
    prune_queries,
    vsa_attention,
    vsa_mask,
)
from flexsparse.nn import BSA, VSA

TILING = VideoTiling((3, 5, 4), tile=(2, 2, 2))
WIDTH = 32
torch.manual_seed(0)
LAYERS = {"nn.VSA": VSA(WIDTH, 2, top_k=2), "nn.BSA": BSA(kv=2)}


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return flex_attention(q, k, v, block_mask=vsa_mask(q, k, TILING, top_k=2))


def pruned(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    kept = prune_queries(q, TILING)
    return flex_attention(kept.q, k, v, block_mask=bsa_mask(kept, k, TILING, kv=2))


def scored(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = vsa_mask(q, k, TILING, top_k=2)
    return flex_attention(q, k, v, lambda s, b, h, i, j: s.tanh(), mask)


ENTRIES = {
    "vsa_attention": lambda q, k, v: vsa_attention(q, k, v, TILING, top_k=2, gate_coarse=v),
    "dense": lambda q, k, v: vsa_attention(q, k, v, TILING, top_k=None, gate_fine=v),
    "bsa_attention": lambda q, k, v: bsa_attention(q, k, v, TILING, kv=2),
    "vsa_mask": masked,
    "bsa_mask": pruned,
    "flex_attention": flex_attention,
    "score_mod": scored,
}
every = pytest.mark.parametrize("attend", ENTRIES.values(), ids=ENTRIES)


def drawn(count: int = 3, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = 2, 2, TILING.padded_tokens, 16
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]


@every
def test_mixed_dtypes_under_autocast_are_cast_to_its_dtype(attend):
    q, k, v = drawn()
    half = [x.bfloat16() for x in (q, k, v)]
    wanted = attend(*half)
    with torch.autocast("cpu", torch.bfloat16):
        assert F.scaled_dot_product_attention(q, k, half[2]).dtype == torch.bfloat16
        for mixed in (q, k, half[2]), (half[0], k, half[2]), (q.half(), half[1], half[2]):
            found = attend(*mixed)
            assert found.dtype == torch.bfloat16
            if mixed[0].dtype != torch.float16:
                assert torch.equal(found, wanted)
        with pytest.raises((ValueError, RuntimeError), match="dtype"):
            attend(q, k, half[2].double())
    with pytest.raises((ValueError, RuntimeError), match="dtype"):
        attend(q, k, half[2])


@pytest.mark.parametrize("name", LAYERS)
def test_layers_cast_with_their_gates(name):
    q, k, v = drawn()
    x = torch.randn(2, TILING.padded_tokens, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        found = LAYERS[name](x, q, k, v.bfloat16(), TILING)
        wanted = LAYERS[name](x, *(y.bfloat16() for y in (q, k, v)), TILING)
    assert found.dtype == torch.bfloat16 and torch.equal(found, wanted)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_cast_before_tensors_travel_between_ranks(name):
    class Shards:
        def to_heads(self, *sequences):
            self.dtypes = {x.dtype for x in sequences}
            return sequences

        def to_sequence(self, out):
            return out

        def shard(self, x, dim):
            return x

    (q, k, v), shards = drawn(), Shards()
    x = torch.randn(2, TILING.padded_tokens, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        LAYERS[name](x, q, k, v.bfloat16(), TILING, shards=shards)
    assert shards.dtypes == {torch.bfloat16}


def test_gates_are_cast_with_the_rest_under_autocast():
    q, k, v, gate = drawn(4)
    attend = partial(vsa_attention, tiling=TILING, top_k=2)
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(q, k, v, gate_coarse=gate.bfloat16())
    q, k, v, gate = (x.bfloat16() for x in (q, k, v, gate))
    assert torch.equal(found, attend(q, k, v, gate_coarse=gate))


@every
def test_strides_do_not_matter(attend):
    def turned(x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous().transpose(1, 2)

    def spaced(x: Tensor) -> Tensor:
        return torch.stack((x, x), -1)[..., 0]

    def expanded(x: Tensor) -> Tensor:
        return x[:1, :1].expand_as(x)

    for stride in turned, spaced, expanded:
        results = []
        for copied in False, True:
            inputs = [x.requires_grad_() for x in drawn()]
            laid = [stride(x) for x in inputs]
            out = attend(*(x.contiguous() if copied else x for x in laid))
            results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
        assert all(torch.equal(x, y) for x, y in zip(*results)), stride.__name__


@every
def test_an_empty_batch_is_refused(attend):
    with pytest.raises(ValueError, match="must not be empty"):
        attend(*(x[:0] for x in drawn()))


@every
def test_fp16_on_a_cpu_is_as_right_as_sdpa_is(attend):
    def errors(attend) -> list[float]:
        results = []
        for dtype in torch.float16, torch.float64:
            inputs = [x.to(dtype).requires_grad_() for x in drawn(dtype=torch.float16)]
            out = attend(*inputs)
            assert out.dtype == dtype
            results.append([out, *torch.autograd.grad(out.sum(), inputs)])
        return [
            ((x - y).square().mean() / y.square().mean()).sqrt().item() for x, y in zip(*results)
        ]

    for ours, theirs in zip(errors(attend), errors(F.scaled_dot_product_attention)):
        assert ours <= 2 * theirs


@every
def test_inference_mode(attend):
    inputs = drawn()
    wanted = attend(*inputs)
    with torch.inference_mode():
        assert torch.equal(attend(*inputs), wanted)
        made = attend(*(x.clone() for x in inputs))  # inference tensors
        assert made.is_inference() and torch.equal(made, wanted)


@every
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_vmap_is_a_loop(attend):
    some = [torch.stack((x, 2 * x.flip(0))).requires_grad_() for x in drawn()]
    if torch.__version__ < "2.13" and attend not in (flex_attention, ENTRIES["dense"]):
        with pytest.raises(
            RuntimeError, match="Batching rule not implemented for aten::view.dtype"
        ):
            torch.vmap(attend)(*(x.detach() for x in some))
        return
    if attend is scored:
        with pytest.raises(NotImplementedError, match="make the dimension part of the batch"):
            torch.vmap(attend)(*some)
        some = [x.detach() for x in some]
    found = torch.vmap(attend)(*some)
    wanted = torch.stack([attend(*x) for x in zip(*some)])
    assert torch.equal(found, wanted)
    if attend is scored:
        return
    grads = [torch.autograd.grad(x.square().sum(), some) for x in (found, wanted)]
    assert all(torch.equal(x, y) for x, y in zip(*grads))


def test_autocast_casts_floats_alone():
    q = TILING.to_tiles(torch.randn(1, 2, TILING.tokens, 16))
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="share device"):
        vsa_attention(q, q, q.long(), TILING, top_k=2)
    on_meta = q.to("meta")  # which autocast does not know
    with pytest.raises(ValueError, match="share device and a floating dtype"):
        vsa_attention(on_meta, on_meta, on_meta.bfloat16(), TILING, top_k=2)
