"""Activation checkpointing changes what is kept, not what is computed; tiles are chosen once."""

from collections import Counter

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from trainer_runs import SPARSE, tiny

from flexsparse import VideoTiling
from flexsparse.choice.selection import unpack_bits
from flexsparse.kernels.prune_queries import prune_queries
from flexsparse.kernels.select_tiles import select_tiles
from flexsparse.stages.windows import Windows
from models.attention import BSA
from train.distributed.activation_checkpoint import SELECTION, apply_activation_checkpointing
from train.titan import canonical_fqn

aten = torch.ops.aten
TOPK = aten.topk.default
ATTENTION = torch.ops.flexsparse.block_sparse_attention.default
CROSS_ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu.default
GELU = aten.gelu.default

# How often an operator that occurs once in a block's forward pass runs in forward and backward.
RUNS = {
    "none": {TOPK: 1, ATTENTION: 1, CROSS_ATTENTION: 1, GELU: 1},
    "selective": {TOPK: 1, ATTENTION: 1, CROSS_ATTENTION: 1, GELU: 2},
    "full": {TOPK: 1, ATTENTION: 2, CROSS_ATTENTION: 2, GELU: 2},
}


class Calls(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self):
        super().__init__()
        self.counted = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counted[func] += 1
        return func(*args, **(kwargs or {}))


def problem(attention=SPARSE):
    torch.manual_seed(0)
    config = tiny("unused", attention=attention).model
    model = config.build()
    with torch.no_grad():  # nothing is zero: every path carries a gradient
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    inputs = torch.randn(2, 3, *config.video), torch.rand(2), torch.randn(2, 16, 64)
    return model, inputs


def gradients(model, inputs):
    model(*inputs).square().mean().backward()
    return {canonical_fqn(name): p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("mode", RUNS)
def test_gradients_are_equal_and_the_selection_is_made_once(mode):
    model, inputs = problem()
    expected = gradients(model, inputs)
    model, inputs = problem()
    apply_activation_checkpointing(model, mode)
    with Calls() as calls:
        found = gradients(model, inputs)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    layers = model.config.layers
    assert {op: calls.counted[op] / layers for op in RUNS[mode]} == RUNS[mode]


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_compiled_backward_has_no_selection(mode):
    graphs = []

    def keep(graph, inputs):
        graphs.append(Counter(node.target for node in graph.graph.nodes))
        return make_boxed_func(graph)

    backend = aot_autograd(
        fw_compiler=keep, bw_compiler=keep, partition_fn=min_cut_rematerialization_partition
    )
    model, inputs = problem()
    apply_activation_checkpointing(model, mode)
    for block in model.layers.children():
        block.compile(backend=backend, fullgraph=True)
    gradients(model, inputs)
    assert len(graphs) == 2, "one forward and one backward graph serve all blocks"
    assert sum((graph for graph in graphs), Counter())[TOPK] == RUNS[mode][TOPK]
    assert sum((graph for graph in graphs), Counter())[ATTENTION] == RUNS[mode][ATTENTION]


@pytest.mark.parametrize("mode", RUNS)
def test_bsa_chooses_queries_and_tiles_once(mode):
    slot = BSA(sparsity=0.5, tile=(1, 2, 2), window=None)
    model, inputs = problem(slot)
    expected = gradients(model, inputs)
    model, inputs = problem(slot)
    apply_activation_checkpointing(model, mode)
    with Calls() as calls:
        found = gradients(model, inputs)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert calls.counted[TOPK] == 2 * model.config.layers
    assert calls.counted[GELU] / model.config.layers == RUNS[mode][GELU], "others are made again"


def kept_queries(q):
    windows = Windows(VideoTiling((4, 4, 4)), 0.5, (2, 2, 2))
    tiling = windows.tiling
    shape = tiling.video, tiling.tile, tiling.rows, windows.size
    return prune_queries(q.sin(), *shape, 0.5, windows.per_window, windows.kept_rows)[0].cos()


def chosen_tiles(q):
    means = q.sin().detach()
    bits = select_tiles(means, means, None, "top", 9.0, None, 9, 9, 1)
    return unpack_bits(bits, 64).float() @ q.cos()


@pytest.mark.parametrize(
    "attend, op", [(kept_queries, prune_queries), (chosen_tiles, select_tiles)]
)
def test_a_kernel_that_chooses_on_a_gpu_runs_once(attend, op):
    q = torch.randn(1, 1, 64, 16, requires_grad=True)

    def contexts():
        return create_selective_checkpoint_contexts(SELECTION)

    with Calls() as calls:
        out = checkpoint(attend, q, use_reentrant=False, context_fn=contexts)
        (found,) = torch.autograd.grad(out.sum(), q)
    assert calls.counted[op._opoverload] == 1
    assert torch.equal(found, torch.autograd.grad(attend(q).sum(), q)[0])
