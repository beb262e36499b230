"""The harness that compiles for a GPU that is not there: what it must see, it sees."""

import os
import runpy
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import cuda_build
import pytest
import torch
import triton
import triton.language as tl
from cuda_build import needed

from benchmarks import torch_versions
from benchmarks.compiled import interpret, machine_code, pretend
from benchmarks.compiled.problems import PROBLEMS
from benchmarks.compiled.proof import EVERY
from benchmarks.compiled.run import ROOT

BREAKS_AND_CALLS = """
from benchmarks.compiled import pretend
pretend.start({arch})
import torch, triton
from benchmarks.compiled.capture import graphs
from benchmarks.compiled.rows import rows_of

def broken(device):
    def function(x):
        torch._dynamo.graph_break()
        return x.sin()
    return function, [torch.empty(64, device=device, requires_grad=True)]

def calls_a_library(device):
    options = dict(device=device, dtype=torch.bfloat16, requires_grad=True)
    x = torch.empty(1, 4, 1024, 64, **options)
    return torch.nn.functional.scaled_dot_product_attention, [x, x, x]

assert graphs(broken).sources == [] and graphs(broken).error is not None
forward, backward = rows_of("attention", calls_a_library, {arch})
print(*forward["outside"], forward["triton_launches"], backward["graph"], forward["arch"])
"""


@needed
@pytest.mark.parametrize(("arch", "engine"), [(80, "flash"), (90, "cudnn")])
def test_a_graph_break_is_an_error_and_library_calls_are_named_as_the_gpu_would(arch, engine):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", BREAKS_AND_CALLS.format(arch=arch)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    call = f"torch.ops.aten._scaled_dot_product_{engine}_attention.default"
    assert done.stdout.split() == [call, "0", "backward", f"sm_{arch}"], done.stderr[-2000:]


@triton.jit
def _twice(x):
    return tl.where(x < 0, 0, x) * 2


@triton.jit
def _sum_of_twice(out, x, N: tl.constexpr, K: tl.constexpr):
    total = tl.zeros([N], tl.float32)
    for start in range(0, K):
        total += _twice(tl.load(x + start * N + tl.arange(0, N)))
    tl.store(out + tl.arange(0, N), total)


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton compiles here")
def test_the_interpreter_in_less_time_computes_the_same_and_leaves_triton_as_it_was():
    x, out = torch.randn(5, 16), torch.empty(16)
    before = {name: vars(owner)[name] for owner, name in ((tl, "load"), (tl.tensor, "__add__"))}
    for _ in range(2):
        _sum_of_twice[(1,)](out.fill_(torch.nan), x, N=16, K=5)
        torch.testing.assert_close(out, 2 * x.relu().sum(0))
        assert all(
            vars(owner)[name] is before[name]
            for owner, name in ((tl, "load"), (tl.tensor, "__add__"))
        )


def test_pretending_refuses_a_process_that_has_torch():
    with pytest.raises(RuntimeError, match="torch is imported already"):
        pretend.start(90)


def test_kernels_are_told_by_their_source_not_by_their_name():
    kernel = (
        "{0} = async_compile.triton('{0}', '''\ndef {0}(x_{0}):\n    {1}\n''', device_str='cuda')\n"
    )
    source = kernel.format("triton_poi_0", "a") + kernel.format("triton_poi_1", "a")
    (first, a), (second, b) = machine_code.kernels(
        source + "def call(args):\n    triton_poi_0.run()"
    )
    assert (first, second) == ("triton_poi_0", "triton_poi_1") and "def kernel(" in a
    assert a.replace("x_triton_poi_0", "x") == b.replace("x_triton_poi_1", "x")
    (_, c), *_ = machine_code.kernels(kernel.format("triton_poi_0", "b"))
    assert c != a


def test_ptxas_log_is_read():
    remark = (
        "(C7515) Potential Performance Loss: wgmma.mma_async instructions are serialized due to "
        "insufficient register resources for the wgmma pipeline in the function 'kernel'"
    )
    log = f"""ptxas info    : {remark}
ptxas info    : Function properties for kernel
    48 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 48 bytes cumulative stack size"""
    found = machine_code._kernel(SimpleNamespace(shared=1024, num_warps=8), log)
    assert found == machine_code.Kernel(255, 16, 48, 1024, 8, [remark])


