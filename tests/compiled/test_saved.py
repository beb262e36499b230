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
import json, re
from benchmarks.bounds.buffers import inputs
from benchmarks.compiled.capture import graphs
from benchmarks.compiled.layers import long_case

found = graphs(long_case(*json.loads(sys.argv[1])))
if found.error:
    raise found.error
print(json.dumps(inputs(found.sources[1])))
"""


@needed
@pytest.mark.parametrize(("kind", "query_tiles", "kept"), [("vsa", 1, 1), ("bsa", 4, 0.5)])
def test_beside_attentions_own_tensors_a_layer_saves_at_most_50_mb(kind, query_tiles, kept):
    s = SETTING
    given = json.dumps([s.video, s.tile, s.heads, kind, s.dim, query_tiles])
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", TRACED, given]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    saved = json.loads(done.stdout)
    keys = 2 * s.heads * s.tiling.padded_tokens * s.dim
    means = 4 * s.heads * s.tiling.num_tiles * s.dim
    of_queries = round(keys * kept)
    lse = of_queries // s.dim * 2
    # q, k, v, the output and its gradient; VSA's two gates
    assert sum(x in (keys, of_queries) for x in saved.values()) == (7 if kind == "vsa" else 5)
    rest = [x for x in saved.values() if x not in (keys, of_queries, lse)]
    print(kind, [x / keys for x in saved.values()], [x / lse for x in saved.values() if x == lse])
    assert (means if kind == "vsa" else 0) < sum(rest) <= GOAL  # VSA's coarse stage: means of q
