"""What the benchmark of Wan is made of: weights, checks, clocks, FLOPs."""

import math
from types import SimpleNamespace
from unittest import mock

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.record import read
from benchmarks.wan import __main__ as command
from benchmarks.wan import checks as wan_checks
from benchmarks.wan import models as wan_models
from benchmarks.wan import run as wan_run
from benchmarks.wan import timing as wan_timing
from flexsparse.slots import DenseAttention
from models.attention import VSA, Dense
from models.wan import debug
from models.wan.blocks import CrossAttention

CPU = torch.device("cpu")
GRID = (4, 6, 9)  # ragged tiles
TINY = ["--sizes", "debug", "--grids", "4x6x9", "--rounds", "1", "--methods", "dense"]


def test_what_the_compiler_makes_wrong_is_seen():
    methods = wan_models.methods(GRID, command.KINDS)
    given = debug(), GRID, methods, CPU, torch.float32

    def miscompile(model):
        model.layers["0"].self_attn.o.weight.mul_(1.01)

    assert max(wan_checks.check_models(*given, compiled=False).values()) <= 1
    with mock.patch.object(wan_checks, "compile_blocks", miscompile):
        assert min(wan_checks.check_models(*given, compiled=True).values()) > 1


def test_compiled_attention_is_that_of_a_layer_times_the_layers(tmp_path):
    torch._dynamo.reset()
    with mock.patch.object(wan_models, "BACKEND", "eager"):  # without a C++ compiler's time
        assert command.main([*TINY, "--compiled", "--results", f"{tmp_path}/some.jsonl"]) == 0
        dense, vsa = wan_models.methods(GRID, ["vsa"])[:2]
        model = wan_models.dense_model(debug(layers=3), CPU, torch.float32)
        batch = wan_models.draw(model.config, GRID, CPU, torch.float32)
        runner = wan_timing.Runner.of(vsa, model, batch, compiled=True)
        ratio = wan_checks.check_attention(runner.slot, runner.attend, runner.inputs)
    assert runner.attend is not runner.slot and ratio is not None and ratio <= 1
    row, eager = read("some", tmp_path)
    assert row["method"] == "dense" and row["compiled"] and not eager["compiled"]
    assert 0 < row["attention_ms"] and 0 < row["error_ratios"]["model, dense"] <= 1
    runner = wan_timing.Runner.of(dense, model, batch, compiled=False)
    with mock.patch.object(wan_timing, "_ms", lambda *_: 7.0):
        assert runner._replace(alone=print).forward() == (7.0, 21.0, None)


def test_eager_attention_is_what_passes_in_the_slots():
    method = wan_models.methods(GRID, [])[0]
    model = wan_models.dense_model(debug(layers=3), CPU, torch.float32, one_block=True)
    batch = wan_models.draw(model.config, GRID, CPU, torch.float32)
    runner = wan_timing.Runner.of(method, model, batch, compiled=False)
    clock = [0.0]

    def taking(seconds, forward):
        def slow(self, *given):
            clock[0] += seconds
            return forward(self, *given)

        return slow

    slow_slot = mock.patch.object(DenseAttention, "forward", taking(2, DenseAttention.forward))
    slow_rest = mock.patch.object(CrossAttention, "forward", taking(1, CrossAttention.forward))
    with slow_slot, slow_rest, mock.patch("time.perf_counter", lambda: clock[0]):
        assert runner.forward() == (9000.0, 6000.0, None)


def test_methods_run_in_turn_and_the_first_round_does_not_count():
    calls = []

    def runner(name, times):
        def forward():
            calls.append(name)
            return wan_timing.Forward(next(times), 1.0, None)

        return SimpleNamespace(method=SimpleNamespace(name=name), forward=forward)

    runners = [runner("a", iter([99, 1, 2, 9])), runner("b", iter([99, 4, 5, 3]))]
    found = wan_timing.in_turn(runners, 3)
    assert calls == 4 * ["a", "b"] and [found[name].ms for name in "ab"] == [2, 4]


def test_where_memory_is_short_all_layers_share_a_block(tmp_path):
    with mock.patch.object(wan_timing, "free_bytes", lambda _: 1):
        assert command.main([*TINY, "--layers", "5", "--results", f"{tmp_path}/some.jsonl"]) == 0
    (row,) = read("some", tmp_path)
    assert row["one_block"] is True and row["layers"] == 5
    assert "one block's weights" in wan_run.table([row])
    whole, shared = (
        wan_models.dense_model(debug(layers=5), CPU, torch.float32, one) for one in (False, True)
    )
    block = wan_models.weight_bytes(whole.layers["0"])
    assert wan_models.weight_bytes(whole) - wan_models.weight_bytes(shared) == 4 * block
    assert row["weight_bytes"] == wan_models.weight_bytes(whole)
    assert len(shared.layers) == 5 and len(wan_models.slots_of(shared)) == 1


def test_all_methods_are_on_the_same_weights():
    model = wan_models.dense_model(debug(), CPU, torch.float32)
    own = {x.data_ptr() for x in model.parameters()}
    for method in wan_models.methods(GRID, command.KINDS):
        other = wan_models.with_slot(model, method.slot)
        gates = {x for slot in wan_models.slots_of(other) for x in slot.parameters()}
        rest = [x for x in other.parameters() if x not in gates]
        assert own == {x.data_ptr() for x in rest}
        assert all(x.abs().sum() > 0 for x in gates)
    assert all(x.abs().sum() > 0 for x in model.parameters())


@settings(max_examples=10)
@given(st.tuples(st.integers(1, 6), st.integers(1, 8), st.integers(1, 9)), st.integers(1, 3))
def test_flops_are_what_torch_counts_in_the_blocks(grid, layers):
    model = wan_models.dense_model(debug(layers=layers), CPU, torch.float32, one_block=True)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # it knows no CPU's fused one
        model(*wan_models.draw(model.config, grid, CPU, torch.float32))
    counted = counter.get_flop_counts()
    blocks = sum(counted["WanModel.layers.0"].values())
    whole, attention = wan_models.forward_flops(model.config, grid, Dense())
    assert whole == blocks
    assert attention == layers * 4 * math.prod(grid) ** 2 * model.config.dim


def test_flops_of_a_sparse_forward_count_padding_and_gates():
    config, grid = debug(), (4, 6, 10)
    slot = VSA(sparsity=0.5, tile=(3, 5, 4), adapt=True)
    rows = slot.tiling(grid).padded_tokens
    (dense, inner), (sparse, attention) = (
        wan_models.forward_flops(config, grid, s) for s in (Dense(), slot)
    )
    per_row = (dense - inner - 8 * config.dim**2 * wan_models.WORDS) // math.prod(grid)
    per_row += 2 * 2 * config.dim**2
    assert sparse - attention == per_row * rows + 8 * config.dim**2 * wan_models.WORDS