def test_a_row_of_a_version_has_what_failed_and_what_spilled(tmp_path):
    kernel = {"kernel": "_lists", "spilled_bytes": 8, "remarks": ["(C7515)"]}
    sizes = {"triton_launches": 5, "flex_launches": 1, "outside_calls": 2}
    made = {"torch": "2.11.0+cu130", "triton": "3.6.0", "commit": "abc", "date": "2026-01-01"}
    flex = {"kernel": "triton_tem_fused_flex_attention_backward_1", "spilled_bytes": 4}
    kernels = [kernel, flex | {"remarks": []}]
    graph = {"case": "vsa", "arch": "sm_90", "graph": "forward", "kernels": kernels, **sizes}
    failed = {"case": "bsa", "arch": "sm_80", "error": "it broke"}
    row = torch_versions.summary([graph | made, failed])
    assert row["launches"] == {"sm_90": {"vsa": {"forward": [5, 1, 2]}}}
    assert row["failed"] == {"sm_80 bsa": "it broke"}
    torch_versions.append("torch_versions", {**row, "torch": "2.9.0"}, tmp_path)
    torch_versions.append("torch_versions", row | {"spills": []}, tmp_path)
    row["errors"] = {"vsa": 0.5, "bsa": 1.5}
    torch_versions.append("torch_versions", row, tmp_path)
    assert list(torch_versions.latest(tmp_path)) == ["2.9.0", "2.11.0"]
    cases, problems = sum(len(job.names) for job in EVERY), len(PROBLEMS)
    *_, first, last = torch_versions.table(tmp_path).splitlines()
    sizes = f"3.6.0 | 1 of {cases} | 5 | 1 | 2 | `_lists` 8, `flex_attention_backward` 4 | 1"
    assert last == f"| 2.11.0 | {sizes} | 1 of {problems}, 1.50 | - |"
    assert first == f"| 2.9.0 | {sizes} | 0 of {problems}, inf | - |"  # nothing ran


def test_a_row_that_lacks_something_has_not_passed(tmp_path):
    (version, whole), *_ = reversed(torch_versions.latest().items())
    lacking = [
        {"failed": {"sm_90 dit_vsa": "it broke"}},
        {"remarks": [["sm_90 dit_vsa", "_select", ["(C7515)"]]]},
        {"launches": whole["launches"] | {"sm_80": {}}},
        {"errors": {}},
        {"errors": whole["errors"] | {"bsa_text": 1.1}},
        {"red": {}},
        {"red": whole["red"] | {"a quota by a reciprocal": False}},
    ]
    for number, change in enumerate([{}, *lacking]):
        folder = tmp_path / str(number)
        torch_versions.append("torch_versions", whole | change, folder)
        assert torch_versions.passed(folder) == ([] if change else [version])


GRAPH = """
import torch
empty_strided_cuda = torch.empty_strided

def call(args):
    args.clear()
    kinds = torch.float32, torch.int32, torch.bool
    return [{allocate}((2, 3), (3, 1), dtype) for dtype in kinds]
"""


def test_memory_that_a_graph_does_not_write_is_no_number_and_no_index():
    try:
        made = interpret.load(GRAPH.format(allocate="empty_strided_cuda"))([torch.ones(1)])
        with pytest.raises(RuntimeError, match="torch.empty_strided would hand out memory without"):
            interpret.load(GRAPH.format(allocate="torch.empty_strided"))
    finally:
        mock.patch.stopall()
    numbers, indices, truths = made
    assert numbers.isnan().all() and (indices > 1 << 30).all() and truths.all()
    assert made[0].shape == (2, 3)


@pytest.mark.parametrize(
    "ci, cuda, skips", [("true", None, False), ("", None, True), ("", "13.0", False)]
)
def test_in_ci_a_torch_without_a_cuda_build_is_a_failure(monkeypatch, ci, cuda, skips):
    """These tests then run, and what they need is missing."""
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert runpy.run_path(cuda_build.__file__)["needed"].args == (skips,)
