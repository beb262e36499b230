import pytest
import torch
from laws import assert_accurate, poison

from flexsparse import Threshold, VideoTiling, bsa_attention, reference, vsa_attention
from flexsparse.nn import BSA, VSA
from flexsparse.vsa import vsa_tile_map

tiling = VideoTiling((3, 6, 8), (2, 4, 4))


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, tiling.tokens, 48, generator=generator)
    qkv = [torch.randn(2, 3, tiling.tokens, 16, generator=generator) for _ in range(3)]
    return [t.to(dtype) for t in (x, *qkv)]


def heads(x):
    return x.unflatten(-1, (3, 16)).transpose(1, 2)


def test_it_owns_the_gates_alone_and_gates_by_its_input():
    layer = VSA(48, 3, top_k=3)
    torch.nn.init.normal_(layer.gate_coarse.weight)
    torch.nn.init.normal_(layer.gate_fine.weight)
    assert {n.split(".")[0] for n, _ in layer.named_parameters()} == {"gate_coarse", "gate_fine"}
    x, q, k, v = inputs()
    tiled = [tiling.to_tiles(t) for t in (x, q, k, v)]
    chosen = vsa_tile_map(*tiled[1:3], tiling, top_k=3)

    def plain(dtype):
        gates = [
            heads(torch.nn.functional.linear(x.to(dtype), g.weight.to(dtype), g.bias.to(dtype)))
            for g in (layer.gate_coarse, layer.gate_fine)
        ]
        shape = (tiling.video, tiling.tile)
        choice = dict(top_k=3, tile_map=chosen, dtype=dtype)
        return reference.vsa(q, k, v, *shape, gate_coarse=gates[0], gate_fine=gates[1], **choice)

    out = tiling.from_tiles(layer(*tiled, tiling))
    assert_accurate([out], [[plain(torch.float32)]], [plain(torch.float64)], [x, q, k, v])


@pytest.mark.parametrize("adapt", [False, True])
def test_nan_in_padding_reaches_neither_output_nor_gradients(adapt):
    layer = VSA(48, 3, top_k=3, adapt=adapt)
    assert tiling.has_padding

    def run(change):
        tiled = [change(tiling.to_tiles(t)).requires_grad_() for t in inputs()]
        out = layer(*tiled, tiling)
        return out, *torch.autograd.grad(out.square().sum(), [*tiled, *layer.parameters()])

    clean, poisoned = run(lambda x: x), run(lambda x: poison(x, tiling))
    assert all(torch.equal(a, b) for a, b in zip(clean, poisoned))


def test_adapting_starts_as_dense_attention():
    layer = VSA(48, 3, top_k=tiling.num_tiles, adapt=True)
    assert [n for n, _ in layer.named_parameters()] == ["gate_coarse.weight", "gate_coarse.bias"]
    x, *qkv = inputs()
    out = layer(*[tiling.to_tiles(t) for t in (x, *qkv)], tiling)
    dense = torch.nn.functional.scaled_dot_product_attention
    exact = dense(*[t.double() for t in qkv])
    assert_accurate([tiling.from_tiles(out)], [[dense(*qkv)]], [exact], qkv)
    out.square().sum().backward()
    assert layer.gate_coarse.weight.grad.abs().sum() > 0  # it can leave zero


@pytest.mark.parametrize("layer", [VSA(48, 3, None, gates=False), BSA(None, keep=0.5)])
def test_without_a_rule_gradients_are_those_of_dense_attention(layer):
    def differentiate(attend, dtype):
        qkv = [t.requires_grad_() for t in inputs(dtype)[1:]]
        out = attend(*qkv)
        return [out, *torch.autograd.grad(out.square().sum(), qkv)]

    def ours(*qkv):
        x, *tiled = (tiling.to_tiles(t) for t in (inputs()[0], *qkv))
        return tiling.from_tiles(layer(x, *tiled, tiling))

    dense = torch.nn.functional.scaled_dot_product_attention
    plain, exact = (differentiate(dense, dtype) for dtype in (torch.float32, torch.float64))
    assert_accurate(differentiate(ours, torch.float32), [plain], exact, inputs())


def test_bsa_is_the_function_with_its_arguments():
    x, *qkv = (tiling.to_tiles(t) for t in inputs())
    results = {}
    for fill in ("nearest", "center"):
        options = dict(keep=0.5, window=(1, 2, 2), fill=fill)
        results[fill] = BSA(Threshold(3), **options)(x, *qkv, tiling)
        assert torch.equal(results[fill], bsa_attention(*qkv, tiling, kv=Threshold(3), **options))
    assert not torch.equal(*results.values())
    with pytest.raises(ValueError, match="kv=0 must be an int of at least 1"):
        BSA(0)


