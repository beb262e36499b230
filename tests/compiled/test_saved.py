"""What a compiled layer saves for its backward, at 75,600 tokens and 40 heads."""

import json
import os
import subprocess
import sys

import pytest
from cuda_build import needed

from benchmarks.compiled.run import ROOT
from benchmarks.gpu.cases import settings
from benchmarks.gpu.list_memory import GOAL

SETTING = next(x for x in settings() if x.key == "75k-40x128")
TRACED = """
import sys
from benchmarks.compiled import pretend
pretend.start(90)
import json, torch
from benchmarks.bounds.buffers import inputs
from benchmarks.compiled.capture import graphs
from benchmarks.compiled.layers import long_case
from flexsparse import VideoTiling, vsa_attention

def gated(heads, dtype, device):
    "VSA of 8 heads, of which some may share those of keys and values, under autocast."
    tiling = VideoTiling((16, 16, 16), (4, 4, 4))
    @torch.autocast("cuda", torch.bfloat16)
    def attend(q, k, v, gate):
        return vsa_attention(q, k, v, tiling, top_k=8, gate_coarse=gate, enable_gqa=True)
    options = dict(device=device, dtype=getattr(torch, dtype), requires_grad=True)
    return attend, [torch.empty(1, of, 4096, 128, **options) for of in (8, heads, heads, 8)]

given = json.loads(sys.argv[1])
found = graphs(long_case(*given) if len(given) > 2 else lambda device: gated(*given, device))
if found.error:
    raise found.error
print(json.dumps(inputs(found.sources[1])))
"""


@needed
@pytest.mark.parametrize(("kind", "query_tiles", "kept"), [("vsa", 1, 1), ("bsa", 4, 0.5)])
def test_beside_attentions_own_tensors_a_layer_saves_at_most_50_mb(kind, query_tiles, kept):
    s = SETTING
    saved = inputs(s.video, s.tile, s.heads, kind, s.dim, query_tiles)
    keys = 2 * s.heads * s.tiling.padded_tokens * s.dim
    means = 4 * s.heads * s.tiling.num_tiles * s.dim
    of_queries = round(keys * kept)
    lse = of_queries // s.dim * 2
    # q, k, v, the output and its gradient; VSA's two gates
    assert sum(x in (keys, of_queries) for x in saved.values()) == (7 if kind == "vsa" else 5)
    rest = [x for x in saved.values() if x not in (keys, of_queries, lse)]
    print(kind, [x / keys for x in saved.values()], [x / lse for x in saved.values() if x == lse])
    assert (means if kind == "vsa" else 0) < sum(rest) <= GOAL  # VSA's coarse stage: means of q


@needed
def test_where_heads_share_keys_their_means_are_not_saved_either():
    saved, means = inputs(2, "bfloat16"), 4 * 64 * 128  # of a head
    assert 8 * means in saved.values()  # of q
    tokens = 2 * 4096 * 128, 4 * 4096  # and lse
    rest = [x for x in saved.values() if x // 8 not in tokens and x // 2 not in tokens]
    assert sum(rest) < 9 * means, saved


@needed
def test_what_autocast_casts_for_attention_is_saved_once():
    saved, tokens = inputs(8, "float32"), 8 * 4096 * 128
    assert sum(x == 4 * tokens for x in saved.values()) == 1, saved  # the gate
    assert sum(x == 2 * tokens for x in saved.values()) == 5  # q, k, v, the output, its gradient


def inputs(*given):
    """Bytes of each tensor that the backward of a case is given."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", TRACED, json.dumps(given)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)
