"""The coarse stage on a real GPU: its kernels against their twins, no waiting, CUDA graphs."""

import pytest
import torch
from laws import assert_accurate
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from flexsparse import (
    Mass,
    Threshold,
    TopK,
    VideoTiling,
    bsa_attention,
    bsa_mask,
    prune_queries,
    vsa_attention,
    vsa_mask,
)
from flexsparse.choice.choose import choose_tiles, coarse_scores
from flexsparse.choice.lists import block_lists, tile_lists_twin
from flexsparse.choice.selection import pack_bits, unpack_bits
from flexsparse.stages.coarse import coarse_attention, coarse_attention_twin
from models.attention import BSA, VSA
from models.video_dit import VideoDiTConfig

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
RAGGED = VideoTiling((9, 9, 10), (4, 4, 4))
RULES = [TopK(5), Threshold(5), Mass(0.8), TopK(27), TopK(5, max_tiles=3)]


def draw(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, device="cuda", generator=generator).to(dtype)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("n", [1, 27, 100, 1000, 1260])
@pytest.mark.parametrize("scale", [1.0, 64.0])
def test_the_choice_is_the_twins(rule, n, scale):
    if rule.bounds(n)[0] > n or isinstance(rule, TopK) and rule.k > n:
        pytest.skip("more tiles than there are")
    whole = [(3 * draw(1, 4, n, 64, seed=s)).round() for s in (0, 1)]  # exact scores, with ties
    whole[0] *= scale
    found = unpack_bits(choose_tiles(*whole, rule), n)
    assert torch.equal(found, rule(coarse_scores(*whole)))
    assert torch.equal(found, unpack_bits(choose_tiles(*whole, rule), n))