def test_reset_parameters_restores_the_start():
    layer = VSA(48, 3, top_k=2)
    for p in layer.parameters():
        p.data.fill_(7)
    layer.reset_parameters()
    assert (layer.gate_fine.bias == 1).all() and (layer.gate_coarse.bias == 0).all()
    assert 0.01 < layer.gate_coarse.weight.std() < 0.03


def test_it_works_under_autocast_and_refuses_no_tiles():
    x, *qkv = inputs()
    tiled = [tiling.to_tiles(t) for t in (x, *qkv)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert VSA(48, 3, top_k=2)(*tiled, tiling).dtype == torch.float32
    with pytest.raises(ValueError, match="top_k=0 must be an int of at least 1"):
        VSA(48, 3, top_k=0)


@pytest.mark.parametrize("layer", [VSA(48, 3, top_k=3, adapt=True), BSA(Threshold(3), keep=0.3)])
def test_the_choice_is_what_gradients_flow_through(layer):
    """A tile's output has a gradient in the values of the tiles that it chose and in no others, and
    in the queries that stay and in no others; q_rows rows of memory hold those of a tile."""
    x, q, k, v = [poison(tiling.to_tiles(t), tiling).requires_grad_() for t in inputs()]
    choice = layer.choose(q, k, tiling)

    def reached(gradient):
        return gradient.abs().sum(-1) > 0

    out = layer(x, q, k, v, tiling) * torch.randn(q.shape)
    assert torch.equal(
        reached(torch.autograd.grad(out.sum(), q, retain_graph=True)[0]), choice.kept
    )
    tiles = (tiling.num_tiles, tiling.rows)
    for i, part in enumerate(out.unflatten(2, tiles).unbind(2)):
        (gradient,) = torch.autograd.grad(part.sum(), v, retain_graph=True)
        chosen = reached(gradient).unflatten(2, tiles).any(-1)
        assert torch.equal(chosen, choice.tile_map[:, :, i])
    most = choice.kept.unflatten(2, tiles).sum(-1).max()
    assert choice.q_rows is None if isinstance(layer, VSA) else most <= choice.q_rows < tiling.rows


def test_layers_hand_on_how_query_tiles_choose():
    x, q, k, v = [tiling.to_tiles(t) for t in inputs()]
    layer = VSA(48, 3, top_k=3, query_tiles=2)
    layer.gate_coarse.requires_grad_(False).weight.zero_()
    layer.gate_fine.requires_grad_(False).weight.zero_()
    due = vsa_attention(q, k, v, tiling, top_k=3, query_tiles=2)
    assert torch.equal(layer(x, q, k, v, tiling), due)
    assert not torch.equal(vsa_attention(q, k, v, tiling, top_k=3), due)
    chosen = layer.choose(q, k, tiling).tile_map
    assert torch.equal(chosen, vsa_tile_map(q, k, tiling, top_k=3, query_tiles=2))
    pruning = BSA(Threshold(3), query_tiles=2)
    due = bsa_attention(q, k, v, tiling, kv=Threshold(3), query_tiles=2)
    assert torch.equal(pruning(x, q, k, v, tiling), due)
    assert not torch.equal(bsa_attention(q, k, v, tiling, kv=Threshold(3)), due)
    chosen = pruning.choose(q, k, tiling).tile_map
    assert torch.equal(chosen[:, :, 0], chosen[:, :, 1])
    flash = dict(kernel_options={"BACKEND": "FLASH"})
    for layer in (VSA(48, 3, 3, **flash), BSA(3, **flash)):
        with pytest.raises(ValueError, match="engine for CUDA"):
            layer(x, q, k, v, tiling)


@pytest.mark.parametrize("kind", [VSA, BSA])
def test_fewer_tiles_than_choose_together_choose_all_together(kind):
    small = VideoTiling((1, 2, 4), (1, 2, 2))
    x, q, k = torch.randn(1, 32, 48), *torch.randn(2, 1, 3, small.padded_tokens, 16)
    args = (48, 3, 1) if kind is VSA else (1,)
    layers = [kind(*args, query_tiles=n) for n in (2, 9)]
    layers[1].load_state_dict(layers[0].state_dict())
    outs = [layer(x, q, k, k, small) for layer in layers]
    maps = [layer.choose(q, k, small).tile_map for layer in layers]
    assert torch.equal(*outs) and torch.equal(*maps)


def test_without_gates_it_is_the_fine_stage_and_has_no_parameters():
    x, q, k, v = [tiling.to_tiles(t) for t in inputs()]
    layer = VSA(48, 3, top_k=3, gates=False)
    assert not list(layer.parameters())
    layer.reset_parameters()
    assert torch.equal(layer(x, q, k, v, tiling), vsa_attention(q, k, v, tiling, top_k=3))
