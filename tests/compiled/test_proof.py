"""What torch.compile makes of our cases for GPUs that are not here (``benchmarks/compiled``)."""

import math
import os

import pytest
import torch
from cuda_build import needed

from benchmarks import torch_versions
from benchmarks.compiled.cases import MODELS
from benchmarks.compiled.chips import CHIPS
from benchmarks.compiled.layers import TOKENS
from benchmarks.compiled.proof import PROOF, Job, compile_job, compile_proof
from benchmarks.compiled.run import ROOT
from benchmarks.compiled.sabotage import broken
from flexsparse import VideoTiling
from flexsparse.engines.kernel_configs import backward_config, forward_config
from flexsparse.engines.kernel_options import TAKES_OPTIONS

pytestmark = needed
CASES = [(f"sm_{job.arch}", name) for job in PROOF for name in job.names]
FLEX_LAUNCHES = {  # a direction; in the others one
    "dit_dense": 0,
    "wan_vsa": 2,  # layers
    "diffusers_wan": 2,
    "vsa_text64_d128_gated": 2,  # the video's queries, and the text's
    "vsa_parts64_d128_gated": 2,
}
# What models call beside our layers: linear layers, convolutions, dense and cross attention.
OF_MODELS = (
    "extern_kernels.mm",
    "extern_kernels.addmm",
    "extern_kernels.convolution",
    "torch.ops.aten.convolution_backward.default",
    "torch.ops.aten._scaled_dot_product_",
)
FORWARD = "BLOCK_M", "BLOCK_N", "num_stages", "num_warps"
BACKWARD = "BLOCK_M1", "BLOCK_N1", "BLOCK_M2", "BLOCK_N2", "num_stages", "num_warps"


@pytest.fixture(scope="session")
def found():
    """The rows of every case, by (architecture, case)."""
    rows = {}
    for row in compile_proof(whole=False):
        rows.setdefault((row["arch"], row["case"]), []).append(row)
    return rows


@pytest.fixture
def graphs(found, arch, name):
    """The case's forward and, where it trains, its backward, none broken."""
    rows = found[arch, name]
    assert "error" not in rows[0], rows[0]["error"]
    due = ["forward"] if name.endswith("inference") else ["forward", "backward"]
    assert [row["graph"] for row in rows] == due
    return rows


every_case = pytest.mark.parametrize(("arch", "name"), CASES)
our_cases = pytest.mark.parametrize(  # not torch's own call, with torch's own blocks
    ("arch", "name"), [x for x in CASES if not x[1].startswith(("literal", "dit_dense"))]
)


@every_case
def test_launches_are_as_recorded_and_leave_triton_for_no_library(graphs, arch, name):
    flex = FLEX_LAUNCHES.get(name, 1)
    assert [row["flex_launches"] for row in graphs] == [flex] * len(graphs)
    for row in graphs:
        strangers = [x for x in row["outside"] if name not in MODELS or not x.startswith(OF_MODELS)]
        assert not strangers
    launches = torch_versions.summary(graphs)["launches"]
    assert launches[arch][name] == recorded(arch, name)["launches"][arch][name]


@pytest.mark.parametrize(  # BSA keeps the places of its queries
    ("arch", "name"),
    [x for x in CASES if x[1].startswith(("vsa", "literal")) and not x[1].endswith("inference")],
)
def test_of_a_choice_the_backward_keeps_bits_and_no_lists(graphs, arch, name):
    tiling = VideoTiling(*TOKENS[name.split("_")[1]])
    bits = 4 * tiling.key_tiles * -(-tiling.key_tiles // 32)
    twice = name.startswith("literal")  # and what they leave out, for the mask_mod
    assert bits // 4 <= graphs[0]["kept_ints"] <= (1 + twice) * bits + tiling.key_tiles


@every_case
def test_no_kernel_spills_or_has_its_products_serialised(graphs, arch, name):
    """With the torch that constraints.txt pins; with others no FlexAttention with blocks of ours,
    and of our own kernels none more than is recorded. (Those kernels alone are compiled to machine
    code; what Inductor fuses is, of layers, by benchmarks.torch_versions.)"""
    kernels = [kernel for row in graphs for kernel in row["kernels"]]
    assert kernels or name == "dit_dense"
    assert not [(kernel["kernel"], kernel["remarks"]) for kernel in kernels if kernel["remarks"]]
    pinned = f"torch=={torch.__version__.split('+')[0]}\n" in (ROOT / "constraints.txt").read_text()
    known = {
        kernel: size
        for case, kernel, size in recorded(arch, name)["spills"]
        if case == f"{arch} {name}" and not pinned
    }
    assert name.startswith("literal") or not [x for x in known if "flex_attention" in x]
    spilled = [(k["kernel"], k["spilled_bytes"]) for k in kernels]
    assert not [(name, size) for name, size in spilled if size > known.get(name, 0)]


def recorded(arch, name):
    """The row of this torch, which has the case."""
    row = torch_versions.latest().get(torch.__version__.split("+")[0])
    if row is None or name not in row["launches"].get(arch, {}):
        lacks = "no row" if row is None else f"the row of {row['date']} has no {arch} {name}"
        said = f"torch {torch.__version__}: {lacks}; run python -m benchmarks.torch_versions"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(said)
    return row


@our_cases
def test_flex_attention_has_the_compute_blocks_of_our_tables(graphs, arch, name):
    assert_blocks_are_ours(graphs, arch)


def assert_blocks_are_ours(graphs, arch):
    chip = CHIPS[int(arch.removeprefix("sm_"))]
    for row, choose in zip(graphs, (forward_config, backward_config)):
        for written in [k["constants"] for k in row["kernels"] if "constants" in k]:
            mask_block = written["SPARSE_Q_BLOCK_SIZE"], written["SPARSE_KV_BLOCK_SIZE"]
            sizes = written["QK_HEAD_DIM"], torch.bfloat16, *mask_block, chip.major, chip.shared
            names = FORWARD if choose is forward_config else BACKWARD
            assert tuple(written[x] for x in names) == choose(*sizes)


@our_cases
def test_no_score_of_our_layers_is_multiplied_by_the_scale(graphs, arch, name):
    # in training, and for small heads, PRESCALE_QK would serialise the products
    in_q = name.endswith("d128_inference")
    due = (pytest.approx(math.log(2)), True) if in_q else (1, False)
    for written in [k["constants"] for row in graphs for k in row["kernels"] if "constants" in k]:
        assert (written["SM_SCALE"], written["PRESCALE_QK"]) == due


def test_tables_that_are_not_handed_over_are_red(tmp_path):
    """As up to torch 2.13 by a class that looked for BlockMasks of thirteen entries."""
    if not TAKES_OPTIONS:
        pytest.skip("torch before 2.14 has no blocks of its own for such masks, and raises")
    lines = [
        f'        **_named("{direction}_", _{name}, {name.lower()}_config(*sizes), given),\n'
        for direction, name in (("fwd", "FORWARD"), ("bwd", "BACKWARD"))
    ]
    root = broken(tmp_path, *(("flexsparse/engines/kernel_options.py", line, "") for line in lines))
    job = Job(90, ("vsa_ragged64_d128_gated_pairs",))
    graphs = compile_job(job, root=root, whole=False)
    assert all("error" not in row for row in graphs)
    with pytest.raises(AssertionError):
        assert_blocks_are_ours(graphs, "sm_90")
