"""Prints what torch compiles another library's FlexAttention to; with an argument, beside ours."""

import json
import sys

from benchmarks.compiled import pretend

pretend.start(90)

import torch  # noqa: E402
from torch.nn.attention.flex_attention import create_block_mask, flex_attention  # noqa: E402

from benchmarks.compiled import capture  # noqa: E402

if sys.argv[1:]:
    import flexsparse  # noqa: F401


def nearby(b, h, q, kv):
    return (q >= kv) & (q - kv < 200)


def theirs(captures):
    def case(device):
        mask = create_block_mask(nearby, None, None, 1024, 1024, device=device)

        def attend(q, k, v, bias):
            def with_bias(score, b, h, q, kv):
                return score + bias[h, q // 128]

            score_mod = with_bias if captures else None
            return flex_attention(q, k, v, block_mask=mask, score_mod=score_mod)

        options = dict(device=device, dtype=torch.bfloat16)
        qkv = [torch.empty(1, 4, 1024, 64, requires_grad=True, **options) for _ in range(3)]
        return attend, [*qkv, torch.empty(4, 8, **options)]

    return case


for dynamic in (False, True):
    for captures in (False, True):
        torch.compiler.reset()
        sources, error = capture.graphs(theirs(captures), dynamic=dynamic)
        assert error is None, error
        print(json.dumps(sources))