@pytest.mark.parametrize("n, dim", [(1260, 128), (1000, 64), (4096, 64), (364, 80)])
def test_the_choice_is_the_best_but_for_what_rounding_decides(n, dim):
    q, k = draw(1, 2, n, dim), draw(1, 2, n, dim, seed=1)
    exact = coarse_scores(q.double(), k.double())
    rounding = 2 * (exact - coarse_scores(q, k)).abs().amax()
    chosen = unpack_bits(choose_tiles(q, k, TopK(n // 8)), n)
    assert (chosen.sum(-1) == n // 8).all()
    worst = exact.masked_fill(~chosen, torch.inf).amin(-1)
    assert (worst >= exact.masked_fill(chosen, -torch.inf).amax(-1) - rounding).all()


@pytest.mark.parametrize("tiling", [RAGGED, VideoTiling((21, 45, 80), (3, 5, 4))], ids=str)
def test_lists_are_the_twins(tiling):
    n = tiling.num_tiles
    chosen = torch.rand(2, 3, n, n, device="cuda") < 0.125
    bits, most = pack_bits(chosen), int(chosen.sum(-1).amax())
    kinds = 2 if tiling.has_padding and tiling.full_tiles else 1
    num, indices, k_num, k_indices = tile_lists_twin(bits, tiling, most, True)
    by_query, by_key = block_lists(bits, tiling, most=most, by_key=True)
    for kind in range(kinds):
        has = kind if kinds == 2 else int(tiling.full_tiles > 0)
        for (a, b), (c, d) in (
            ((num[has], indices[kind]), by_query[2 * kind : 2 * kind + 2]),
            ((k_num[has], k_indices), by_key[2 * kind : 2 * kind + 2]),
        ):
            listed = torch.arange(b.shape[-1], device="cuda") < a[..., None]
            assert torch.equal(a, c) and torch.equal(b[listed], d[listed])


@pytest.mark.parametrize("n, dim", [(1260, 128), (333, 64), (100, 80), (1, 16)])
def test_coarse_attention_is_the_twin(n, dim):
    inputs = [draw(1, 2, n, dim, seed=s).requires_grad_() for s in range(3)]
    grad = draw(1, 2, n, dim, seed=3)

    def run(attend, dtype):
        xs = [x.detach().to(dtype).requires_grad_() for x in inputs]
        out = attend(*xs)
        return [out.detach(), *torch.autograd.grad(out, xs, grad.to(dtype))]

    found, plain = run(coarse_attention, torch.float32), run(coarse_attention_twin, torch.float32)
    assert_accurate(found, [plain], run(coarse_attention_twin, torch.float64), inputs)
    assert all(torch.equal(a, b) for a, b in zip(found, run(coarse_attention, torch.float32)))


def layer(kind):
    """A function of q, k, v and a gate."""

    def vsa(q, k, v, gate):
        return vsa_attention(q, k, v, RAGGED, top_k=5, gate_coarse=gate, gate_fine=gate)

    def bsa(q, k, v, gate):
        return bsa_attention(q, k, v, RAGGED, kv=Threshold(5), window=(2, 2, 2)) * gate

    return vsa if kind == "vsa" else bsa


@pytest.mark.parametrize("kind", ["vsa", "bsa"])
def test_compiled_inference_is_what_training_computes(kind):
    size = 1, 2, RAGGED.padded_tokens, 64
    inputs = [draw(*size, dtype=torch.bfloat16, seed=s) for s in range(4)]
    attend = layer(kind)
    due = attend(*(x.detach().requires_grad_() for x in inputs)).detach()
    with torch.no_grad():
        found = [attend(*inputs), torch.compile(attend, fullgraph=True)(*inputs)]
    for x in found:  # rounded once more or less where kernels are fused
        assert_accurate([x], [[(due * (1 + 2**-8)).bfloat16()]], [due.double()])


@pytest.mark.parametrize("kind", ["vsa", "bsa"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_nothing_waits_for_the_device(kind, compiled):
    attend = torch.compile(layer(kind), fullgraph=True) if compiled else layer(kind)
    size = 1, 2, RAGGED.padded_tokens, 64
    inputs = [draw(*size, dtype=torch.bfloat16, seed=s).requires_grad_() for s in range(4)]
    for mode in ("default", "error"):  # compile first
        torch.cuda.set_sync_debug_mode(mode)
        try:
            attend(*inputs).sum().backward()
            with torch.no_grad():
                attend(*inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def kernels(call):
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    on_device = [e.name for e in found.events() if e.device_type == DeviceType.CUDA]
    return [name for name in on_device if "Memset" not in name]


@pytest.mark.parametrize("tile", [(3, 5, 4), (4, 4, 4)], ids=["padded", "full"])
@pytest.mark.parametrize("trains", [True, False])
def test_a_mask_takes_three_launches_and_compiles_to_itself(tile, trains):
    tiling = VideoTiling((12, 20, 12), tile)
    q = draw(1, 4, tiling.padded_tokens, 128, dtype=torch.bfloat16)

    def build():
        mask = vsa_mask(q, q, tiling, top_k=5)
        return [x for x in mask.as_tuple()[:10] if isinstance(x, torch.Tensor)], mask.to_dense()

    with torch.set_grad_enabled(trains):
        names = kernels(torch.compile(lambda: build()[0]))
        assert [x for x in names if not x.startswith("triton_")] == ["_pool", "_select", "_lists"]
        assert len(names) <= 4, names  # and the tokens of each tile, which mask_mod holds
        assert torch.equal(torch.compile(lambda: build()[1])(), build()[1])


def test_two_streams_at_once():
    tiling = VideoTiling((16, 28, 52), (4, 4, 4))
    size = 1, 12, tiling.padded_tokens, 128
    inputs = [[draw(*size, dtype=torch.bfloat16, seed=2 * i + j) for j in (0, 1)] for i in (0, 1)]

    def masks(q, k):
        kept = prune_queries(q, tiling, window=(2, 2, 2))
        found = vsa_mask(q, k, tiling, top_k=46), bsa_mask(kept, k, tiling, kv=Threshold(46))
        return [mask.to_dense() for mask in found]

    alone = [masks(*x) for x in inputs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in inputs]
    for _ in range(5):
        found = []
        for stream, x in zip(streams, inputs):
            with torch.cuda.stream(stream):
                found.append(masks(*x))
        torch.cuda.synchronize()
        for ours, due in zip(found, alone):
            assert all(torch.equal(a, b) for a, b in zip(ours, due))


@pytest.mark.parametrize("slot", [VSA(tile=(4, 4, 4)), BSA()], ids=["vsa", "bsa"])
def test_a_whole_dit_runs_in_cuda_graphs(slot):
    """Training and inference: nothing is left out of the graphs, and what they replay has the bits
    of the first run, which is not a replay."""
    sizes = dict(channels=4, video=(9, 9, 10), patch=(1, 1, 1), context_dim=8)
    config = VideoDiTConfig(**sizes, dim=64, heads=1, layers=2, ffn=64, attention=slot)
    model = config.build().cuda()
    parameters = list(model.parameters())
    with torch.no_grad():  # nothing is zero: every path carries a gradient
        for i, x in enumerate(parameters):
            x.add_(0.1 * draw(*x.shape, seed=i))
    # mode="reduce-overhead", but what a graph cannot hold is not cut out in silence.
    whole = {"triton.cudagraphs": True, "graph_partition": False}
    compiled = torch.compile(model, options=whole, fullgraph=True)
    shapes = (2, 4, 9, 9, 10), (2,), (2, 5, 8)
    batches = [[draw(*x, seed=seed).abs() for x in shapes] for seed in range(3)]

    def step(batch):
        torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad():
            out = compiled(*batch).clone()
        torch.compiler.cudagraph_mark_step_begin()
        grads = torch.autograd.grad(compiled(*batch).square().mean(), parameters)
        return [out, *(x.clone() for x in grads)]

    counters = torch._dynamo.utils.counters["inductor"]
    counters.clear()
    with sdpa_kernel(SDPBackend.MATH):  # for cross-attention: others' backwards use atomics
        first = [step(batch) for batch in batches]
        for _ in range(2):
            for batch, due in zip(batches, first):
                assert all(torch.equal(a, b) for a, b in zip(step(batch), due))
    assert counters["cudagraph_skips"] == 0
