"""Eager code that trains on CUDA: which lists are made, and what the backward keeps of a choice.

On fake tensors, in a process of its own that pretends a GPU: eager operators run on shapes, and
what FlexAttention is compiled with is written as it would be.
"""

import json
import os
import subprocess
import sys

import pytest
from cuda_build import needed

from benchmarks.compiled.run import ROOT

TRACED = """
import sys
from benchmarks.compiled import pretend
pretend.start(90)
import json, re, torch
from unittest import mock
from benchmarks.compiled.capture import graphs
from flexsparse import VideoTiling, bsa_attention, flex_attention, vsa_attention, vsa_mask
from flexsparse.kernels import tile_lists as kernels

tiling = VideoTiling((16, 16, 16))

def vsa(q, k, v):
    return vsa_attention(q, k, v, tiling, top_k=8, gate_coarse=v, query_tiles=2)

def bsa(q, k, v):
    return bsa_attention(q, k, v, tiling, kv=8, window=(2, 2, 2))

def mask(q, k, v):
    return flex_attention(q, k, v, block_mask=vsa_mask(q, k, tiling, top_k=8))

def case(device):
    size = 1, 4, tiling.padded_tokens, 64
    options = dict(device=device, dtype=torch.bfloat16, requires_grad=True)
    return globals()[sys.argv[1]], [torch.empty(size, **options) for _ in range(3)]

made, real = [], kernels.tile_lists

def counted(*given):
    if not torch.compiler.is_compiling():
        made.append(None)
    return real(*given)

kernels.tile_lists = counted
with mock.patch.object(torch, "compile", lambda function, **_: function):
    found = graphs(case)
if found.error:
    raise found.error
launched = [len(re.findall(r"^\\s+_lists_\\d+\\.run", x, re.M)) for x in found.sources]
inputs = re.findall(r"= rand_strided\\(\\(([^)]*)\\), .*torch.int32\\)", found.sources[1])
sizes = [[int(x) for x in size.split(", ") if x] for size in inputs]
print(json.dumps(dict(eager=len(made), launched=launched, kept=sizes)))
"""


@needed
@pytest.mark.parametrize(
    ("layer", "eager", "blocks"), [("vsa", 0, 32), ("bsa", 0, 64), ("mask", 1, 64)]
)
def test_the_backward_keeps_bits_and_lists_are_made_once_a_direction(layer, eager, blocks):
    """Of 64 tiles; a mask that the caller has made has its own lists beside."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", TRACED, layer]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["launched"] == [1, 1] and found["eager"] == eager
    assert found["kept"] == [[1, 4, blocks, 2]]
